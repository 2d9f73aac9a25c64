"""Replaces a file whole, in one step: a reader sees the old file or the new one, never a part of either."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import TRException
from ..wire.names import TEMPORARY_PREFIX, TEMPORARY_SUFFIX
from . import system

__all__ = ["replace_by_link", "replacement"]


@contextmanager
def replacement(path: str, mode: int = 0o600, *, is_exact: bool = False) -> Iterator[int]:
    """A new file that takes the place of ``path`` when the block ends, and is removed if the block raises.

    A killed process leaves at most a file ``.tr_mmap-*.tmp`` in the same directory.

    Args:
        path: the file to replace, which need not exist; a symlink is replaced, not followed.
        mode: permissions of the new file, less the umask.
        is_exact: whether it gets just these permissions, whatever the umask.

    Yields:
        The new file's descriptor, to write to.

    Raises:
        FileNotFoundError: there is no such directory.
        OutOfSpace: no room.
        HostilePath: a directory is in the file's place.
        OSError: it cannot be made or renamed; the error names ``path``, not the new file.
    """
    temporary = _beside(path)
    try:
        fd = system.create_file(temporary, mode, told_as=path)  # in here: a signal handler may raise when it is made
        try:
            if is_exact:
                system.set_mode(fd, mode)
            yield fd
        finally:
            system.close(fd)
        system.rename(temporary, path)
    except BaseException as error:
        system.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, TRException):
            if error.filename == temporary:
                raise OSError(error.errno, error.strerror, path) from error  # the user knows this name
            if error.filename is None and error.errno is not None:  # of a call on the open file
                error.filename = path
        raise


def replace_by_link(source: str, path: str) -> None:
    """Make ``path`` another name of the file ``source``, in one step. It must not be a name of that file already.

    Raises:
        OutOfSpace, HostilePath: as in :func:`replacement`.
    """
    temporary = _beside(path)
    try:
        system.link(source, temporary)
        system.rename(temporary, path)
    except BaseException:
        try:
            system.unlink(temporary)
        except OSError:
            pass  # the extra name is removed with the session's directory
        raise


def _beside(path: str) -> str:
    return os.path.join(os.path.dirname(path), f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
