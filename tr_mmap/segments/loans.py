"""Loans: arrays and tensors that live in segments, so that publishing them copies nothing.

After publishing, nothing that the lender still has may change what the reader sees. Arrays that we know of become
read-only, a torch tensor goes on over a copy-on-write mapping; if the lender has other views of the memory, the pages
themselves become copy-on-write, under all of them at once. That costs a page fault for every page when the segment is
used again, so it is done only then.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from .. import system
from ..dtypes import DType
from ..tsr import header as tsr_header
from ..tsr import tensors
from .anchors import Anchor, anchor_of
from .layout import PAYLOAD_OFFSET
from .segment import Segment

__all__ = ["Layout", "Loans"]

Layout = tuple[DType, tuple[int, ...], int]  # type, shape, and where in the file the payload begins

_OWN_REFERENCES: Final = 2  # sys.getrefcount counts its argument and the variable that holds it


class Loans:
    """The loans of one pool."""

    def __init__(self) -> None:
        self._by_memory: dict[int, Anchor[Segment]] = {}  # id of the memoryview that anchors a loan's memory
        self._by_address: dict[int, Segment] = {}  # where a torch loan's payload begins, as its storage tells
        self._lent: dict[int, weakref.ref[np.ndarray[Any, Any]]] = {}  # what was handed out, by the same id
        self.dead: deque[Anchor[Segment]] = deque()

    def __len__(self) -> int:
        return len(self._by_memory)

    def lend(self, segment: Segment, dtype: DType, shape: tuple[int, ...], framework: str) -> Any:
        """An array or tensor over the segment's payload; the segment is lent until it and all views of it are gone."""
        root = np.frombuffer(segment.buffer, dtype.numpy, math.prod(shape), PAYLOAD_OFFSET)
        # Always a view, so that whatever refers to the root itself is another view of the loan.
        array: np.ndarray[Any, Any] = root.reshape(shape) if len(shape) != 1 else root[:]
        memory = anchor_of(root)
        segment.loan_key = id(memory)
        segment.loan_nbytes = root.nbytes
        segment.is_loaned = True
        self._by_memory[segment.loan_key] = Anchor.watch(memory, segment, self.dead)
        if framework == "torch":
            self._by_address[segment.address + PAYLOAD_OFFSET] = segment
            return tensors.as_torch(array, dtype)
        self._lent[segment.loan_key] = weakref.ref(array)
        return array

    def returned(self) -> Iterator[Segment]:
        """The segments whose loans are gone since the last call."""
        while self.dead:
            segment = self.dead.popleft().holder
            del self._by_memory[segment.loan_key]
            self._lent.pop(segment.loan_key, None)
            self._by_address.pop(segment.address + PAYLOAD_OFFSET, None)
            segment.is_loaned = False
            yield segment

    def segments(self) -> list[Segment]:
        """Those that are lent now."""
        return [anchor.holder for anchor in list(self._by_memory.values())]  # copied in one step: threads go on

    def segment_of(self, tensor: Any) -> Segment | None:
        """The segment of a loan, unless it is seen through the other framework: then what was lent stays writable."""
        if isinstance(tensor, np.ndarray):
            memory = anchor_of(tensor)
            anchor = self._by_memory.get(id(memory))
            return anchor.holder if anchor is not None and anchor() is memory else None
        storage = getattr(tensor, "untyped_storage", None)
        return None if storage is None else self._by_address.get(storage().data_ptr())

    @staticmethod
    def layout_of(tensor: Any, segment: Segment) -> Layout | None:
        """How a loan lies in its segment; None if its memory cannot be published as it lies."""
        dtype, array = tensors.to_array(tensor)
        if not array.flags.c_contiguous or not array.dtype.isnative:
            return None
        # What is contiguous and as long as the loan begins where it does; asking the array is slow. (That of a torch
        # tensor may be a copy: of one that is lazily conjugated, say.)
        is_whole = array is tensor and array.nbytes == segment.loan_nbytes
        offset = PAYLOAD_OFFSET if is_whole else array.__array_interface__["data"][0] - segment.address
        is_inside = PAYLOAD_OFFSET <= offset <= PAYLOAD_OFFSET + segment.loan_nbytes - array.nbytes
        if not is_inside or offset % tsr_header.PAYLOAD_ALIGNMENT:
            return None
        return dtype, array.shape, offset

    def forbid_writing(self, tensor: Any, segment: Segment) -> None:
        """Let no store of the lender reach the segment any more, through whatever view of the loan."""
        if isinstance(tensor, np.ndarray):
            self._forbid_numpy(tensor, segment)
        elif _has_other_tensors(tensor):
            segment.close_off()
        else:
            fd = system.open_file(segment.path)
            try:
                private = system.map_private(fd, len(segment.buffer))
            finally:
                system.close(fd)
            # A page that was not stored into shows the file's, so the segment is lent for as long as this lives too.
            vars(private.obj)["lent"] = tensor.untyped_storage()
            tensors.move_torch_storage(tensor, private, PAYLOAD_OFFSET)

    def _forbid_numpy(self, tensor: np.ndarray[Any, Any], segment: Segment) -> None:
        ref = self._lent.get(segment.loan_key)
        lent = None if ref is None else ref()
        known = 0 if lent is None or lent is tensor else 1
        if lent is not None:
            lent.flags.writeable = False
        array = tensor
        while isinstance(array.base, np.ndarray):
            array.flags.writeable = False
            known += not isinstance(array.base.base, np.ndarray)
            array = array.base
        array.flags.writeable = False
        if sys.getrefcount(array) - _OWN_REFERENCES > known:
            segment.close_off()


def _has_other_tensors(tensor: Any) -> bool:
    """Whether tensors that we cannot reach from this one share its storage."""
    import torch

    count_of = getattr(torch._C, "_storage_Use_Count", None)
    if count_of is None:
        return True  # nobody knows
    storage = tensor.untyped_storage()  # counts itself
    return bool(count_of(storage._cdata) > 2 + (tensor._base is not None))
