"""Sealed memory that two processes share through descriptors; no path leads to it. Knows no formats.

Nobody can truncate a memfd whose size is sealed, so reading a mapping of it is never SIGBUS. A memfd that is sealed
against future writes can be given to another process, which cannot write it, even if it opens the descriptor again.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from ..tsr.tensors import copy_into, is_little_endian

__all__ = ["ALIGNMENT", "area_nbytes", "arena_start", "copy_in", "data_ranges", "make_area", "open_again", "write"]

ALIGNMENT: Final = 64
"""Offsets of tensors are multiples of this."""

_NO_RESIZE: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_PAGE: Final = mmap.PAGESIZE


def arena_start(nbytes: int) -> int:
    """Where the second half of an area for ``nbytes`` of results begins: there numpy allocates arrays."""
    return -(-nbytes // _PAGE) * _PAGE


def area_nbytes(output_nbytes: int) -> int:
    """The size of an area for so many bytes of results: a half for results that are copied, a half for the others."""
    return 2 * arena_start(output_nbytes)


def make_area(nbytes: int) -> int:
    """Make a memfd of ``nbytes`` zeros (a page at least), whose size is sealed. It takes memory where it is written."""
    fd = os.memfd_create("tr_mmap-area", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, max(_PAGE, nbytes))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _NO_RESIZE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_again(fd: int, *, is_input: bool) -> int:
    """Open the same memory again. The new descriptor has its own flags and offset, which the other process cannot see.

    Args:
        fd: of the memory.
        is_input: whether the new descriptor is read-only.
    """
    return os.open(f"/proc/self/fd/{fd}", (os.O_RDONLY if is_input else os.O_RDWR) | os.O_CLOEXEC)


def data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """The ranges of an area that have memory, each as start and end. The rest was never written, and is zeros."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is no more
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def copy_in(pieces: list[tuple[int, np.ndarray[Any, Any]]], nbytes: int) -> int:
    """Copy arrays, each to its offset, into new memory, and seal it against all writes. Returns its descriptor."""
    fd = make_area(nbytes)
    try:
        for offset, array in pieces:
            write(fd, offset, array)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write(fd: int, offset: int, array: np.ndarray[Any, Any]) -> None:
    """Write an array's elements, in C order and little-endian.

    A write takes half the time of a store through a mapping: the kernel neither clears the pages first nor faults.
    """
    if array.nbytes == 0:
        return
    if not (array.flags.c_contiguous and is_little_endian(array)):
        copy = bytearray(array.nbytes)
        copy_into(copy, 0, array)
        left = memoryview(copy)
    else:
        left = array.reshape(-1).view(np.uint8).data
    while left:
        done = os.pwrite(fd, left, offset)
        offset, left = offset + done, left[done:]
