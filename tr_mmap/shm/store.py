"""The segments of one owner: makes, finds, recycles and retires them. Never writes a payload or a header.

A segment without holds is on one of two lists of its size: its *free list*, or the list of those that *await the
reader*, because it had a view of them when they were last looked at. A take looks at a bounded number of the oldest of
these. So it costs the same however many there are, and each is found within a bounded number of takes once its views
are gone.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np

from ..base import system
from ..base.fork_safety import ForkAware, this_process
from ..base.identifiers import tensor_file
from ..errors import OutOfSpace, SessionNotStarted, SystemLimit
from ..native import FreeLists, drain
from ..wire.header import LEASE_FREE, LEASE_HELD, LEASE_PINNED, LEASE_WORD
from ..wire.segments import (
    FEW_SEGMENTS,
    IDLE_TAKES,
    LOOKS_PER_TAKE,
    MAX_SLOTS,
    SLOT_NBYTES,
    TRIM_TAKES,
)
from .loans import TorchLoans
from .readers import ReadersPage
from .segment import Segment, Slab, make_segment, make_slab
from .size_classes import class_nbytes

__all__ = ["SegmentStore", "remove_name"]

_SLOTS: Final = -SLOT_NBYTES  # the key of the free slots
_PAUSE_S: Final = 0.001  # between two looks while the pool waits for room


class SegmentStore(FreeLists, ForkAware):
    """The segments of one side of a session.

    Args:
        directory: the session directory.
        prefix: names of files are ``<prefix>_<number>.tsr``.
        budget_nbytes: most payload capacity to hold at once; None for no limit but the file system's.
        block_ms: at the budget, how many milliseconds to wait for the reader to release views before OutOfSpace.
        has_lines: whether others than the session's own reader may read too, each with a lease line.
        make_directory: makes the directory; called before the first segment is made, and again if that failed. None if
            it is there.

    Attributes:
        is_reader_gone: returns whether the reader has ended, so that it will release nothing any more.
        pause: called with a number of seconds between two looks while the pool waits for room; it may release a lock.
    """

    def __init__(
        self,
        directory: str,
        prefix: str,
        budget_nbytes: int | None,
        block_ms: float,
        has_lines: bool = False,
        make_directory: Callable[[], None] | None = None,
    ) -> None:
        FreeLists.__init__(self)
        self._owner = this_process.mark
        self._segments: dict[str, Segment] = {}
        ForkAware.__init__(self)  # now: its hook uses the segments
        self._directory = system.KnownDir(directory)
        self._prefix = prefix
        self._budget_nbytes = budget_nbytes
        self._block_ms = block_ms
        self.is_reader_gone: Callable[[], bool] = bool  # False, until there is a reader
        self.pause: Callable[[float], None] = time.sleep
        self._awaiting: dict[int, deque[Segment]] = {}  # by key, the longest not looked at first
        self._torch_loans = TorchLoans()
        self._nbytes = 0
        self._small = 0  # segments that decide how many slots the next slab has
        self._created = 0
        self._tainted = 0  # how often a segment was
        self._trimmed_at = 0  # the count of takes then
        self._numbers = itertools.count()  # of files; no name is used twice
        self._in_making: WeakValueDictionary[str, Any] = WeakValueDictionary()  # by name: a mark of who makes the file
        self._is_closed = False
        self._has_lines = has_lines
        self._make_directory = make_directory
        self._readers: ReadersPage | None = None
        self._members: memoryview | None = None

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
        segment = self._take_of(_SLOTS) if may_share else None
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
        while (segment := _pop(free)) is not None:
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

    def _sort_viewed(self) -> None:
        """Move the segments that the fast path found viewed to the lists of those that await the reader."""
        while (segment := _pop(self.viewed)) is not None:
            self._awaiting[segment.key].append(segment)

    def _look_at_awaiting(self, key: int, count: int | None = None) -> bool:
        """Put segments whose views are gone back on their free list; True if there was one.

        Args:
            key: of the list.
            count: how many of the oldest to look at; None for all.
        """
        awaiting, free = self._awaiting[key], self.free[key]
        has_found = False
        for _ in range(len(awaiting) if count is None else min(count, len(awaiting))):
            segment = _pop_oldest(awaiting)
            if segment is None:
                break
            if segment.is_viewed:
                awaiting.append(segment)
            elif segment.is_tainted:
                self._retire(segment)
            else:
                free.append(segment)
                has_found = True
        return has_found

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
        self.free[_SLOTS].extend(segments[:0:-1])  # the lowest is taken first
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
            for key in (_SLOTS, capacity) if may_share else (capacity,):
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

    # -- retiring -------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Release views and loans that have ended, and retire segments that must not be filled again."""
        drain()
        while (segment := _pop(self.to_retire)) is not None:
            if not self.is_foreign and segment.name in self._segments:
                self._retire_unless_viewed(segment)

    def _trim(self, wanted_capacity: int, may_share: bool) -> None:
        """Once in a while, retire free segments of sizes that no tensor has had for long."""
        elapsed = self.takes - self._trimmed_at
        if elapsed < TRIM_TAKES:
            return
        self._trimmed_at = self.takes
        oldest = self.takes - IDLE_TAKES
        for key in list(self.free):  # a signal handler may add one
            if key == wanted_capacity or (may_share and key == _SLOTS):
                continue
            self._look_at_awaiting(key, LOOKS_PER_TAKE * elapsed)
            self._retire_of(key, oldest)

    def _retire_free(self) -> bool:
        """Retire every free segment that the reader has no view of; True if that freed any memory at once."""
        self._reap()
        self._sort_viewed()
        has_freed = False
        for key in list(self.free):
            self._look_at_awaiting(key)
            has_freed |= self._retire_of(key, self.takes + 1)
        return has_freed

    def _retire_of(self, key: int, oldest: int) -> bool:
        """Retire the segments of a free list that were last taken before ``oldest``; True if that freed memory."""
        free, awaiting = self.free[key], self._awaiting[key]
        is_idle = self._idle_slots(oldest) if key == _SLOTS else lambda segment: bool(segment.last_take < oldest)
        has_freed = False
        kept: list[Segment] = []
        while (segment := _pop(free)) is not None:  # a signal handler finds only those that are not judged yet
            if not is_idle(segment):
                kept.append(segment)
            elif segment.is_viewed:  # to retire it would free no memory, and the pool would no longer count it
                awaiting.append(segment)
            else:
                has_freed |= self._retire(segment)
        free[:0] = reversed(kept)  # below what another thread has just appended
        return has_freed

    def _idle_slots(self, oldest: int) -> Callable[[Segment], bool]:
        """Make a test for free slots of unused slabs: every slot of such a slab is idle or retired, so its file can go.

        Args:
            oldest: a slot is idle if it was last taken before this take, and the reader has no view of it.
        """
        idle: dict[Slab | None, int] = {}
        for segment in self.free[_SLOTS]:
            if segment.last_take < oldest and not segment.is_viewed:
                idle[segment.slab] = idle.get(segment.slab, 0) + 1
        whole = {slab for slab, count in idle.items() if slab is not None and count + slab.dead == slab.slots}
        return lambda segment: segment.slab in whole

    def _retire_unless_viewed(self, segment: Segment) -> None:
        """Retire a tainted segment, but not before its living readers have released it: a view may be handed on.

        Where there are no lease lines, the one reader is dead, and its lease says nothing.
        """
        if self._readers is not None and segment.is_viewed:
            self._awaiting[segment.key].append(segment)
        else:
            self._retire(segment)

    def _retire(self, segment: Segment) -> bool:
        """Retire a segment; True if its memory is free now, False if a reader or other slots keep it."""
        if self.is_foreign:  # a signal handler has forked meanwhile: it is the parent's
            return False
        # Call this in any case: from now on no reader can acquire the lease, and the result says whether one holds it.
        is_unseen = segment.retire() == LEASE_FREE and not segment.is_tainted
        del self._segments[segment.name]
        segment.free_list = None
        self._small -= segment.is_counted
        slab = segment.slab
        if slab is None:
            self._torch_loans.forget(segment)
            self._nbytes -= segment.capacity
            payload = segment.buffer[segment.payload_offset :]
        else:
            slab.dead += 1
            slab.is_seen |= not is_unseen
            if slab.dead < slab.slots:
                return False  # a hole in the file would make a reader that maps it later refuse it
            self._nbytes -= slab.capacity
            is_unseen = not slab.is_seen
            payload = slab.buffer[slab.segments[0].payload_offset :]
        if self._directory.is_there():
            remove_name(segment.path, self._owner)
        if is_unseen and not self.is_foreign:
            # The reader still has it mapped; without pages the mapping costs address space only.
            system.advise(payload, system.MADV_REMOVE)
        return is_unseen

    def check_own(self) -> None:
        """Refuse to touch the segments of the process that this one was forked from.

        Raises:
            SessionNotStarted: they are.
        """
        if self.is_foreign:
            raise SessionNotStarted(
                "the segments are those of the process that this one was forked from; it fills them"
            )

    # -- deaths, forks, the end --------------------------------------------------------------------------------

    def reader_died(self) -> None:
        """The session's own reader has died, or one with a lease line has: never fill again a segment that it held.

        A forked child of the reader may have a view.
        """
        for each in list(self._segments.values()):
            if each.words[LEASE_WORD] != LEASE_FREE:
                self.taint(each)
        self._reap()
        self._retire_tainted()

    def _reap(self) -> None:
        """Taint what dead readers held in their lease lines, and give the lines to others."""
        if self._readers is None or self.is_foreign:
            return
        before = self._tainted
        self._readers.reap(self._taint_line)
        if self._tainted != before:
            self._retire_tainted()

    def _taint_line(self, line: int) -> None:
        for each in list(self._segments.values()):
            if each.is_leased_in(line):
                self.taint(each)
                each.clear_lease_in(line)  # the next reader with that line has nothing of this

    def _retire_tainted(self) -> None:
        """Retire the tainted segments that have no hold. The others are retired when the last hold is released."""
        self._sort_viewed()
        for key, free in list(self.free.items()):
            while (segment := _pop_oldest(self._awaiting[key])) is not None:
                free.append(segment)
            kept: list[Segment] = []
            while (segment := _pop(free)) is not None:
                if segment.is_tainted:
                    self._retire_unless_viewed(segment)
                else:
                    kept.append(segment)
            free[:0] = reversed(kept)

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._is_closed

    def taint(self, segment: Segment) -> None:
        """Mark a segment of which an unknown process may have a view: it is retired, never filled again."""
        self._tainted += 1
        segment.is_tainted = True
        segment.free_list = self.to_retire

    def forked_in_parent(self) -> None:
        for segment in list(self._segments.values()):  # a copy, made in one step, because other threads go on
            if segment.loaned_layout is not None:
                self.taint(segment)

    def close(self) -> None:
        """Remove the files. Arrays that still live keep their memory until they are gone."""
        self._is_closed = True
        has_files = not self.is_foreign and self._directory.is_there()
        for segment in self._segments.values():
            segment.free_list = None
            if has_files:
                remove_name(segment.path, self._owner)
        if self._readers is not None and has_files:
            self._readers.remove(self._owner)
        self._segments.clear()
        self.free.clear()
        self.viewed.clear()
        self._awaiting.clear()


def _pop(segments: list[Segment]) -> Segment | None:
    """The last of a list, taken off it; None if there is none. In one step, for a signal handler may come."""
    try:
        return segments.pop()
    except IndexError:
        return None


def _pop_oldest(segments: deque[Segment]) -> Segment | None:
    """The first of a queue in the same way."""
    try:
        return segments.popleft()
    except IndexError:
        return None


def remove_name(path: str, owner: object) -> None:
    """Remove a name. If that fails, it is removed with the session's directory.

    Args:
        path: the name.
        owner: the mark of the process whose file it is; does nothing in a child that was forked since.
    """
    try:
        system.unlink(path, owner=owner)
    except OSError:
        pass
