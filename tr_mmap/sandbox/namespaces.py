"""A file system of its own for contained processes: only what was granted is in it, and ``/tmp`` is private.

The zygote enters the namespaces while it has one thread, and moves into the new root after it has imported its modules.
Each contained process gets its own ``/tmp`` there. For root this needs CAP_SYS_ADMIN, for others user namespaces. If
the kernel or the container refuses, the layer is missing, and what was done by then does no harm.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

try:
    from . import _kernel
except ImportError:  # there was no compiler
    _kernel = None  # type: ignore[assignment]

__all__ = ["DESCRIPTORS", "TEMPORARY", "Grant", "enter", "make_root", "mount_temporary"]

TEMPORARY: Final = "/tmp"
DESCRIPTORS: Final = "/dev/fd"
_PROC: Final = "/.proc"  # where the zygote's root has /proc; contained processes unmount it

_NEWNS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_READ_ONLY, _NO_SUID, _NO_DEVICES = 1, 2, 4  # of mount_setattr(2)
_MAX_FILES: Final = 1024  # in a private directory: even an empty file takes memory of the kernel


class Grant(NamedTuple):
    """A part of the host's file system that contained processes see.

    Attributes:
        host_path: its path on the host.
        path: its path in the new root.
        is_readonly: whether it may only be read.
    """

    host_path: str
    path: str
    is_readonly: bool


def enter(*, has_network: bool) -> bool:
    """Enter new namespaces. The process must have one thread.

    Returns:
        False if the kernel or the container refuses.
    """
    if _kernel is None:
        return False
    flags = _NEWNS | _NEWIPC | (0 if has_network else _NEWNET)
    try:
        try:
            _kernel.unshare(flags)
        except PermissionError:
            uid, gid = os.geteuid(), os.getegid()
            _kernel.unshare(flags | _NEWUSER)
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        _kernel.mount("/", None, _MS_REC | _MS_PRIVATE, "")
        os.close(_kernel.clone_mount("/dev/null", _READ_ONLY))  # a kernel before 5.12 cannot
    except OSError:
        return False
    return True


def make_root(grants: Sequence[Grant], *, has_descriptors: bool = False) -> None:
    """Move into a new root that has only the grants, and an empty directory for ``/tmp``. Call :func:`enter` first.

    Args:
        grants: the content of the root.
        has_descriptors: whether :func:`mount_temporary` will be called with ``has_descriptors``.

    Raises:
        OSError: the kernel refuses.
    """
    trees = []
    for grant in _outermost(grants):
        attributes = _NO_SUID | (_READ_ONLY if grant.is_readonly else 0)
        if not grant.host_path.startswith("/dev/"):
            attributes |= _NO_DEVICES
        try:
            is_directory = stat.S_ISDIR(os.stat(grant.host_path).st_mode)
            trees.append((grant.path, is_directory, _kernel.clone_mount(grant.host_path, attributes)))
        except FileNotFoundError:
            continue
    if has_descriptors:
        trees.append((_PROC, True, _kernel.clone_mount("/proc", _NO_SUID | _NO_DEVICES)))
    _kernel.mount(TEMPORARY, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,nr_inodes=8192,mode=755")
    for path, is_directory, fd in trees:
        _put(fd, TEMPORARY + path, is_directory=is_directory)
    os.makedirs(TEMPORARY + TEMPORARY, exist_ok=True)
    if has_descriptors:
        os.makedirs(TEMPORARY + DESCRIPTORS, exist_ok=True)
    os.chdir(TEMPORARY)
    _kernel.mount(TEMPORARY, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "")
    _kernel.pivot_root()


def mount_temporary(nbytes: int, grants: Iterable[Grant], *, has_descriptors: bool = False) -> None:
    """Give this process an empty ``/tmp`` that no other process sees, and that ends with it.

    Call :func:`make_root` first.

    Args:
        nbytes: its size.
        grants: as for :func:`make_root`: those beneath ``/tmp`` are mounted again.
        has_descriptors: whether this process finds its own descriptors in ``/dev/fd``, because it has to load a library
            from one. It sees nothing else of ``/proc``.

    Raises:
        OSError: the kernel refuses.
    """
    _kernel.unshare(_NEWNS)
    if has_descriptors:
        fds = _kernel.clone_mount(f"{_PROC}/self/fd", _READ_ONLY | _NO_SUID | _NO_DEVICES)
        _kernel.unmount(_PROC)
        _kernel.move_mount(fds, DESCRIPTORS)
        os.close(fds)
    trees = [
        (each.path, os.path.isdir(each.path), _kernel.clone_mount(each.path, 0))
        for each in _outermost(grants)
        if each.path.startswith(f"{TEMPORARY}/") and os.path.exists(each.path)
    ]
    options = f"size={max(nbytes, mmap.PAGESIZE)},nr_inodes={_MAX_FILES},mode=700"
    _kernel.mount(TEMPORARY, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
    for path, is_directory, fd in trees:
        _put(fd, path, is_directory=is_directory)


def _put(fd: int, path: str, *, is_directory: bool) -> None:
    """Make a path, and move a mount there."""
    if is_directory:
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    _kernel.move_mount(fd, path)
    os.close(fd)


def _outermost(grants: Iterable[Grant]) -> list[Grant]:
    """The grants without those that lie in another grant with the same access."""
    found: list[Grant] = []
    for grant in sorted(set(grants), key=lambda each: (each.path, each.is_readonly)):
        covered = any(
            each.path == each.host_path
            and grant.path == grant.host_path
            and each.is_readonly == grant.is_readonly
            and (grant.path + "/").startswith(each.path + "/")
            for each in found
        )
        if not covered:
            found.append(grant)
    return found
