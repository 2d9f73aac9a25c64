"""Puts a pool right after an exception that came between any two of its steps. Makes and fills no segment."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Mapping

from ..base import system
from ..errors import SystemLimit
from ..native import drain
from ..wire.header import SEQ_RETIRED, SEQ_WORD
from ..wire.names import TENSOR_SUFFIX
from .kept import remove_name
from .segment import Segment, Slab
from .store import SegmentStore

__all__ = ["RepairableStore"]


class RepairableStore(SegmentStore):
    """A store that can be put right; the arguments are those of :class:`SegmentStore`."""

    def reconcile(self, holds: Mapping[Segment, int]) -> None:
        """Put everything right after an exception, of a signal handler say, that came between any two steps.

        No other thread may be in the middle of the slow path, and none may begin a fast path meanwhile. If this is
        interrupted itself, call it again.

        Args:
            holds: how many holds each segment has, without that of its loan; 0 for those that are missing.
        """
        if self.is_foreign:
            return
        drain()
        for segment in self._segments.values():
            segment.free_list = None  # what another thread releases meanwhile is on no list before it is put back
        self.viewed.clear()
        self.to_retire.clear()
        for awaiting in self._awaiting.values():
            awaiting.clear()
        for free in self.free.values():
            free.clear()
        # All is made anew from self._segments, the one record of what there is.
        segments = sorted(self._segments.values(), key=lambda segment: segment.last_take)
        self._count_all(segments)
        for segment in segments:
            self._put_back(segment, holds.get(segment, 0))
        self._remove_strays()
        self.collect()
        self.is_slow_path_running = False

    def _count_all(self, segments: list[Segment]) -> None:
        living: dict[Slab, int] = {}
        nbytes = 0
        for segment in segments:
            if segment.slab is None:
                nbytes += segment.capacity
            else:
                living[segment.slab] = living.get(segment.slab, 0) + 1
        for slab, count in living.items():
            slab.dead = slab.slots - count
        self._nbytes = nbytes + sum(slab.capacity for slab in living)
        self._small = sum(segment.is_counted for segment in segments)

    def _put_back(self, segment: Segment, holds: int) -> None:
        """Put a segment where one with these holds, and that of its loan, belongs."""
        # Retired in part, because the interrupt came in the middle: the reader may have unmapped it since.
        is_retired = segment.words[SEQ_WORD] == SEQ_RETIRED
        self._awaiting.setdefault(segment.key, deque())
        free = self.free.setdefault(segment.key, [])
        segment.pool_token = self.pool_token
        segment.restore(holds, self.to_retire if segment.is_tainted or is_retired else free)

    def _remove_strays(self) -> None:
        """Remove files that an interrupt left: of segments that were not recorded yet, or no longer."""
        paths = {os.path.basename(segment.path) for segment in self._segments.values()}
        is_own = re.compile(rf"{re.escape(self._prefix)}_[0-9]+{re.escape(TENSOR_SUFFIX)}", re.ASCII).fullmatch
        try:
            names = system.list_dir(self._directory.path) if self._directory.is_there() else []
        except (OSError, SystemLimit):
            return  # there is no descriptor left, or somebody has removed the directory; its files go with it
        for name in names:
            if is_own(name) and name not in paths and name not in self._in_making:
                remove_name(os.path.join(self._directory.path, name), self._owner)
