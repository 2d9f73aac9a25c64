"""Replaces a file whole, in one step: a reader sees the old file or the new one, never a part of either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import TRException
from ..wire.names import TEMPORARY_PREFIX, TEMPORARY_SUFFIX
from . import system
from .fork_safety import this_process

__all__ = ["replace_by_link", "replacement"]


@contextmanager
def replacement(path: str, mode: int = 0o600, *, is_exact: bool = False, owner: object = None) -> Iterator[int]:
    """A new file that takes the place of ``path`` when the block ends, and is removed if the block raises.

    A killed process leaves at most a file ``.tr_mmap-*.tmp`` in the same directory. A child that a signal handler forks
    in the block neither puts the file in place nor removes it: its parent does.

    Args:
        path: the file to replace, which need not exist; a symlink is replaced, not followed.
        mode: permissions of the new file, less the umask.
        is_exact: whether it gets just these permissions, whatever the umask.
        owner: the mark of the process that may do so; None for the one that calls this.

    Yields:
        The new file's descriptor, to write to.

    Raises:
        FileNotFoundError: there is no such directory.
        OutOfSpace: no room.
        HostilePath: a directory is in the file's place.
        OSError: it cannot be made or renamed; the error names ``path``, not the new file.
    """
    temporary, owner = _beside(path), owner or this_process.mark
    try:
        fd = system.create_file(temporary, mode, told_as=path)  # in here: a signal handler may raise when it is made
        try:
            if is_exact:
                system.set_mode(fd, mode)
            yield fd
        finally:
            system.close(fd)
        system.rename(temporary, path, owner=owner)
    except BaseException as error:
        system.unlink(temporary, owner=owner)
        if isinstance(error, OSError) and not isinstance(error, TRException):
            if error.filename == temporary:
                raise OSError(error.errno, error.strerror, path) from error  # the user knows this name
            if error.filename is None and error.errno is not None:  # of a call on the open file
                error.filename = path
        raise


def replace_by_link(source: str, path: str) -> None:
    """Make ``path`` another name of the file ``source``, in one step. It must not be a name of that file already.

    A child that a signal handler forks meanwhile leaves the rest to its parent.

    Raises:
        OutOfSpace, HostilePath: as in :func:`replacement`.
    """
    temporary, owner = _beside(path), this_process.mark
    try:
        system.link(source, temporary, owner=owner)
        system.rename(temporary, path, owner=owner)
    except BaseException:
        try:
            system.unlink(temporary, owner=owner)
        except OSError:
            pass  # the extra name is removed with the session's directory
        raise


def _beside(path: str) -> str:
    return os.path.join(os.path.dirname(path), f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}{TEMPORARY_SUFFIX}")
