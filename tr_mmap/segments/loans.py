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
from .layout import PAYLOAD_OFFSET
from .segment import Segment

__all__ = ["Layout", "Loan", "Loans"]

Layout = tuple[DType, tuple[int, ...], int]  # type, shape, and where in the file the payload begins


def _count_own_references() -> int:
    probe = object()
    return sys.getrefcount(probe)


_OWN_REFERENCES: Final = _count_own_references()  # of a variable and the call: 2, and 1 from Python 3.14 on


class Loan(weakref.ref[memoryview]):
    """One loan: a weak reference to the memoryview that anchors its memory, which is told of its death.

    Attributes:
        segment: where it lies.
        layout: of what was handed out.
        array: what was handed out, if that is a numpy array.
        is_published: it was sent, so nobody here may write to it any more.
    """

    __slots__ = ("array", "is_published", "key", "layout", "segment")
    segment: Segment
    layout: Layout
    array: weakref.ref[np.ndarray[Any, Any]] | None
    is_published: bool
    key: int

    # A weak reference hashes as its referent does, and a memoryview hashes its whole content.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def nbytes(self) -> int:
        dtype, shape, _ = self.layout
        return math.prod(shape) * dtype.itemsize


class Loans:
    """The loans of one pool.

    Attributes:
        by_memory: those that are lent now, by the id of the memoryview that anchors their memory.
        dead: those that have ended, until :meth:`returned`.
    """

    def __init__(self) -> None:
        self.by_memory: dict[int, Loan] = {}
        self._by_address: dict[int, Loan] = {}  # where a torch loan's payload begins, as its storage tells
        self.dead: deque[Loan] = deque()

    def lend(self, segment: Segment, dtype: DType, shape: tuple[int, ...], count: int, framework: str) -> Any:
        """An array or tensor over the segment's payload; the segment is lent until it and all views of it are gone."""
        root = np.frombuffer(segment.buffer, dtype.numpy, count, PAYLOAD_OFFSET)
        # Always a view, so that whatever refers to the root itself is another view of the loan.
        array: np.ndarray[Any, Any] = root.reshape(shape) if len(shape) != 1 else root[:]
        memory: Any = root.base
        loan = Loan(memory, self.dead.append)
        loan.segment = segment
        loan.layout = (dtype, shape, PAYLOAD_OFFSET)
        loan.is_published = False
        loan.key = id(memory)
        self.by_memory[loan.key] = loan
        if framework == "torch":
            loan.array = None
            self._by_address[segment.address + PAYLOAD_OFFSET] = loan
            return tensors.as_torch(array, dtype)
        loan.array = weakref.ref(array)
        return array

    def returned(self) -> Iterator[Segment]:
        """The segments whose loans are gone since the last call."""
        while self.dead:
            loan = self.dead.popleft()
            if self.by_memory.get(loan.key) is loan:  # its id may be another's by now
                del self.by_memory[loan.key]
            if loan.array is None:
                del self._by_address[loan.segment.address + PAYLOAD_OFFSET]
            yield loan.segment

    def segments(self) -> list[Segment]:
        """Those that are lent now."""
        return [loan.segment for loan in list(self.by_memory.values())]  # copied in one step: threads go on

    def find(self, tensor: Any) -> Loan | None:
        """The loan that a tensor lies in, unless it is seen through the other framework: that would stay writable."""
        if isinstance(tensor, np.ndarray):
            memory = tensor.base
            while isinstance(memory, np.ndarray):
                memory = memory.base
            loan = self.by_memory.get(id(memory))
            return loan if loan is not None and loan() is memory else None
        storage = getattr(tensor, "untyped_storage", None)
        return None if storage is None else self._by_address.get(storage().data_ptr())

    @staticmethod
    def layout_of(tensor: Any, loan: Loan) -> Layout | None:
        """How a tensor lies in its loan's segment; None if its memory cannot be published as it lies."""
        dtype, array = tensors.to_array(tensor)
        if not array.flags.c_contiguous or not array.dtype.isnative:
            return None
        if array is tensor and loan.layout[0] is dtype and loan.layout[1] == array.shape:
            return loan.layout  # as long as the loan, so it begins where that does; asking the array is slow
        # (The array of a torch tensor may be a copy: of one that is lazily conjugated, say.)
        offset = array.__array_interface__["data"][0] - loan.segment.address
        is_inside = PAYLOAD_OFFSET <= offset <= PAYLOAD_OFFSET + loan.nbytes - array.nbytes
        if not is_inside or offset % tsr_header.PAYLOAD_ALIGNMENT:
            return None
        return dtype, array.shape, offset

    def forbid_writing(self, tensor: Any, loan: Loan) -> None:
        """Let no store of the lender reach the segment any more, through whatever view of the loan."""
        segment = loan.segment
        if isinstance(tensor, np.ndarray):
            _forbid_numpy(tensor, loan)
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


def _forbid_numpy(tensor: np.ndarray[Any, Any], loan: Loan) -> None:
    lent = None if loan.array is None else loan.array()
    known = 1  # references to the root: the chain of bases that ends there, and the array that was handed out
    if lent is not None and lent is not tensor:
        lent.flags.writeable = False
        known = 2
    array = tensor
    base = array.base
    while isinstance(base, np.ndarray):
        array.flags.writeable = False
        if base is lent:
            known = 1
        array = base
        base = array.base
    array.flags.writeable = False
    del base
    if sys.getrefcount(array) - _OWN_REFERENCES > known:
        loan.segment.close_off()


def _has_other_tensors(tensor: Any) -> bool:
    """Whether tensors that we cannot reach from this one share its storage."""
    import torch

    count_of = getattr(torch._C, "_storage_Use_Count", None)
    if count_of is None:
        return True  # nobody knows
    storage = tensor.untyped_storage()  # counts itself
    return bool(count_of(storage._cdata) > 2 + (tensor._base is not None))
