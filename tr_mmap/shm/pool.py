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
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base import system
from ..base.fork_safety import ForkAware
from ..base.identifiers import tensor_file
from ..errors import OutOfSpace, SessionNotStarted
from ..native import FreeLists, drain, finished, loan_of
from ..tsr import header as tsr_header
from ..tsr import tensors
from ..wire.header import DIMS_OFFSET, LAYOUT_WORD, LEASE_FREE, LEASE_PINNED, LEASE_WORD, LIVE_OFFSET, V2_HEADER_NBYTES
from ..wire.segments import IDLE_TAKES, PAYLOAD_OFFSET
from .loans import TorchLoans, describe, forbid_writing, layout_of
from .segment import Layout, Segment, make_segment
from .size_classes import class_nbytes

__all__ = ["PoolStats", "Segment", "SegmentPool"]


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool holds.

    Attributes:
        segments: how many files there are.
        nbytes: their payload capacity together, in bytes.
        free_nbytes: capacity of the segments that have no hold on this side (the peer may have views of some).
        published: tensors published since the start.
        copied_nbytes: bytes copied into segments since the start; a loan adds none.
        created: segments made since the start; all other publications used a segment again.
    """

    segments: int
    nbytes: int
    free_nbytes: int
    published: int
    copied_nbytes: int
    created: int


class SegmentPool(FreeLists, ForkAware):
    """Makes, fills and recycles the segments of one side of a session.

    Args:
        directory: the session directory.
        prefix: names are ``<prefix>_<number>.tsr``.
        budget_nbytes: most payload capacity to hold at once; None for no limit but the file system's.
        block_ms: at the budget, how many milliseconds to wait for the reader to release views before OutOfSpace.
        checksum: whether to store each payload's CRC-32.

    Attributes:
        is_reader_gone: returns whether the reader has ended, so that it will release nothing any more.
    """

    def __init__(
        self,
        directory: str,
        prefix: str,
        *,
        budget_nbytes: int | None = None,
        block_ms: float = 0.0,
        checksum: bool = False,
    ) -> None:
        FreeLists.__init__(self)
        ForkAware.__init__(self)
        self._directory = directory
        self._prefix = prefix
        self._budget_nbytes = budget_nbytes
        self._block_ms = block_ms
        self._has_checksum = checksum
        self.is_reader_gone: Callable[[], bool] = bool  # False, until there is a reader
        self._segments: dict[str, Segment] = {}
        self._torch_loans = TorchLoans()
        self._nbytes = 0
        self._created = 0
        self._number = 0  # of the next segment's name

    # -- publishing -----------------------------------------------------------------------------------------------

    pause: Callable[[float], None] = staticmethod(time.sleep)

    def reconcile(self, holds: Any) -> None:
        for segment in list(self._segments.values()):
            wanted = holds.get(segment, 0) + (segment.loaned_layout is not None)
            segment.holds = wanted
            if not wanted and segment.free_list is not None and segment not in segment.free_list:
                segment.free_list.append(segment)

    def publish(self, tensor: Any, deadline_s: float | None = None) -> Segment:
        """Put a tensor into a segment and stamp it.

        A loan is published without a copy; so is a view of the whole loan, or of a contiguous part that is aligned to
        256 bytes. Any other tensor costs one copy. Either the tensor is published whole, or an error is raised and
        nothing has changed.

        Args:
            tensor: numpy array or scalar, or torch tensor.

        Returns:
            The segment, with one hold for the caller, until ``segment.release()``.

        Raises:
            UnsupportedTensor: not a tensor, or of a kind that TSR cannot hold.
            OutOfSpace: no room.
            SessionNotStarted: this is a child of the pool's process.
        """
        segment: Segment | None = self.quick_publish(tensor)
        if segment is not None:
            return segment
        self._check_own()
        # Keep the former value, because a signal handler may come here in the middle of the slow path.
        was_running, self.is_slow_path_running = self.is_slow_path_running, True
        try:
            if finished or self.to_retire:
                self.collect()
            return self._publish_loan(tensor) or self._publish_copy(tensor)
        finally:
            self.is_slow_path_running = was_running

    def _publish_loan(self, tensor: Any) -> Segment | None:
        """Publish a loan without a copy; None if the tensor is no loan of ours, or must be copied."""
        segment: Segment | None = loan_of(tensor) if isinstance(tensor, np.ndarray) else self._torch_loans.find(tensor)
        if segment is None or segment.pool_token is not self.pool_token:
            return None
        layout = layout_of(tensor, segment)
        if layout is None:
            return None
        if not segment.is_published:
            forbid_writing(tensor, segment)  # first, because it may fail
            self._stamp(segment, layout)
            segment.is_published = True
        elif segment.is_private or segment.header_layout != layout:
            return None  # the borrower may have changed its private copy since; or a reader may use the present header
        segment.holds += 1
        return segment

    def _publish_copy(self, tensor: Any) -> Segment:
        dtype, array = tensors.to_array(tensor)
        segment, is_filled = self._take(array.nbytes, array)
        segment.holds = 1
        try:
            if not is_filled:
                tensors.copy_into(segment.buffer, PAYLOAD_OFFSET, array)
            layout = dtype, array.shape, PAYLOAD_OFFSET
            if segment.is_populated and segment.layout != layout:
                segment.set_layout(layout, dtype.numpy)
            self._stamp(segment, layout)
        except BaseException:
            segment.release()
            raise
        self.copied_nbytes += array.nbytes
        return segment

    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        """A loan: an array or tensor of undefined content that lives in a segment.

        Args:
            shape: sizes in elements, outermost first.
            dtype: a name like ``"float32"``, or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``.

        Raises:
            UnsupportedTensor: no such dtype or framework, or a shape that TSR cannot hold.
            OutOfSpace: no room.
            SessionNotStarted: this is a child of the pool's process.
        """
        if framework == "numpy":
            array = self.quick_loan(shape, dtype)
            if array is not None:
                return array
        self._check_own()
        # Keep the former value, because a signal handler may come here in the middle of the slow path.
        was_running, self.is_slow_path_running = self.is_slow_path_running, True
        try:
            return self._loan(shape, dtype, framework)
        finally:
            self.is_slow_path_running = was_running

    def _check_own(self) -> None:
        if self.is_foreign:
            raise SessionNotStarted(
                "the segments are those of the process that this one was forked from; it fills them"
            )

    def _loan(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        if finished or self.to_retire:
            self.collect()
        layout, nbytes = describe(shape, dtype)
        tensors.check_framework(framework)
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

    def collect(self) -> None:
        """Release views and loans that have ended, and retire segments that must not be filled again."""
        drain()
        while self.to_retire:
            segment: Segment = self.to_retire.pop()
            if not self.is_foreign and segment.name in self._segments:
                self._retire(segment)

    def _stamp(self, segment: Segment, layout: Layout) -> None:
        seq = self.next_seq()
        if segment.header_layout != layout or self._has_checksum:
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
                payload_offset=offset,
                created_ns=time.time_ns(),
                payload_checksum=crc,
                is_segment=True,
            )
            segment.buffer[:LIVE_OFFSET] = raw[:LIVE_OFFSET]
            segment.buffer[DIMS_OFFSET:V2_HEADER_NBYTES] = raw[DIMS_OFFSET:]
            segment.words[LAYOUT_WORD] = seq
            segment.header_layout = layout
        segment.is_header_current = segment.layout == layout and not self._has_checksum
        segment.seq = seq
        segment.stamp(seq)

    # -- segments -------------------------------------------------------------------------------------------------

    def _take(self, nbytes: int, source: np.ndarray[Any, Any] | None = None) -> tuple[Segment, bool]:
        """A segment without readers, taken off its free list; and whether it holds ``source`` already."""
        capacity = class_nbytes(nbytes)
        self.takes += 1
        is_filled = False
        segment = self._take_free(capacity)
        if segment is None:
            segment, is_filled = self._create(capacity, source)
        if not is_filled and (not segment.is_populated or segment.is_private):
            try:
                segment.make_fillable()
            except BaseException:
                self._retire(segment)
                raise
        segment.last_take = self.takes
        return segment, is_filled

    def _take_free(self, capacity: int) -> Segment | None:
        free = self.free.get(capacity)
        if not free:
            return None
        for index in range(len(free) - 1, -1, -1):
            segment: Segment = free[index]
            lease = segment.claim()
            if lease == LEASE_FREE:
                del free[index]
                return segment
            if lease == LEASE_PINNED:
                del free[index]
                self._retire(segment)
        return None

    def _create(self, capacity: int, source: np.ndarray[Any, Any] | None) -> tuple[Segment, bool]:
        self._trim(capacity)
        if self._budget_nbytes is not None and self._nbytes + capacity > self._budget_nbytes:
            segment = self._wait_for_room(capacity, self._budget_nbytes)
            if segment is not None:
                return segment, False
        try:
            return self._make(capacity, source)
        except OutOfSpace:
            if not self._retire_free():
                raise
            return self._make(capacity, source)

    def _make(self, capacity: int, source: np.ndarray[Any, Any] | None) -> tuple[Segment, bool]:
        name = tensor_file(f"{self._prefix}_{self._number}")
        self._number += 1  # even if the next call fails: no name is used twice
        segment, is_filled = make_segment(self._directory, name, capacity, source)
        segment.pool_token = self.pool_token
        segment.free_list = self.free.setdefault(capacity, [])
        self._created += 1
        self._segments[name] = segment
        self._nbytes += capacity
        return segment, is_filled

    def _wait_for_room(self, capacity: int, budget_nbytes: int) -> Segment | None:
        """At the budget: retire what is free, else wait for the reader.

        Returns:
            A segment of that capacity; None if there is room now to make one.
        """
        deadline_s = time.monotonic() + self._block_ms / 1000
        while True:
            self._retire_free()
            if self._nbytes + capacity <= budget_nbytes:
                return None
            if time.monotonic() >= deadline_s or self.is_reader_gone():
                raise OutOfSpace(
                    f"a segment of {capacity} bytes would exceed the pool's budget of {budget_nbytes}; "
                    f"{self._nbytes} are in use: drop tensors or views, or raise budget_nbytes",
                    needed_nbytes=capacity,
                    free_nbytes=max(0, budget_nbytes - self._nbytes),
                )
            self.pause(0.001)
            self.collect()
            segment = self._take_free(capacity)
            if segment is not None:
                return segment

    def _trim(self, wanted_capacity: int) -> None:
        """Retire free segments of sizes that no tensor has had for long."""
        oldest = self.takes - IDLE_TAKES
        for capacity, free in self.free.items():
            if capacity != wanted_capacity:
                for segment in [each for each in free if each.last_take < oldest and not each.is_viewed]:
                    free.remove(segment)
                    self._retire(segment)

    def _retire_free(self) -> bool:
        """Retire every free segment that the reader has no view of; True if that freed any memory at once."""
        has_freed = False
        for free in self.free.values():
            for segment in [each for each in free if not each.is_viewed]:
                free.remove(segment)
                has_freed |= self._retire(segment)
        return has_freed

    def _retire(self, segment: Segment) -> bool:
        """Retire a segment; True if its memory is free now, False if a reader keeps it until its views are gone."""
        # Always: from now on no reader can acquire the lease, and a lease that a reader has is seen.
        is_unseen = segment.retire() == LEASE_FREE and not segment.is_tainted
        del self._segments[segment.name]
        segment.free_list = None
        self._torch_loans.forget(segment)
        self._nbytes -= segment.capacity
        _unlink(segment.path)
        if is_unseen:
            # The reader still has it mapped; without pages the mapping costs address space only.
            system.advise(segment.buffer[PAYLOAD_OFFSET:], system.MADV_REMOVE)
        return is_unseen

    # -- the rest -------------------------------------------------------------------------------------------------

    def reader_died(self) -> None:
        """Never fill again a segment that a dead reader held, because a forked child of the reader may have a view."""
        for segment in list(self._segments.values()):
            if segment.words[LEASE_WORD] != LEASE_FREE:
                self._taint(segment)
        for free in self.free.values():
            for segment in [each for each in free if each.is_tainted]:
                free.remove(segment)
                self._retire(segment)

    def _taint(self, segment: Segment) -> None:
        """Mark a segment of which an unknown process may have a view: it is retired, never filled again."""
        segment.is_tainted = True
        segment.free_list = self.to_retire

    def stats(self) -> PoolStats:
        """What the pool holds now."""
        return PoolStats(
            segments=len(self._segments),
            nbytes=self._nbytes,
            free_nbytes=sum(segment.capacity for free in self.free.values() for segment in free),
            published=self.seq,
            copied_nbytes=self.copied_nbytes,
            created=self._created,
        )

    def forked_in_parent(self) -> None:
        for segment in list(self._segments.values()):  # a copy, made in one step, because other threads go on
            if segment.loaned_layout is not None:
                self._taint(segment)

    def close(self) -> None:
        """Remove the files. Arrays that still live keep their memory until they are gone."""
        for segment in self._segments.values():
            segment.free_list = None
            if not self.is_foreign:
                _unlink(segment.path)
        self._segments.clear()
        self.free.clear()


def _unlink(path: str) -> None:
    """Remove a name. If that fails, it is removed with the session's directory."""
    try:
        system.unlink(path)
    except OSError:
        pass


_pause: Callable[[float], None] = time.sleep
