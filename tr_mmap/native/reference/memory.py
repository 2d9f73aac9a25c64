"""Maps files, and copies into mapped memory. Never opens a file."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from ..libc import MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, libc, mmap

__all__ = ["copy", "learn_torch", "make_twin", "map_file", "quick_load"]


def learn_torch(*_: Any) -> None:
    """Learn how torch's tensors of a dtype cross. There is no fast path here that has to know."""


def make_twin(*_: Any) -> None:
    """Make the copy-on-write twin of a mapping. Here there are none: its place is mapped again instead."""


def copy(target: Any, offset: int, source: Any, _is_for_others: bool = False, /) -> None:
    """Copy the bytes of a C-contiguous buffer into a writable one.

    Args:
        target: the writable buffer, of bytes.
        offset: where in the target the copy begins, in bytes.
        source: the C-contiguous buffer.

    Raises:
        BufferError, ValueError: the source is not C-contiguous, or is no buffer; or it does not fit there; or the
            target holds Python objects.
    """
    if "O" in memoryview(target).format:
        raise ValueError("the target holds Python objects, and no bytes may be written over them")
    view = memoryview(source)
    if not view.c_contiguous:
        raise BufferError("the source is not C-contiguous")
    if offset < 0 or view.nbytes > len(target) - offset:
        raise ValueError("the source does not fit into the target there")
    if view.nbytes:  # by numpy, because it lets other threads run meanwhile
        np.frombuffer(target, np.uint8, view.nbytes, offset)[:] = np.frombuffer(view.cast("B"), np.uint8)


def map_file(fd: int, nbytes: int, offset: int, is_writable: bool, is_private: bool) -> memoryview:
    """Map part of a file; it is unmapped when its last view is gone.

    Args:
        fd: of the file.
        nbytes: bytes to map.
        offset: where in the file the mapping begins, in bytes.
        is_writable: whether stores are allowed.
        is_private: whether the mapping is copy-on-write, so that stores stay in this process.

    Returns:
        The mapping. Attributes of its ``obj`` live as long as it.

    Raises:
        OSError: it cannot be mapped.
    """
    # A private mapping may be larger than the memory, because few callers store into all of it.
    flags = MAP_PRIVATE | MAP_NORESERVE if is_private else MAP_SHARED
    address = mmap(None, nbytes, PROT_READ | PROT_WRITE if is_writable else PROT_READ, flags, fd, offset)
    block = (ctypes.c_char * nbytes).from_address(address)
    # The views hold the block, so this runs when no view is left that could touch the memory. It never runs at exit.
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
        The mapping of the file, the dtype code, the shape, the payload's offset, and the file's inode if it is large
        and on tmpfs, else 0. None if the slow path is needed, as always here: only the extension has the fast path.
    """
    return None
