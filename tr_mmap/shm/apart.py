"""Copies large tensors into segments while other threads use the pool. Publishes none.

The pool's lock is held only for the steps that change its lists. The copy itself, and the making of a file, need none:
a loan keeps the segment meanwhile, so whatever interrupts them, the segment is free again when the loan is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..base.identifiers import tensor_file
from ..errors import OutOfSpace, SessionNotStarted, SystemLimit
from ..native import finished, loan_of
from ..tsr import tensors
from ..tsr.devices import device_of
from ..wire.segments import APART_NBYTES, PAYLOAD_OFFSET
from .repair import RepairableStore
from .segment import Layout, Segment, make_segment
from .size_classes import class_nbytes

__all__ = ["CopiedTensor", "StoreApart"]

Run = Callable[..., Any]  # calls a function with arguments under the pool's lock


class CopiedTensor(NamedTuple):
    """A tensor in a segment that is not published yet.

    Attributes:
        segment: where it is.
        layout: how it lies there.
        nbytes: of the payload.
        loan: keeps the segment.
        device: where the tensor was, as :func:`device_of` says it.
    """

    segment: Segment
    layout: Layout
    nbytes: int
    loan: Any
    device: str = ""


class _Making:
    """The mark of whoever makes a file: an interrupt drops it."""

    __slots__ = ("__weakref__",)


class StoreApart(RepairableStore):
    """A store that can copy apart; the arguments are those of :class:`SegmentStore`."""

    def is_copied_apart(self, tensor: Any) -> bool:
        """Whether a tensor is so large that it is copied without the lock, and none of our loans."""
        try:
            nbytes = getattr(tensor, "nbytes", 0)
        except Exception:  # of a sparse tensor, say; whoever publishes it says what it is
            return False
        if not isinstance(nbytes, int) or nbytes < APART_NBYTES:
            return False
        loaned = self._torch_loans.find(tensor) if hasattr(tensor, "untyped_storage") else loan_of(tensor)
        return loaned is None or loaned.pool_token is not self.pool_token

    def copy_apart(self, tensor: Any, run: Run) -> CopiedTensor:
        """Copy a tensor into a segment, without the lock.

        Args:
            tensor: of any kind that ``publish`` takes.
            run: calls a function with arguments under the pool's lock.

        Raises:
            UnsupportedTensor, OutOfSpace, SystemLimit, SessionNotStarted: as of ``publish``.
        """
        dtype, array = tensors.to_array(tensor)
        layout: Layout = (dtype, array.shape, PAYLOAD_OFFSET)
        copied: CopiedTensor | None = run(self._loan_free, layout, array.nbytes)
        is_filled = False
        if copied is None:
            name, making = tensor_file(self._next_stem()), _Making()
            self._in_making[name] = making
            segment, is_filled = self._make_apart(name, array, run)
            copied = run(self._adopt_apart, segment, layout, array.nbytes)
            assert copied is not None
        if not is_filled:
            segment = copied.segment
            if not segment.is_populated or segment.is_private:
                segment.make_fillable()
                segment.set_layout(layout, dtype.numpy)
            self.check_own()  # a signal handler may have forked meanwhile, and the parent fills the segment
            tensors.copy_into(segment.buffer, segment.payload_offset, array)
        device = device_of(tensor)
        return copied._replace(device=device) if device else copied

    def _make_apart(self, name: str, array: Any, run: Run) -> tuple[Segment, bool]:
        capacity = class_nbytes(array.nbytes)
        try:
            return make_segment(self._directory, name, capacity, array, self._members)
        except (OutOfSpace, SystemLimit):
            if not run(self._retire_free):
                raise
            return make_segment(self._directory, name, capacity, array, self._members)

    def _loan_free(self, layout: Layout, nbytes: int) -> CopiedTensor | None:
        """A loan of a free segment; None if one has to be made."""
        self.check_open()
        # Keep the former value, because a signal handler may come here in the middle of the slow path.
        was_running, self.is_slow_path_running = self.is_slow_path_running, True
        try:
            if finished or self.to_retire:
                self.collect()
            capacity = class_nbytes(nbytes)
            self.takes += 1
            segment = self._take_free(capacity)
            if segment is not None:
                return self._loan_apart(segment, layout, nbytes)
            self._prepare_to_make(capacity, False)
            return None
        finally:
            self.is_slow_path_running = was_running

    def _adopt_apart(self, segment: Segment, layout: Layout, nbytes: int) -> CopiedTensor:
        self.check_open()
        self._adopt([segment])
        return self._loan_apart(segment, layout, nbytes)

    def _loan_apart(self, segment: Segment, layout: Layout, nbytes: int) -> CopiedTensor:
        segment.last_take = self.takes
        segment.holds = 1  # for this call; the loan is another hold
        try:
            segment.set_layout(layout, layout[0].numpy)
            return CopiedTensor(segment, layout, nbytes, segment.loan())
        finally:
            segment.release()

    def check_open(self) -> None:
        """Raise SessionNotStarted if the pool is the process's that this one was forked from, or is closed."""
        self.check_own()
        if self._is_closed:
            raise SessionNotStarted("the session was closed while this sent a tensor")
