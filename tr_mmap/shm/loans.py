"""Loans: arrays and tensors that live in segments, so that publishing them copies nothing.

After publishing, nothing that the borrower still has may change what the reader sees. Arrays that we know of become
read-only; a torch tensor moves to a copy-on-write mapping. If the borrower has other views of the memory, the pages
themselves become copy-on-write, under all views at once. That costs a page fault for every page when the segment is
used again, so it is done only then.
"""

from __future__ import annotations

import math
import weakref
from functools import lru_cache
from operator import index
from typing import Any

import numpy as np

from ..base import system
from ..errors import UnsupportedTensor
from ..native import freeze, loan_of
from ..tsr import dtypes, tensors
from ..wire.header import MAX_NDIM, PAYLOAD_ALIGNMENT_NBYTES
from ..wire.segments import PAYLOAD_OFFSET
from .segment import Layout, Segment

__all__ = ["TorchLoans", "describe", "forbid_writing", "layout_of"]


def describe(shape: int | tuple[int, ...], dtype: Any) -> tuple[Layout, int]:
    """The layout of a loan, and how many bytes it has.

    Raises:
        UnsupportedTensor: no such dtype, or a shape that TSR cannot hold.
    """
    sizes = (index(shape),) if hasattr(shape, "__index__") else tuple(map(index, shape))
    try:
        return _describe(sizes, dtype)
    except TypeError:  # something that has no hash; it may be no dtype either
        return _describe.__wrapped__(sizes, dtype)


@lru_cache(64)  # most are asked for again and again
def _describe(shape: tuple[int, ...], dtype: Any) -> tuple[Layout, int]:
    known = dtypes.resolve(dtype)
    if len(shape) > MAX_NDIM or (shape and min(shape) < 0):
        raise UnsupportedTensor(f"{shape} is no shape of at most {MAX_NDIM} sizes, none negative")
    return (known, shape, PAYLOAD_OFFSET), math.prod(shape) * known.itemsize


class TorchLoans:
    """The loans of one pool that are torch tensors, which are known by where their storage begins."""

    def __init__(self) -> None:
        # Each storage's own address, and a weak reference to the array that it keeps alive.
        self._by_address: dict[int, tuple[int, weakref.ref[np.ndarray[Any, Any]]]] = {}

    def loan(self, segment: Segment) -> Any:
        """A tensor over the segment, of the layout that was laid out."""
        array = segment.loan()
        assert segment.loaned_layout is not None
        dtype, _, offset = segment.loaned_layout
        root: Any = array.base
        tensor: Any = tensors.as_torch(array, dtype)
        self._by_address[segment.address + offset] = tensor.untyped_storage()._cdata, weakref.ref(root)
        return tensor

    def find(self, tensor: Any) -> Segment | None:
        """The segment that a tensor lies in; None if it is no loan, or seen through a storage of its own."""
        untyped_storage = getattr(tensor, "untyped_storage", None) if self._by_address else None
        if untyped_storage is None:
            return None
        try:
            storage = untyped_storage()
            address = storage.data_ptr()
        except (NotImplementedError, RuntimeError):  # a sparse tensor has none
            return None
        identity, root = self._by_address.get(address, (0, None))
        # No root any more: the loan is over, and the segment may be lent to numpy by now.
        segment: Segment | None = loan_of(root()) if root is not None and identity == storage._cdata else None
        return segment

    def forget(self, segment: Segment) -> None:
        """The segment is given up."""
        self._by_address.pop(segment.address + PAYLOAD_OFFSET, None)


def layout_of(tensor: Any, segment: Segment) -> Layout | None:
    """How a tensor of a loan lies in its segment; None if its memory cannot be published as it lies."""
    loaned = segment.loaned_layout
    assert loaned is not None
    dtype, array = tensors.to_array(tensor)
    if not array.flags.c_contiguous or not array.dtype.isnative:
        return None
    # (The array of a torch tensor may be a copy: of one that is lazily conjugated, say.)
    offset = array.__array_interface__["data"][0] - segment.address
    end = PAYLOAD_OFFSET + math.prod(loaned[1]) * loaned[0].itemsize
    if not PAYLOAD_OFFSET <= offset <= end - array.nbytes or offset % PAYLOAD_ALIGNMENT_NBYTES:
        return None
    return dtype, array.shape, offset


def forbid_writing(tensor: Any, segment: Segment) -> None:
    """Let no store of the borrower reach the segment any more, through any view of the loan."""
    if isinstance(tensor, np.ndarray):
        if freeze(tensor):
            segment.make_private()
    elif _has_other_tensors(tensor):
        segment.make_private()
    else:
        fd = system.open_file(segment.path)
        try:
            private = system.map_private(fd, len(segment.buffer))
        finally:
            system.close(fd)
        # A page that was not stored into shows the file's, so the segment is lent for as long as this lives too.
        system.keep(private, tensor.untyped_storage())
        tensors.move_torch_storage(tensor, private, PAYLOAD_OFFSET)


def _has_other_tensors(tensor: Any) -> bool:
    """Whether tensors that we cannot reach from this one share its storage."""
    import torch

    count_of = getattr(torch._C, "_storage_Use_Count", None)
    if count_of is None:
        return True  # this torch cannot tell
    storage = tensor.untyped_storage()  # counts itself
    return bool(count_of(storage._cdata) > 2 + (tensor._base is not None))
