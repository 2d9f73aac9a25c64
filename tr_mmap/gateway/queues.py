"""What waits to be run: the most urgent first, and nobody for ever. Knows neither threads nor the clock."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

__all__ = ["AgeingQueue"]

_T = TypeVar("_T")


class AgeingQueue(Generic[_T]):
    """A queue in which one who waits ``ageing_s`` counts as one priority higher.

    All age equally fast. So who goes before whom never changes, and a heap keeps the order: of two, the one goes first
    whose ``priority - arrival / ageing_s`` is greater.

    Args:
        ageing_s: in seconds, above 0.
    """

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._heap: list[tuple[float, int, _T]] = []
        self._numbers = itertools.count()
        self._removed: set[int] = set()
        self._entries: dict[_T, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, item: _T, priority: float, now_s: float) -> None:
        """Add an item, which must not be there yet.

        Args:
            item: hashable.
            priority: the higher, the sooner.
            now_s: when it arrives; never less than that of an earlier one.
        """
        number = next(self._numbers)
        self._entries[item] = number
        heapq.heappush(self._heap, (now_s / self._ageing_s - priority, number, item))

    def pop(self) -> _T:
        """Take the first.

        Raises:
            IndexError: there is none.
        """
        while True:
            _, number, item = heapq.heappop(self._heap)
            if number in self._removed:
                self._removed.discard(number)
                continue
            del self._entries[item]
            return item

    def remove(self, item: _T) -> bool:
        """Take one out. Returns whether it was there."""
        number = self._entries.pop(item, None)
        if number is None:
            return False
        self._removed.add(number)
        if len(self._removed) > 64 and len(self._removed) > len(self._entries):
            self._heap = [each for each in self._heap if each[1] not in self._removed]
            self._removed.clear()
            heapq.heapify(self._heap)
        return True
