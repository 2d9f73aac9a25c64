"""The owner's side: a pool of segments that are filled, published and filled again.

Not safe for threads by itself; its session or store holds a lock. See the package's docstring for the protocol.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .. import system
from ..errors import OutOfSpace
from ..forks import Forkable
from ..native import bury, dead, loan_of
from ..tsr import header as tsr_header
from ..tsr import tensors
from .layout import LAYOUT, LEASE, LEASE_FREE, LEASE_PINNED, PAYLOAD_OFFSET, class_nbytes
from .loans import Loans, describe, forbid_writing, layout_of
from .segment import Layout, Segment, make_segment

__all__ = ["PoolStats", "Segment", "SegmentPool"]

# A free segment that so many takes in a row did not want is given back: the traffic has changed its sizes.
_IDLE_TAKES: Final = 512


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool holds.

    Attributes:
        segments: files there are.
        nbytes: their payload capacity together, in bytes.
        free_nbytes: capacity of those that nobody on this side holds (the peer may hold views of some).
        published: tensors published since the start.
        copied_nbytes: bytes copied into segments since the start; a loan adds none.
        created: segments made since the start; all other publishes used one again.
    """

    segments: int
    nbytes: int
    free_nbytes: int
    published: int
    copied_nbytes: int
    created: int


