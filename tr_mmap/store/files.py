"""Names and writes the files of a store. Each file is written by one process, once. Knows no catalogue.

A file's name says which process writes it, so the files that a killed process left are told from those of a living one.
"""

from __future__ import annotations

import os
import secrets
from typing import Any, Final

import numpy as np

from ..base import system
from ..processes.identity import Identity
from ..tsr.dtypes import DType
from ..tsr.saving import write_new

__all__ = ["new_file_name", "replace_file", "writer_of", "write_array"]

_SUFFIX: Final = ".tsr"


def new_file_name(kind: str, suffix: str = _SUFFIX) -> str:
    """A name that no other file has, and that says which process makes the file."""
    own = Identity.current()
    return f"{kind}-{own.pid}-{own.start_ticks}-{own.pid_namespace}-{secrets.token_hex(6)}{suffix}"


def writer_of(name: str) -> Identity | None:
    """The process that has made a file of that name; None if it is not one of :func:`new_file_name`."""
    words = name.removesuffix(_SUFFIX).split("-")
    if len(words) != 5 or not all(word.isascii() and word.isdigit() for word in words[1:4]):
        return None
    own = Identity.local(int(words[1]), int(words[2]))
    return Identity(own.pid, own.start_ticks, own.boot_id, int(words[3]))


def write_array(
    directory: str, name: str, dtype: DType, array: np.ndarray[Any, Any], *, has_checksum: bool, is_synced: bool
) -> None:
    """Write a new file with an array.

    Args:
        directory: for the file.
        name: of :func:`new_file_name`.
        dtype: of the array, as TSR has it.
        array: of any layout.
        has_checksum: whether to store a checksum of the payload.
        is_synced: whether to wait until its bytes are on the disk. Its name may not be: sync the directory for that.

    Raises:
        OutOfSpace: there is no room; nothing is left.
    """
    path = os.path.join(directory, name)
    fd = system.create_file(path)
    try:
        write_new(fd, directory, dtype, array, checksum=has_checksum)
        if is_synced:
            system.sync(fd)
    except BaseException:
        system.unlink(path)
        raise
    finally:
        system.close(fd)


def replace_file(path: str, data: bytes) -> None:
    """Replace a file in one step: also after a power cut, the path leads to the whole old file or the whole new one.

    Raises:
        OutOfSpace: there is no room; nothing has changed.
    """
    temporary = os.path.join(os.path.dirname(path), new_file_name(os.path.basename(path).partition(".")[0], ""))
    fd = system.create_file(temporary)
    try:
        try:
            system.write_all(fd, data)
            system.sync(fd)  # else the new name might reach the disk before the bytes
        finally:
            system.close(fd)
        system.rename(temporary, path)
    except BaseException:
        system.unlink(temporary)
        raise
