"""Replacing files whole, in one step: readers see the old file or the new one, and nothing of the new one before."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from . import system

__all__ = ["replace_by_link", "replacement"]


@contextmanager
def replacement(path: str, mode: int = 0o600) -> Iterator[int]:
    """A new file that takes the place of ``path`` when the block ends, and is removed if the block raises.

    A killed process leaves at most a file ``.tr_mmap-*.tmp`` in the same directory.

    Args:
        path: a file, or where there is none yet; a symlink is replaced, not followed.
        mode: permissions of the new file, less the umask.

    Yields:
        Its descriptor, to write to.

    Raises:
        FileNotFoundError: there is no such directory.
        OutOfSpace: no room.
        HostilePath: a directory is in the file's place.
    """
    temporary = _beside(path)
    fd = system.create_file(temporary, mode)
    try:
        try:
            yield fd
        finally:
            system.close(fd)
        system.rename(temporary, path)
    except BaseException:
        system.unlink(temporary)
        raise


def replace_by_link(source: str, path: str) -> None:
    """Let ``path`` mean the file that ``source`` means, which it must not mean already.

    Raises:
        OutOfSpace, HostilePath: as above.
    """
    temporary = _beside(path)
    try:
        system.link(source, temporary)
        system.rename(temporary, path)
    except BaseException:
        try:
            system.unlink(temporary)
        except OSError:
            pass  # a name too many in the session's directory, which goes with it
        raise


def _beside(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".tr_mmap-{secrets.token_hex(8)}.tmp")
