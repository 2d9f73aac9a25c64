"""A directory of installed packages: what may not stay in it, its size, its end. Executes nothing of it."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from importlib import metadata
from typing import Final

from packaging.utils import canonicalize_name

from ..base import system
from .errors import BadDependency

__all__ = ["clean", "make_read_only", "remove", "size_of"]

_AT_START: Final = frozenset({"sitecustomize", "usercustomize"})
"""Modules that a Python imports when it starts, if it finds them."""
_libc: Final = ctypes.CDLL(None, use_errno=True)
_SCRIPTS: Final = frozenset({"bin", "Scripts"})


def clean(folder: str) -> tuple[str, ...]:
    """Remove what would act without being imported: ``.pth`` files, and programs.

    Returns:
        What was removed, by its path in the directory, sorted.

    Raises:
        BadDependency: a package would be imported when a Python starts, or has what is neither a file nor a directory.
    """
    removed = []
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.partition(".")[0] in _AT_START:
                raise _refused(folder, entry.name, "which Python imports when it starts")
            if entry.name in _SCRIPTS:
                remove(entry.path)
                removed.append(entry.name + "/")
            elif entry.name == ".lock":  # uv's own
                os.unlink(entry.path)
    for path, status in _entries(folder):
        name = os.path.relpath(path, folder)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise _refused(folder, name, "which is neither a file nor a directory")
        if name.lower().endswith(".pth") and os.path.dirname(name) == "":
            os.unlink(path)
            removed.append(name)
    return tuple(sorted(removed))


def _refused(folder: str, name: str, what: str) -> BadDependency:
    """The error for a package, found by what it says that it has."""
    for each in metadata.distributions(path=[folder]):
        if any(file.parts[0] == name.split(os.sep)[0] for file in each.files or ()):
            package = canonicalize_name(each.name)
            return BadDependency(f"{package} is refused: it has {name!r:.80}, {what}", package=package)
    return BadDependency(f"a package is refused: it has {name!r:.80}, {what}")


def size_of(folder: str) -> int:
    """The bytes of all files, and what their names take."""
    return sum(max(status.st_size, status.st_blocks * 512) for _, status in _entries(folder))


def make_read_only(folder: str) -> None:
    """Let nobody write in it, itself included; and wait until it is on the disk."""
    for path, status in _entries(folder):
        os.chmod(path, 0o500 if stat.S_ISDIR(status.st_mode) else 0o400)
    os.chmod(folder, 0o500)
    fd = system.open_dir(folder)
    try:
        if _libc.syncfs(fd):  # all at once: a call for each of thousands of files takes many times as long
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
    finally:
        os.close(fd)


def remove(folder: str) -> None:
    """Remove a directory and all in it, also where it may only be read. Nothing is followed, and none is an error."""
    for path, names, _ in os.walk(folder):
        os.chmod(path, 0o700)
        for each in names:
            if not os.path.islink(os.path.join(path, each)):
                os.chmod(os.path.join(path, each), 0o700)  # before it is walked
    system.remove_tree(folder)


def _entries(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """All that is in a directory, what lies deeper later."""
    for path, directories, files in os.walk(folder, onerror=_raise):
        for name in (*directories, *files):
            each = os.path.join(path, name)
            yield each, os.lstat(each)


def _raise(error: OSError) -> None:
    raise error
