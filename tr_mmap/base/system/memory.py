"""Calls of the C library on memory: ``mmap``, ``madvise``, ``mallopt``. Never opens a file."""

from __future__ import annotations

import ctypes
from typing import Final

from ...native import map_file
from ...native.libc import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, libc
from ...native.libc import mmap as libc_mmap
from .limits import mapping_refused

__all__ = [
    "MADV_DONTNEED",
    "MADV_HUGEPAGE",
    "MADV_POPULATE_READ",
    "MADV_POPULATE_WRITE",
    "MADV_REMOVE",
    "address_of",
    "advise",
    "keep",
    "keep_freed_memory",
    "libc",
    "map_again",
    "map_private",
    "map_read",
    "map_write",
    "return_freed_memory",
]

MADV_DONTNEED = 4  # linux/mman.h: on a private mapping, drop our stores and show the file again
MADV_REMOVE = 9  # give the pages back to the file system now
MADV_HUGEPAGE = 14
MADV_POPULATE_READ = 22  # linux/mman.h, 5.14; Python's mmap does not name them yet
MADV_POPULATE_WRITE = 23
_M_TRIM_THRESHOLD: Final = -1  # malloc.h of glibc
_M_MMAP_THRESHOLD: Final = -3


def map_read(fd: int, nbytes: int, offset: int = 0) -> memoryview:
    """Map for reading, shared: shows what a writer stores; a store through it is a TypeError."""
    return _map(fd, nbytes, offset, is_writable=False, is_private=False)


def map_write(fd: int, nbytes: int, offset: int = 0) -> memoryview:
    """Map for reading and writing, shared."""
    return _map(fd, nbytes, offset, is_writable=True, is_private=False)


def map_private(fd: int, nbytes: int, offset: int = 0) -> memoryview:
    """Map copy-on-write: stores stay in this process. The file may be larger than the memory."""
    return _map(fd, nbytes, offset, is_writable=True, is_private=True)


def map_again(mapping: memoryview, fd: int, offset: int, *, private: bool) -> None:
    """Replace a writable mapping in place, in one step. Existing views then show the file through the new mapping.

    Args:
        mapping: whole pages.
        fd: the file, open for writing.
        offset: where in the file the mapping begins.
        private: whether stores stay in this process from here on.

    Raises:
        SystemLimit: a limit forbids it; ``limit`` says which one.
        OSError: it cannot be mapped.
    """
    flags = MAP_FIXED | (MAP_PRIVATE if private else MAP_SHARED)
    try:
        libc_mmap(address_of(mapping), len(mapping), PROT_READ | PROT_WRITE, flags, fd, offset)
    except OSError as error:
        raise mapping_refused(error, len(mapping), is_private=private) from error


def address_of(mapping: memoryview) -> int:
    """The address at which a writable mapping begins in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def advise(mapping: memoryview, advice: int) -> bool:
    """``madvise`` over a whole writable mapping; False where this kernel does not know the advice."""
    return bool(libc.madvise(address_of(mapping), len(mapping), advice) == 0)


def keep(mapping: memoryview, thing: object) -> None:
    """Keep an object alive for as long as a mapping lives."""
    mapping.obj.kept = thing  # type: ignore[attr-defined]


def keep_freed_memory(block_nbytes: int, total_nbytes: int) -> bool:
    """Let ``malloc`` keep freed memory of this process for later allocations, whose pages then exist already.

    Args:
        block_nbytes: larger blocks go back to the system as soon as they are freed.
        total_nbytes: free memory beyond this at the heap's end goes back to the system.

    Returns:
        Whether that was done; False where the C library is not glibc.
    """
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, block_nbytes) and mallopt(_M_TRIM_THRESHOLD, total_nbytes))


def return_freed_memory() -> None:
    """Give back to the system what ``malloc`` keeps, as far as it can."""
    trim = getattr(libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def _map(fd: int, nbytes: int, offset: int, *, is_writable: bool, is_private: bool) -> memoryview:
    """Map part of a file; unmapped when the last view of it is gone.

    ``mmap.mmap`` keeps a duplicate of the descriptor for as long as it lives (until Python 3.13), so a thousand
    live views would be a thousand descriptors. This keeps none.

    Raises:
        SystemLimit: a limit forbids it; ``limit`` says which one.
        OSError: it cannot be mapped.
    """
    try:
        return memoryview(map_file(fd, nbytes, offset, is_writable, is_private))
    except OSError as error:
        raise mapping_refused(error, nbytes, is_private=is_private) from error
