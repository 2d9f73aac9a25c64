"""Memory of files: mapped, and copied into."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from ..libc import MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, libc, mmap

__all__ = ["copy", "map_file", "quick_load"]


def copy(target: Any, offset: int, source: Any) -> None:
    """Copy the bytes of a C-contiguous buffer to a place in a writable one.

    Raises:
        BufferError, ValueError: the source is not C-contiguous, or is no buffer; or it does not fit there.
    """
    view = memoryview(source)
    if not view.c_contiguous:
        raise BufferError("the source is not C-contiguous")
    if offset < 0 or view.nbytes > len(target) - offset:
        raise ValueError("the source does not fit into the target there")
    if view.nbytes:  # by numpy, which lets other threads run meanwhile
        np.frombuffer(target, np.uint8, view.nbytes, offset)[:] = np.frombuffer(view.cast("B"), np.uint8)


def map_file(fd: int, nbytes: int, offset: int, is_writable: bool, is_private: bool) -> memoryview:
    """Map part of a file; unmapped with the last view of it. Its ``obj`` takes attributes that are to live as long.

    Raises:
        OSError: it cannot be mapped.
    """
    # A private mapping larger than the memory is fine: few store all over it.
    flags = MAP_PRIVATE | MAP_NORESERVE if is_private else MAP_SHARED
    address = mmap(None, nbytes, PROT_READ | PROT_WRITE if is_writable else PROT_READ, flags, fd, offset)
    block = (ctypes.c_char * nbytes).from_address(address)
    # The views hold the block, so this runs when nobody can touch the memory any more, and not at exit.
    weakref.finalize(block, libc.munmap, address, nbytes).atexit = False
    view = memoryview(block).cast("B")
    return view if is_writable else view.toreadonly()


def quick_load(path: str | bytes, itemsizes: bytes, is_private: bool) -> Any:  # noqa: ARG001
    """Open, check and map a plain TSR file of the native layout.

    Args:
        path: of the file.
        itemsizes: the size of an element for each dtype code; 0 for none.
        is_private: whether to map it copy-on-write, else for reading.

    Returns:
        The mapping of the file, the dtype code, the shape, the payload's offset. None if the slow path is needed. It
        always is here: only the extension has the fast path.
    """
    return None
