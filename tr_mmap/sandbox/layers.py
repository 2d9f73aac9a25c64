"""The layers that contain a process: which of them this machine has, and how to apply them. Knows no algorithms.

The process applies each layer to itself, before it runs anything that is not trusted. No layer can be taken off again.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .seccomp import build_filter

try:
    from . import _kernel
except ImportError:  # there was no compiler
    _kernel = None  # type: ignore[assignment]

__all__ = [
    "LAYERS",
    "Paths",
    "active_layers",
    "can_give_files",
    "check_names",
    "contain",
    "die_with_parent",
    "watch_stack",
]

LAYERS: Final = (
    "no_new_privs", "rlimits", "capabilities", "landlock", "seccomp", "mount_namespace", "net_namespace"
)  # fmt: skip
"""The zygote applies the last two; see ``namespaces.py``."""

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38

# -- Landlock ---------------------------------------------------------------------------------------------------------

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE: Final = 1 << 4 | 1 << 5
_MAKE: Final = 1 << 7 | 1 << 8  # directories and plain files; no devices, sockets, FIFOs, symlinks
_TRUNCATE: Final = 1 << 14
_KNOWS_TRUNCATE: Final = 3  # the first version that controls truncation
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | 1 << 15
_FILES_BY_ABI: Final = (0, 13, 14, 15, 15, 16)  # how many rights of files each version knows; later ones as the last
_NET: Final = 0b11  # bind and connect; since version 4
_SCOPED: Final = 0b11  # no abstract sockets of other processes, and no signals to them; since version 6


@dataclass(frozen=True)
class Paths:
    """What a contained process may reach in the file system.

    Attributes:
        read: files, and directories with all beneath: to read.
        write: the same, to read, write, make and remove.
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


def _restrict(paths: Paths, *, has_network: bool) -> None:
    abi = _kernel.landlock_abi()
    files = (1 << _FILES_BY_ABI[min(abi, len(_FILES_BY_ABI) - 1)]) - 1
    nbytes = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _kernel.make_ruleset(
        files, _NET if abi >= 4 and not has_network else 0, _SCOPED if abi >= 6 else 0, nbytes
    )
    try:
        _allow(ruleset, paths.read, files & (_READ_FILE | _READ_DIR))
        _allow(ruleset, paths.write, files & (_READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _REMOVE | _MAKE))
        _kernel.restrict_self(ruleset)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, paths: Iterable[str], access: int) -> None:
    for path in paths:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            is_directory = os.fstat(fd).st_mode & 0o170000 == 0o040000
            _kernel.allow_beneath(ruleset, fd, access if is_directory else access & _OF_FILES)
        finally:
            os.close(fd)


# -- all --------------------------------------------------------------------------------------------------------------


def active_layers() -> frozenset[str]:
    """The layers that this machine has, as far as is known without applying them; the zygote tries the others."""
    found = {"rlimits"}
    if _kernel is not None:
        found |= {"no_new_privs", "capabilities"}
        if _kernel.landlock_abi():
            found.add("landlock")
        if _kernel.has_filters():
            found.add("seccomp")
    return frozenset(found)


def can_give_files(layers: Collection[str]) -> bool:
    """Whether a process that gets a read-only descriptor of a file can do no more than read the file.

    By the descriptor's path below ``/proc`` it could open the file for writing, truncate it, or change its mode.
    Landlock refuses the first two since its third version; the filter of system calls refuses the last.
    """
    return {"landlock", "seccomp"} <= set(layers) and _kernel.landlock_abi() >= _KNOWS_TRUNCATE


def contain(
    layers: Collection[str],
    paths: Paths,
    limits: Sequence[tuple[int, int]],
    more_syscalls: Collection[str] = (),
    *,
    has_network: bool = False,
) -> None:
    """Apply the layers to this process, which must have one thread. They cannot be undone.

    Args:
        layers: their names.
        paths: what the process may reach.
        limits: resources of ``setrlimit``, each with its value.
        more_syscalls: system calls to allow beside the usual ones.
        has_network: whether it may use IPv4 and IPv6.

    Raises:
        OSError: the kernel refuses a layer; the process must end.
    """
    for which, value in limits:
        resource.setrlimit(which, (value, value))
    if "capabilities" in layers:
        _drop_capabilities()
    if "no_new_privs" in layers:
        _kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if "landlock" in layers:
        _restrict(paths, has_network=has_network)
    if "seccomp" in layers:  # last, because it forbids what the others need
        filtered = build_filter(
            _kernel.MACHINE,
            _kernel.SYSCALLS,
            os.getpid(),
            more_syscalls,
            has_network=has_network,
            # Before that version, Landlock does not stop truncation of files that the user may write.
            guards_sizes="mount_namespace" not in layers and _kernel.landlock_abi() < _KNOWS_TRUNCATE,
        )
        _kernel.install_filter(filtered.code)


def check_names(syscalls: Iterable[str]) -> None:
    """Check names of system calls.

    Raises:
        ValueError: this machine has no system call of one of these names.
    """
    unknown = sorted(set(syscalls) - _kernel.SYSCALLS.keys()) if _kernel is not None else []
    if unknown:
        raise ValueError(f"no system call of this machine is named {', '.join(unknown)}")


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that forked it ends."""
    if _kernel is not None:
        _kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def watch_stack(status: int) -> None:
    """Let this process exit with ``status`` when the stack of its main thread overflows."""
    if _kernel is not None:
        _kernel.watch_stack(status)


def _drop_capabilities() -> None:
    for capability in range(64):
        try:
            _kernel.prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:
                break  # there are no more
            if error.errno != errno.EPERM:  # an ordinary user has none to drop
                raise
    _kernel.drop_capabilities()
