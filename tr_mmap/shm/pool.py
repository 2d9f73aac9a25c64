"""The owner's side: a pool of segments that are filled, published and filled again. Never sends a message.

Not safe for threads by itself; its session or transfer holds a lock. Only the fast paths, ``quick_publish`` and
``quick_loan``, need no lock: each is one step, and does nothing while a thread is on the slow path. The docstring of
this room has the protocol.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..native import drain, finished, loan_of
from ..tsr import header as tsr_header
from ..tsr import tensors
from ..tsr.devices import device_of
from ..tsr.framework_names import check_framework_name
from ..wire.header import (
    DIMS_OFFSET,
    LAYOUT_WORD,
    LEASE_FREE,
    LIVE_OFFSET,
    RESERVED_OFFSET,
    SEQ_COPY_OFFSET,
    V2_HEADER_NBYTES,
)
from ..wire.segments import PRIVATE_COPY_NBYTES
from .apart import CopiedTensor, StoreApart
from .loans import describe, forbid_writing, layout_of
from .segment import HeaderLayout, Layout, Segment
from .stats import PoolStats

__all__ = ["CopiedTensor", "Segment", "SegmentPool"]


class SegmentPool(StoreApart):
    """Makes, fills and recycles the segments of one side of a session.

    Args:
        directory: the session directory.
        prefix: names of files are ``<prefix>_<number>.tsr``.
        budget_nbytes: most payload capacity to hold at once; None for no limit but the file system's.
        block_ms: at the budget, how many milliseconds to wait for the reader to release views before OutOfSpace.
        checksum: whether to store each payload's CRC-32.
        has_lines, make_directory: as of :class:`SegmentStore`.

    Attributes:
        is_reader_gone, pause: as of :class:`SegmentStore`.
    """

    def __init__(
        self,
        directory: str,
        prefix: str,
        *,
        budget_nbytes: int | None = None,
        block_ms: float = 0.0,
        checksum: bool = False,
        has_lines: bool = False,
        make_directory: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(directory, prefix, budget_nbytes, block_ms, has_lines, make_directory)
        self._has_checksum = checksum

    # -- publishing -----------------------------------------------------------------------------------------------

    def publish(self, tensor: Any, deadline_s: float | None = None, *, may_share: bool = False) -> Segment:
        """Put a tensor into a segment and stamp it.

        A loan is published without a copy; so is a view of the whole loan, or of a contiguous part that is aligned to
        256 bytes. Any other tensor costs one copy. Either the tensor is published whole, or an error is raised and
        nothing has changed.

        Args:
            tensor: numpy array or scalar, or torch tensor.
            deadline_s: when to stop waiting for room, by ``time.monotonic``; None for the pool's own time only.
            may_share: whether the segment may be a slot of a slab, whose file no tag can name. Thousands of small
                tensors need that.

        Returns:
            The segment, with one hold for the caller, until ``segment.release()``.

        Raises:
            UnsupportedTensor: not a tensor, or of a kind that TSR cannot hold.
            OutOfSpace: no room.
            SystemLimit: no mapping or descriptor can be had.
            SessionNotStarted: this is a child of the pool's process.
        """
        segment: Segment | None = self.quick_publish(tensor, None, may_share)
        if segment is not None:
            return segment
        self.check_own()
        # Keep the former value, because a signal handler may come here in the middle of the slow path.
        was_running, self.is_slow_path_running = self.is_slow_path_running, True
        try:
            if finished or self.to_retire:
                self.collect()
            return self._publish_loan(tensor) or self._publish_copy(tensor, deadline_s, may_share)
        finally:
            self.is_slow_path_running = was_running

    def _publish_loan(self, tensor: Any) -> Segment | None:
        """Publish a loan without a copy; None if the tensor is no loan of ours, or must be copied."""
        is_torch = not isinstance(tensor, np.ndarray)
        segment: Segment | None = self._torch_loans.find(tensor) if is_torch else loan_of(tensor)
        if segment is None or segment.pool_token is not self.pool_token:
            return None
        if is_torch and tensor.nbytes <= PRIVATE_COPY_NBYTES:
            return None  # to copy it takes less time than to make the borrower's memory copy-on-write
        layout = layout_of(tensor, segment)
        if layout is None:
            return None
        if segment.is_private:
            return None  # the borrower may have changed its private copy since, whether or not it was published
        if not segment.is_published:
            forbid_writing(tensor, segment)  # first, because it may fail
            self._stamp(segment, layout)
            segment.is_published = True
        elif segment.header_layout != layout:
            return None  # a reader may use the present header
        segment.holds += 1
        return segment

    def _publish_copy(self, tensor: Any, deadline_s: float | None, may_share: bool) -> Segment:
        dtype, array = tensors.to_array(tensor)
        segment, is_filled = self._take(array.nbytes, array, may_share=may_share, deadline_s=deadline_s)
        segment.holds = 1
        try:
            self.check_own()  # a signal handler may have forked meanwhile, and the parent fills the segment
            if not is_filled:
                tensors.copy_into(segment.buffer, segment.payload_offset, array)
            layout = dtype, array.shape, segment.payload_offset
            if segment.is_populated and segment.layout != layout:
                segment.set_layout(layout, dtype.numpy)
            self._stamp(segment, layout, device_of(tensor))
        except BaseException:
            segment.release()
            raise
        self.copied_nbytes += array.nbytes
        return segment

    def publish_copied(self, copied: CopiedTensor) -> Segment:
        """Publish what :meth:`copy_apart` has copied, as :meth:`publish` does.

        Raises:
            SessionNotStarted: this is a child of the pool's process, or the pool was closed.
        """
        self.check_open()
        segment = copied.segment
        was_running, self.is_slow_path_running = self.is_slow_path_running, True
        try:
            segment.holds += 1
            try:
                self._stamp(segment, copied.layout, copied.device)
            except BaseException:
                segment.release()
                raise
            if not segment.is_populated:
                segment.clear_layout()  # so that no fast path takes it before it is
            self.copied_nbytes += copied.nbytes
            return segment
        finally:
            self.is_slow_path_running = was_running

    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        """A loan: an array or tensor of undefined content that lives in a segment.

        Args:
            shape: sizes in elements, outermost first.
            dtype: a name like ``"float32"``, or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``.

        Raises:
            UnsupportedTensor: no such dtype, or a shape that TSR cannot hold.
            BadMessage: no such framework.
            OutOfSpace: no room.
            SystemLimit: no mapping or descriptor can be had.
            SessionNotStarted: this is a child of the pool's process.
        """
        loaned = self.quick_loan(shape, dtype, framework)
        if loaned is not None:
            return loaned
        self.check_own()
        # Keep the former value, because a signal handler may come here in the middle of the slow path.
        was_running, self.is_slow_path_running = self.is_slow_path_running, True
        try:
            return self._loan(shape, dtype, framework)
        finally:
            self.is_slow_path_running = was_running

    def release_free(self) -> None:
        """Give up the memory that is kept for later tensors, because the peer needs room."""
        if self.is_foreign:
            return
        # Keep the former value, because a signal handler may come here in the middle of the slow path.
        was_running, self.is_slow_path_running = self.is_slow_path_running, True
        try:
            self.collect()
            self._retire_free()
        finally:
            self.is_slow_path_running = was_running

    def _loan(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        if finished or self.to_retire:
            self.collect()
        layout, nbytes = describe(shape, dtype)
        check_framework_name(framework)
        if not nbytes:
            return tensors.from_buffer(bytearray(), layout[0], layout[1], 0, framework)
        segment, _ = self._take(nbytes)
        segment.holds = 1  # for this call; the loan is another hold
        try:
            segment.set_layout(layout, layout[0].numpy)
            segment.requested_dtype = dtype
            segment.is_header_current = segment.header_layout == layout and not self._has_checksum
            return segment.loan() if framework == "numpy" else self._torch_loans.loan(segment)
        finally:
            segment.release()

    def _stamp(self, segment: Segment, layout: Layout, device: str = "") -> None:
        self.check_own()  # a signal handler may have forked meanwhile
        seq = self.next_seq()
        described: HeaderLayout = (*layout, device) if device else layout
        if segment.header_layout != described or self._has_checksum:
            segment.header_layout = None
            segment.is_header_current = False
            dtype, shape, offset = layout
            crc: int | None = None
            if self._has_checksum:
                nbytes = math.prod(shape) * dtype.itemsize
                crc = zlib.crc32(segment.buffer[offset : offset + nbytes])
            raw = tsr_header.encode_v2(
                dtype,
                shape,
                seq=seq,
                payload_offset=segment.file_offset + offset,
                created_ns=time.time_ns(),
                payload_checksum=crc,
                is_segment=True,
                device=device,
            )
            segment.buffer[:LIVE_OFFSET] = raw[:LIVE_OFFSET]
            segment.buffer[RESERVED_OFFSET:SEQ_COPY_OFFSET] = raw[RESERVED_OFFSET:SEQ_COPY_OFFSET]
            segment.buffer[DIMS_OFFSET:V2_HEADER_NBYTES] = raw[DIMS_OFFSET:]
            segment.words[LAYOUT_WORD] = seq
            segment.header_layout = described
        # With a device it is not: no fast path takes the segment before its header is written again.
        segment.is_header_current = segment.layout == described and not self._has_checksum
        segment.seq = seq
        if not self.is_foreign:
            segment.stamp(seq)

    def stats(self) -> PoolStats:
        """What the pool holds now."""
        drain()
        lists = (self.viewed, *self.free.values(), *self._awaiting.values())
        unheld = [[*each] for each in lists]  # copies, each made in one step, because other threads go on
        leased = [each.capacity for each in list(self._segments.values()) if each.lease() != LEASE_FREE]
        return PoolStats(
            segments=len(self._segments),
            nbytes=self._nbytes,
            free_nbytes=sum(segment.capacity for each in unheld for segment in each),
            published=self.seq,
            copied_nbytes=self.copied_nbytes,
            created=self._created,
            leased=len(leased),
            leased_nbytes=sum(leased),
        )