class SegmentPool(Forkable):
    """Makes, fills and recycles the segments of one side of a session.

    Args:
        directory: the session directory.
        prefix: names are ``<prefix>_<number>.tsr``.
        budget_nbytes: most payload capacity to hold at once; None for no limit but the file system's.
        block_ms: at the budget, how long to wait for the reader to let go before raising OutOfSpace.
        checksum: whether to store each payload's CRC-32.

    Attributes:
        is_reader_gone: tells that the reader will never let go of anything any more.
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
        super().__init__()
        self._directory = directory
        self._prefix = prefix
        self._budget_nbytes = budget_nbytes
        self._block_ms = block_ms
        self._has_checksum = checksum
        self.is_reader_gone: Callable[[], bool] = bool  # False, until there is a reader
        self._segments: dict[str, Segment] = {}
        self._free: dict[int, list[Segment]] = {}  # by capacity; the last one is the warmest
        self._loans = Loans()
        self._returned = self._loans.returned
        self._nbytes = 0
        self._seq = 0
        self._created = 0
        self._number = 0  # of the next segment's name
        self._copied_nbytes = 0
        self._takes = 0

    # -- publishing -----------------------------------------------------------------------------------------------

    def publish(self, tensor: Any) -> Segment:
        """Put a tensor into a segment and stamp it; the caller holds it once until :meth:`release`.

        A loan, or a view of the whole or a 256-byte aligned contiguous part of one, is published where it lies;
        anything else costs one copy. Either the tensor is published whole, or an error is raised and nothing changed.

        Raises:
            UnsupportedTensor: not a tensor, or of a kind that TSR cannot hold.
            OutOfSpace: no room.
        """
        if dead or self._returned:
            self.collect()
        segment: Segment | None
        if type(tensor) is np.ndarray:
            segment = loan_of(tensor, self._returned)
            if segment is None and not self._has_checksum:
                free = self._free.get(class_nbytes(tensor.nbytes))
                # Most tensors are of the type and shape that the warmest free segment held last.
                if free and free[-1].refill(self._seq + 1, tensor):
                    segment = free[-1]
                    segment.seq = self._seq = self._seq + 1
                    segment.last_take = self._takes = self._takes + 1
                    self._copied_nbytes += tensor.nbytes
                    segment.holds = 1
                    del free[-1]
                    return segment
        else:
            segment = self._loans.find(tensor)
        if segment is not None and self._publish_loan(tensor, segment):
            return segment
        return self._publish_copy(tensor)

    def _publish_copy(self, tensor: Any) -> Segment:
        dtype, array = tensors.to_array(tensor)
        nbytes = array.nbytes
        segment, is_filled = self._take(nbytes, array)
        try:
            if not is_filled:
                tensors.copy_into(segment.buffer, PAYLOAD_OFFSET, array)
            layout = dtype, array.shape, PAYLOAD_OFFSET
            self._stamp(segment, layout)
            if segment.is_populated and segment.laid_out != layout:
                segment.lay_out(dtype.numpy, array.shape, PAYLOAD_OFFSET)
                segment.laid_out = layout
        except BaseException:
            segment.holds = 1
            self.release(segment)
            raise
        self._copied_nbytes += nbytes
        segment.holds = 1
        return segment

    def _publish_loan(self, tensor: Any, segment: Segment) -> bool:
        """Publish a loan where it lies; False if its memory has to be copied after all."""
        layout = segment.lent if segment.is_whole(tensor) else layout_of(tensor, segment)
        if layout is None:
            return False
        if not segment.is_sent:
            forbid_writing(tensor, segment)  # first, for it may fail
            self._stamp(segment, layout)
            segment.is_sent = True
        elif segment.layout != layout:
            return False  # published before as something else: that header may be in use
        segment.holds += 1
        return True

    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        """A loan: an array or tensor of undefined content that lives in a segment.

        Args:
            shape: sizes in elements, outermost first.
            dtype: ``"float32"``, or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``.

        Raises:
            UnsupportedTensor: no such dtype or framework, or a shape that TSR cannot hold.
            OutOfSpace: no room.
        """
        if dead or self._returned:
            self.collect()
        layout, nbytes = describe(shape, dtype)
        tensors.check_framework(framework)
        if not nbytes:
            return tensors.from_buffer(bytearray(), layout[0], layout[1], 0, framework)
        segment, _ = self._take(nbytes)
        segment.holds += 1  # until the last array over it is gone
        return self._loans.lend(segment, layout, framework)

    def release(self, segment: Segment) -> None:
        """Undo one hold; with the last one gone the segment may be filled again once its reader lets go."""
        segment.holds -= 1
        if not segment.holds:
            if segment.is_tainted or self.is_foreign:
                self._give_up(segment)
            else:
                segment.shelf.append(segment)

    def collect(self) -> None:
        """Take back loans whose arrays are all gone."""
        bury()
        while (segment := self._loans.take_returned()) is not None:
            if segment.laid_out != segment.layout:  # it was not sent, or as another layout
                segment.forget_layout()
            self.release(segment)

    def _stamp(self, segment: Segment, layout: Layout) -> None:
        self._seq = seq = self._seq + 1
        if segment.layout != layout or self._has_checksum:
            segment.layout = None
            if segment.laid_out != layout:
                segment.forget_layout()
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
            segment.buffer[:64] = raw[:64]
            segment.buffer[128:256] = raw[128:256]
            segment.words[LAYOUT] = seq
            segment.layout = layout
        segment.seq = seq
        segment.stamp(seq)

    # -- segments -------------------------------------------------------------------------------------------------

    def _take(self, nbytes: int, source: np.ndarray[Any, Any] | None = None) -> tuple[Segment, bool]:
        """A segment that nobody else can be looking at, on no list until put back; and whether it holds ``source``."""
        capacity = class_nbytes(nbytes)
        self._takes += 1
        is_filled = False
        segment = self._take_free(capacity)
        if segment is None:
            segment, is_filled = self._create(capacity, source)
        elif not segment.is_populated or segment.is_closed_off:
            try:
                segment.make_fillable()
            except BaseException:
                self._retire(segment)
                raise
        segment.last_take = self._takes
        return segment, is_filled

    def _take_free(self, capacity: int) -> Segment | None:
        free = self._free.get(capacity)
        if not free:
            return None
        segment = free[-1]
        if segment.claim() == LEASE_FREE:
            del free[-1]
            return segment
        for index in range(len(free) - 1, -1, -1):
            segment = free[index]
            lease = segment.claim()
            if lease == LEASE_FREE:
                del free[index]
                return segment
            if lease == LEASE_PINNED:
                del free[index]
                self._retire(segment)
        return None

    def _give_up(self, segment: Segment) -> None:
        """Nobody here holds a segment any more that is not to be filled again."""
        if not self.is_foreign and segment.name in self._segments:
            self._retire(segment)

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
        name = f"{self._prefix}_{self._number}.tsr"
        self._number += 1  # whatever comes of it
        segment, is_filled = make_segment(self._directory, name, capacity, source)
        segment.shelf = self._free.setdefault(capacity, [])
        self._created += 1
        self._segments[name] = segment
        self._nbytes += capacity
        return segment, is_filled

    def _wait_for_room(self, capacity: int, budget_nbytes: int) -> Segment | None:
        """At the budget: use what is free, else wait for the reader. Returns a fitting segment, or None: make one."""
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
            _pause(0.001)
            self.collect()
            segment = self._take_free(capacity)
            if segment is not None:
                return segment

    def _trim(self, wanted_capacity: int) -> None:
        """Give back free segments of sizes that the traffic no longer uses."""
        oldest = self._takes - _IDLE_TAKES
        for capacity, free in self._free.items():
            if capacity != wanted_capacity:
                for segment in [each for each in free if each.last_take < oldest and not each.is_looked_at]:
                    free.remove(segment)
                    self._retire(segment)

    def _retire_free(self) -> bool:
        """Give back every free segment that the reader does not look at; True if that freed any memory at once."""
        has_freed = False
        for free in self._free.values():
            for segment in [each for each in free if not each.is_looked_at]:
                free.remove(segment)
                has_freed |= self._retire(segment)
        return has_freed

    def _retire(self, segment: Segment) -> bool:
        """Give a segment up; True if its memory is free now, False if a viewer keeps it until it lets go."""
        # Always: who enters now is turned away, and who has entered is seen.
        is_unseen = segment.retire() == LEASE_FREE and not segment.is_tainted
        del self._segments[segment.name]
        segment.is_tainted = True
        self._nbytes -= segment.capacity
        _unlink(segment.path)
        if is_unseen:
            # The reader has it mapped still; without its pages that costs address space only.
            system.advise(segment.buffer[PAYLOAD_OFFSET:], system.MADV_REMOVE)
        return is_unseen

    # -- the rest -------------------------------------------------------------------------------------------------

    def reader_died(self) -> None:
        """The reader's leases mean nothing any more, but a child of it may live: never fill again what it held."""
        for segment in list(self._segments.values()):
            if segment.words[LEASE] != LEASE_FREE:
                segment.is_tainted = True
        for free in self._free.values():
            for segment in [each for each in free if each.is_tainted]:
                free.remove(segment)
                self._retire(segment)

    def stats(self) -> PoolStats:
        return PoolStats(
            segments=len(self._segments),
            nbytes=self._nbytes,
            free_nbytes=sum(segment.capacity for free in self._free.values() for segment in free),
            published=self._seq,
            copied_nbytes=self._copied_nbytes,
            created=self._created,
        )

    def forked_in_parent(self) -> None:
        for segment in list(self._segments.values()):  # a copy, made in one step: other threads go on working
            if segment.lent is not None:
                segment.is_tainted = True

    def close(self) -> None:
        """Remove the files; arrays that still live keep their memory until they are gone."""
        if not self.is_foreign:
            for segment in self._segments.values():
                _unlink(segment.path)
        self._segments.clear()
        self._free.clear()


def _unlink(path: str) -> None:
    """Remove a name, or let it go with the session's directory if that fails."""
    try:
        system.unlink(path)
    except OSError:
        pass


_pause: Callable[[float], None] = time.sleep
