"""Sealed memory that two processes share through descriptors: no path leads to it. Knows no tensors.

A memfd whose size is sealed can be mapped without fear: nobody can truncate it under a mapping. One that is sealed
against future writes is safe to hand over: a process that opens its descriptor again cannot write it either.
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
"""Of tensors in memory."""

_NO_RESIZE: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_PAGE: Final = mmap.PAGESIZE


def arena_start(nbytes: int) -> int:
    """Where in an area for so many bytes of results the part begins in which the process may allocate arrays."""
    return -(-nbytes // _PAGE) * _PAGE


def area_nbytes(output_nbytes: int) -> int:
    """The size of an area for so many bytes of results: for those that are copied, and for those that are not."""
    return 2 * arena_start(output_nbytes)


def make_area(nbytes: int) -> int:
    """A descriptor of so many bytes of zeros, whose size is fixed. Its memory is taken when it is written."""
    fd = os.memfd_create("tr_mmap-area", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, max(_PAGE, nbytes))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _NO_RESIZE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_again(fd: int, *, is_input: bool) -> int:
    """A further descriptor of the same memory, whose flags and offset are its own: no process sees those of another.

    Args:
        fd: of memory.
        is_input: whether it only reads.
    """
    return os.open(f"/proc/self/fd/{fd}", (os.O_RDONLY if is_input else os.O_RDWR) | os.O_CLOEXEC)


def data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """Where an area has memory: start and end of each range. Elsewhere it was never written, and is zeros."""
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
    """A descriptor of memory with copies of arrays, each at its offset, that nobody can write any more."""
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
