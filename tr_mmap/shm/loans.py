"""Loans: arrays and tensors that live in segments, so that publishing them copies nothing. Never publishes one.

After publishing, no store of the borrower may reach the reader. Arrays that we know become read-only. A torch tensor
cannot, nor can views that we do not know: under these, a copy-on-write mapping of the file takes the place of the
shared one, which waits elsewhere with its pages until the loan is over. Nobody notices anything of that, torch and
autograd included.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Set
from functools import lru_cache
from operator import index
from typing import Any

import numpy as np

from ..errors import UnsupportedTensor
from ..native import freeze, loan_of
from ..tsr import dtypes, tensors
from ..tsr.header import MAX_NBYTES
from ..wire.header import MAX_NDIM, PAYLOAD_ALIGNMENT_NBYTES
from ..wire.segments import PAYLOAD_OFFSET, PRIVATE_COPY_NBYTES
from .segment import Layout, Segment

__all__ = ["TorchLoans", "describe", "forbid_writing", "layout_of", "sizes_of"]


def describe(shape: int | tuple[int, ...], dtype: Any) -> tuple[Layout, int]:
    """The layout of a loan, and its payload's size in bytes.

    Args:
        shape: sizes in elements, outermost first.
        dtype: a name, or a numpy or torch dtype.

    Raises:
        UnsupportedTensor: no such dtype, or a shape that TSR cannot hold.
    """
    sizes = sizes_of(shape)
    try:
        return _describe(sizes, dtype)
    except TypeError:  # the cache needs a hash of the dtype; without the cache, a wrong dtype gets its own error
        return _describe.__wrapped__(sizes, dtype)


def sizes_of(shape: Any) -> tuple[int, ...]:
    """A shape as a tuple of sizes. Takes what numpy takes: a number, or a tuple, list or array of numbers.

    Raises:
        UnsupportedTensor: it is none of these.
    """
    if not isinstance(shape, str | bytes | bytearray | Set | Mapping):  # whose items are no sizes, or have no order
        try:
            return tuple(map(_size, shape))
        except TypeError:  # a number, also one in an array without dimensions
            try:
                return (_size(shape),)
            except TypeError:
                pass
    raise UnsupportedTensor(f"{shape!r:.80} is no shape; give a number or a tuple of numbers")


def _size(given: Any) -> int:
    if isinstance(given, bool):  # which counts as a number, but is a mistake here
        raise TypeError
    return index(given)


@lru_cache(64)  # most programs use the same few loans again and again
def _describe(shape: tuple[int, ...], dtype: Any) -> tuple[Layout, int]:
    known = dtypes.resolve(dtype)
    if len(shape) > MAX_NDIM or (shape and min(shape) < 0):
        raise UnsupportedTensor(f"{shape} is no shape of at most {MAX_NDIM} sizes, none negative")
    # numpy refuses an empty array too, if its other sizes multiply beyond what it can address.
    if 0 in shape and math.prod(size for size in shape if size) * known.itemsize > MAX_NBYTES:
        raise UnsupportedTensor(f"shape {shape} of {known.name} is beyond 2**63-1 bytes")
    return (known, shape, PAYLOAD_OFFSET), math.prod(shape) * known.itemsize


class TorchLoans:
    """The loans of one pool that are torch tensors. The address of its storage identifies each.

    Args:
        by_address: where to note them: by the address of the data, the storage object's own address, and a weak
            reference to the array that the storage keeps alive.
    """

    def __init__(self, by_address: dict[int, tuple[int, weakref.ref[np.ndarray[Any, Any]]]]) -> None:
        self._by_address = by_address

    def loan(self, segment: Segment) -> Any:
        """A tensor over the segment, of the layout that was set."""
        array = segment.loan()
        assert segment.loaned_layout is not None
        dtype, _, offset = segment.loaned_layout
        root: Any = array.base
        tensor: Any = tensors.as_torch(array, dtype)
        if array.nbytes > PRIVATE_COPY_NBYTES:  # smaller ones are copied as any other tensor
            segment.is_torch_loan = True
            self._by_address[segment.address + offset] = tensor.untyped_storage()._cdata, weakref.ref(root)
        return tensor

    def find(self, tensor: Any) -> Segment | None:
        """The segment that a tensor lies in; None if it is no loan, or has another storage object over the memory."""
        untyped_storage = getattr(tensor, "untyped_storage", None) if self._by_address else None
        if untyped_storage is None:
            return None
        try:
            storage = untyped_storage()
            address = storage.data_ptr()
        except Exception:  # a sparse tensor has none; a lazy parameter or a subclass may raise anything
            return None
        identity, root = self._by_address.get(address, (0, None))
        # If the root is gone, the loan is over, and the segment may be on loan as a numpy array by now.
        segment: Segment | None = loan_of(root()) if root is not None and identity == storage._cdata else None
        return segment

    def forget(self, segment: Segment) -> None:
        """Forget a segment that is retired."""
        self._by_address.pop(segment.address + PAYLOAD_OFFSET, None)


def layout_of(tensor: Any, segment: Segment) -> Layout | None:
    """The layout of a tensor of a loan in its segment; None if it cannot be published without a copy."""
    loaned = segment.loaned_layout
    assert loaned is not None
    dtype, array = tensors.to_array(tensor)
    if not array.flags.c_contiguous or not array.dtype.isnative:
        return None
    # (The array of a torch tensor may be a copy, for example of one that is lazily conjugated.)
    offset = array.__array_interface__["data"][0] - segment.address
    end = PAYLOAD_OFFSET + math.prod(loaned[1]) * loaned[0].itemsize
    if not PAYLOAD_OFFSET <= offset <= end - array.nbytes or offset % PAYLOAD_ALIGNMENT_NBYTES:
        return None
    return dtype, array.shape, offset


def forbid_writing(tensor: Any, segment: Segment) -> None:
    """From now on no store of the borrower reaches the segment, through any view of the loan."""
    if not isinstance(tensor, np.ndarray) or freeze(tensor):
        segment.make_private()
