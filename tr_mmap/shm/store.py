"""The segments of one owner: finds, recycles and makes them. Never writes a payload or a header."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

import numpy as np

from ..base.identifiers import tensor_file
from ..errors import OutOfSpace, SessionNotStarted, SystemLimit
from ..wire.header import LEASE_FREE, LEASE_HELD, LEASE_PINNED
from ..wire.segments import FEW_SEGMENTS, LOOKS_PER_TAKE, MAX_SLOTS, SLOT_NBYTES
from .kept import SLOTS, KeptSegments, pop
from .readers import ReadersPage
from .segment import Segment, make_segment, make_slab
from .size_classes import class_nbytes

__all__ = ["SegmentStore"]

_PAUSE_S: Final = 0.001  # between two looks while the pool waits for room


class SegmentStore(KeptSegments):
    """What is kept, and what is made; the arguments are those of :class:`KeptSegments`."""

    # -- taking ---------------------------------------------------------------------------------------------------

    def _take(
        self,
        nbytes: int,
        source: np.ndarray[Any, Any] | None = None,
        *,
        may_share: bool = False,
        deadline_s: float | None = None,
    ) -> tuple[Segment, bool]:
        """A segment without readers, taken off its free list; and whether it holds ``source`` already.

        Args:
            nbytes: bytes of payload.
            source: the array that it is for; None for a loan.
            may_share: whether its file may be that of other segments too.
            deadline_s: when to stop waiting for room, by ``time.monotonic``; None for the pool's own time only.
        """
        capacity = class_nbytes(nbytes)
        may_share = may_share and capacity == SLOT_NBYTES
        self.takes += 1
        is_filled = False
        segment = self._take_free(capacity, may_share)
        if segment is None:
            segment, is_filled = self._create(capacity, source, may_share, deadline_s)
        if not is_filled and (not segment.is_populated or segment.is_private):
            try:
                segment.make_fillable()
            except BaseException:
                self._retire(segment)
                raise
        segment.last_take = self.takes
        return segment, is_filled

    def _take_free(self, capacity: int, may_share: bool = False) -> Segment | None:
        self._sort_viewed()
        segment = self._take_of(SLOTS) if may_share else None
        return self._take_of(capacity) if segment is None else segment

    def _take_of(self, key: int) -> Segment | None:
        free = self.free.get(key)
        if free is None:
            return None
        segment = self._pop_unviewed(key, free)
        if segment is None and self._look_at_awaiting(key, LOOKS_PER_TAKE):
            segment = self._pop_unviewed(key, free)
        return segment

    def _pop_unviewed(self, key: int, free: list[Segment]) -> Segment | None:
        while (segment := pop(free)) is not None:
            self.check_own()  # a signal handler may have forked meanwhile
            # Looked at first: what a reader views keeps its number, so that the view can be handed on.
            lease = segment.lease()
            if lease != LEASE_HELD:
                lease = segment.claim()
            if lease == LEASE_FREE:
                return segment
            if lease == LEASE_PINNED:
                self._retire(segment)
            else:
                self._awaiting[key].append(segment)
        return None

    # -- making ---------------------------------------------------------------------------------------------------

    def _create(
        self,
        capacity: int,
        source: np.ndarray[Any, Any] | None,
        may_share: bool,
        deadline_s: float | None,
    ) -> tuple[Segment, bool]:
        self._prepare_to_make(capacity, may_share)
        if self._budget_nbytes is not None and self._nbytes + capacity > self._budget_nbytes:
            segment = self._wait_for_room(capacity, self._budget_nbytes, may_share, deadline_s)
            if segment is not None:
                return segment, False
        if may_share:
            segment = self._make_slots()
            if segment is not None:
                return segment, False
        try:
            return self._make(capacity, source, may_share)
        except (OutOfSpace, SystemLimit):
            if not self._retire_free():
                raise
            return self._make(capacity, source, may_share)

    def _prepare_to_make(self, capacity: int, may_share: bool) -> None:
        if self._has_lines and self._readers is None:
            self._prepare()
        self._trim(capacity, may_share)
        if any(self._awaiting.values()):
            self._reap()  # a dead reader may be all that keeps them from being used again

    def _prepare(self) -> None:
        """Make what the first segment needs. In a session that sends no tensor, nothing of this is ever there."""
        if self._make_directory is not None:
            self._make_directory()
        page = ReadersPage(self._directory, self._prefix)
        self._readers, self._members = page, page.members

    def _make(
        self,
        capacity: int,
        source: np.ndarray[Any, Any] | None,
        is_counted: bool,
    ) -> tuple[Segment, bool]:
        name = tensor_file(self._next_stem())
        segment, is_filled = make_segment(self._directory, name, capacity, source, self._members)
        segment.is_counted = is_counted
        self._adopt([segment])
        return segment, is_filled

    def _make_slots(self) -> Segment | None:
        """Make a slab, and take one of its slots; None if there are too few segments for it, or too little room."""
        slots = 1 << max(0, (self._small // 2).bit_length() - 1)
        slots = min(slots, MAX_SLOTS) if self._small >= FEW_SEGMENTS else 0
        if self._budget_nbytes is not None:
            while slots * SLOT_NBYTES > self._budget_nbytes - self._nbytes:
                slots //= 2
        if slots < 2:
            return None
        try:
            slab = make_slab(self._directory, self._next_stem(), slots, self._members)
        except (OutOfSpace, SystemLimit):
            return None  # there may be room for one segment
        segments = slab.segments
        for segment in segments:
            segment.is_counted = True
            segment.last_take = self.takes
        self._adopt(segments)
        self.free[SLOTS].extend(segments[:0:-1])  # the lowest is taken first
        return segments[0]

    def _next_stem(self) -> str:
        return f"{self._prefix}_{next(self._numbers)}"

    def _adopt(self, segments: list[Segment]) -> None:
        key = segments[0].key
        self._awaiting.setdefault(key, deque())  # first: code that finds a free list expects this one too
        free = self.free.setdefault(key, [])
        for segment in segments:
            segment.pool_token = self.pool_token
            segment.free_list = free
            self._small += segment.is_counted
            self._nbytes += segment.capacity
        self._created += len(segments)
        self._segments.update({segment.name: segment for segment in segments})

    def _wait_for_room(
        self, capacity: int, budget_nbytes: int, may_share: bool, deadline_s: float | None
    ) -> Segment | None:
        """At the budget: use what is free, or retire it, else wait for the reader.

        Returns:
            A segment of that capacity; None if there is room now to make one.
        """
        own_deadline_s = time.monotonic() + self._block_ms / 1000
        deadline_s = own_deadline_s if deadline_s is None else min(own_deadline_s, deadline_s)
        while True:
            for key in (SLOTS, capacity) if may_share else (capacity,):
                if key in self.free and self._look_at_awaiting(key):
                    segment = self._take_of(key)
                    if segment is not None:
                        return segment
            self._retire_free()
            if self._nbytes + capacity <= budget_nbytes:
                return None
            if capacity > budget_nbytes or time.monotonic() >= deadline_s or self.is_reader_gone():
                raise OutOfSpace(
                    f"a segment of {capacity} bytes would exceed the session's budget of {budget_nbytes} bytes; "
                    f"{self._nbytes} are in use: drop tensors or views, or raise budget_nbytes",
                    needed_nbytes=capacity,
                    free_nbytes=max(0, budget_nbytes - self._nbytes),
                    is_budget=True,
                )
            self.pause(_PAUSE_S)
            if self._is_closed:
                raise SessionNotStarted("the session was closed while this waited for room")
            self.is_slow_path_running = True  # again: a thread that used the slow path meanwhile has cleared it
            self.collect()
            segment = self._take_free(capacity, may_share)
            if segment is not None:
                return segment
