"""The C library's memory calls that neither the extension nor Python's ``mmap`` makes. Imports nothing of ours."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

__all__ = ["MAP_FIXED", "MAP_NORESERVE", "MAP_PRIVATE", "MAP_SHARED", "PROT_READ", "PROT_WRITE", "libc", "mmap"]

PROT_READ, PROT_WRITE = 1, 2  # sys/mman.h, the same on Linux and macOS
MAP_SHARED, MAP_PRIVATE = 1, 2
MAP_FIXED: Final = 0x10
MAP_NORESERVE: Final = 0x4000 if sys.platform.startswith("linux") else 0  # asm-generic/mman.h
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

libc: Final = ctypes.CDLL(None, use_errno=True)
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


def mmap(address: int | None, nbytes: int, protection: int, flags: int, fd: int, offset: int) -> int:
    """Map part of a file. Returns the address of the mapping.

    Args:
        address: where to map it, with MAP_FIXED; None to leave the choice to the kernel.
        nbytes: bytes to map.
        protection: PROT_READ, PROT_WRITE.
        flags: MAP_SHARED or MAP_PRIVATE, and others.
        fd: of the file.
        offset: where in the file the mapping begins, in bytes.

    Raises:
        OSError: it cannot be mapped.
    """
    found: int | None = libc.mmap(address, nbytes, protection, flags, fd, offset)
    if found is None or found == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found
