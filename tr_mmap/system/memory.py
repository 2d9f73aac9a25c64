"""Files in memory: ``mmap``, ``madvise``, and the C library that has them."""

from __future__ import annotations

import ctypes
import os
import sys
import weakref

__all__ = [
    "MADV_DONTNEED",
    "MADV_POPULATE_READ",
    "MADV_POPULATE_WRITE",
    "MADV_REMOVE",
    "address_of",
    "advise",
    "libc",
    "map_again",
    "map_private",
    "map_read",
    "map_write",
]

MADV_DONTNEED = 4  # linux/mman.h: on a private mapping, forget our stores and look at the file again
MADV_REMOVE = 9  # give the pages back to the file system now
MADV_POPULATE_READ = 22  # linux/mman.h, 5.14; Python's mmap does not name them yet
MADV_POPULATE_WRITE = 23

_PROT_READ, _PROT_WRITE = 1, 2  # sys/mman.h, the same on Linux and macOS
_MAP_SHARED, _MAP_PRIVATE = 1, 2
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000 if sys.platform.startswith("linux") else 0  # asm-generic/mman.h
_MAP_FAILED = ctypes.c_void_p(-1).value

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,  # off_t on every 64-bit platform
]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def map_read(fd: int, nbytes: int, offset: int = 0) -> memoryview:
    """Map for reading, shared: what the writer stores is seen, and a store of ours is a TypeError."""
    return _map(fd, nbytes, offset, _PROT_READ, _MAP_SHARED).toreadonly()


def map_write(fd: int, nbytes: int, offset: int = 0) -> memoryview:
    """Map for reading and writing, shared."""
    return _map(fd, nbytes, offset, _PROT_READ | _PROT_WRITE, _MAP_SHARED)


def map_private(fd: int, nbytes: int, offset: int = 0) -> memoryview:
    """Map copy-on-write: stores stay in this process. A file larger than the memory is fine: few store all over it."""
    return _map(fd, nbytes, offset, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_NORESERVE)


def map_again(mapping: memoryview, fd: int, offset: int, *, private: bool) -> None:
    """Replace a writable mapping in place, in one step: who looks at it now looks at the file through the new one.

    Args:
        mapping: whole pages.
        fd: the file, open for writing.
        offset: where in the file the mapping begins.
        private: whether stores stay in this process from here on.
    """
    flags = _MAP_FIXED | (_MAP_PRIVATE if private else _MAP_SHARED)
    address = libc.mmap(address_of(mapping), len(mapping), _PROT_READ | _PROT_WRITE, flags, fd, offset)
    if address in (None, _MAP_FAILED):
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {len(mapping)} bytes: {os.strerror(code)}")


def address_of(mapping: memoryview) -> int:
    """Where a writable mapping begins in this process's address space."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def advise(mapping: memoryview, advice: int) -> bool:
    """``madvise`` over a whole writable mapping; False where this kernel does not know the advice."""
    return bool(libc.madvise(address_of(mapping), len(mapping), advice) == 0)


def _map(fd: int, nbytes: int, offset: int, protection: int, flags: int) -> memoryview:
    """Map part of a file; unmapped when the last view of it is gone.

    ``mmap.mmap`` keeps a duplicate of the descriptor for as long as it lives (until Python 3.13), so a thousand
    live views would be a thousand descriptors. This keeps none.
    """
    address = libc.mmap(None, nbytes, protection, flags, fd, offset)
    if address in (None, _MAP_FAILED):
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {nbytes} bytes: {os.strerror(code)}")
    block = (ctypes.c_char * nbytes).from_address(address)
    # The views hold the block, so this runs when nobody can touch the memory any more, and not at exit.
    weakref.finalize(block, libc.munmap, address, nbytes).atexit = False
    return memoryview(block).cast("B")
