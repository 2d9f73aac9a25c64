"""The segments of one owner, as they are kept: which ones are free, and which ones are given up. Makes and fills none.

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

from ..base import system
from ..base.fork_safety import ForkAware, this_process
from ..errors import SessionNotStarted
from ..native import FreeLists, drain
from ..wire.header import LEASE_FREE, LEASE_WORD
from ..wire.segments import IDLE_TAKES, LOOKS_PER_TAKE, SLOT_NBYTES, TRIM_TAKES
from .loans import TorchLoans
from .readers import ReadersPage
from .segment import Segment, Slab

__all__ = ["SLOTS", "KeptSegments", "pop", "remove_name"]

SLOTS: Final = -SLOT_NBYTES  # the key of the free slots


class KeptSegments(FreeLists, ForkAware):
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
        self._torch_loans = TorchLoans(self.torch_loans)
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

    # -- lists ----------------------------------------------------------------------------------------------------

    def _sort_viewed(self) -> None:
        """Move the segments that the fast path found viewed to the lists of those that await the reader."""
        while (segment := pop(self.viewed)) is not None:
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

    # -- retiring -------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Release views and loans that have ended, and retire segments that must not be filled again."""
        drain()
        while (segment := pop(self.to_retire)) is not None:
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
            if key == wanted_capacity or (may_share and key == SLOTS):
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
        is_idle = self._idle_slots(oldest) if key == SLOTS else lambda segment: bool(segment.last_take < oldest)
        has_freed = False
        kept: list[Segment] = []
        while (segment := pop(free)) is not None:  # a signal handler finds only those that are not judged yet
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
        for segment in self.free[SLOTS]:
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
            is_unseen = is_unseen and segment.let_twin_go()  # the pages of a private place are not the file's
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
            while (segment := pop(free)) is not None:
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


def pop(segments: list[Segment]) -> Segment | None:
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
