"""What waits to be run: subjects take turns, each with its most urgent first. Knows neither threads nor the clock."""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from typing import Final, Generic, TypeVar

__all__ = ["AgeingQueue", "FairQueue"]

_T = TypeVar("_T")
_FEW: Final = 64  # places of removed items that are not worth clearing away


class AgeingQueue(Generic[_T]):
    """A queue in which one who waits ``ageing_s`` counts as one priority higher.

    All age equally fast. So who goes before whom never changes, and a heap keeps the order: of two, the one goes first
    whose ``priority - arrival / ageing_s`` is greater; of equals, the one that came first.

    Args:
        ageing_s: in seconds, above 0.
    """

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._heap: list[tuple[float, int]] = []  # of numbers; that of a removed item stays for a while
        self._next = itertools.count()
        self._items: dict[int, _T] = {}  # by number: a removed item is released at once
        self._numbers: dict[_T, int] = {}

    def __len__(self) -> int:
        return len(self._items)

    def push(self, item: _T, priority: float, now_s: float) -> None:
        """Add an item.

        Args:
            item: hashable.
            priority: the higher, the sooner.
            now_s: when it arrives; never less than that of an earlier one.

        Raises:
            ValueError: it waits already.
        """
        if item in self._numbers:
            raise ValueError(f"{item!r:.80} waits already; remove it first")
        number = self._numbers[item] = next(self._next)
        self._items[number] = item
        heapq.heappush(self._heap, (now_s / self._ageing_s - priority, number))

    def pop(self) -> _T:
        """Take the first.

        Raises:
            IndexError: there is none.
        """
        while True:
            _, number = heapq.heappop(self._heap)
            if number in self._items:
                item = self._items.pop(number)
                del self._numbers[item]
                return item

    def remove(self, item: _T) -> bool:
        """Take one out. Returns whether it was there."""
        number = self._numbers.pop(item, None)
        if number is None:
            return False
        del self._items[number]
        if len(self._heap) > _FEW + 2 * len(self._items):
            self._heap = [each for each in self._heap if each[1] in self._items]
            heapq.heapify(self._heap)
        return True


class FairQueue(Generic[_T]):
    """The queues of several subjects. Each time it is the next one's turn, whatever priorities the others' items have:
    so nobody waits longer than one item of each other subject takes, and a priority is a matter among one's own.

    Args:
        ageing_s: of each queue; see :class:`AgeingQueue`.
    """

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._queues: OrderedDict[str, AgeingQueue[_T]] = OrderedDict()  # none is empty; whose turn it is is first
        self._subjects: dict[_T, str] = {}

    def __len__(self) -> int:
        return len(self._subjects)

    def push(self, item: _T, subject: str, priority: float, now_s: float) -> None:
        """Add an item.

        Args:
            item: hashable.
            subject: whose it is.
            priority: the higher, the sooner, among those of the subject.
            now_s: when it arrives; never less than that of an earlier one.

        Raises:
            ValueError: it waits already.
        """
        if item in self._subjects:
            raise ValueError(f"{item!r:.80} waits already; remove it first")
        queue = self._queues.get(subject)
        if queue is None:
            queue = self._queues[subject] = AgeingQueue(self._ageing_s)
        queue.push(item, priority, now_s)
        self._subjects[item] = subject

    def pop(self) -> _T:
        """Take the first of the subject whose turn it is.

        Raises:
            IndexError: there is none.
        """
        if not self._queues:
            raise IndexError("nothing waits")
        subject, queue = next(iter(self._queues.items()))
        item = queue.pop()
        del self._subjects[item]
        self._queues.move_to_end(subject)
        if not queue:
            del self._queues[subject]
        return item

    def remove(self, item: _T) -> bool:
        """Take one out. Returns whether it was there."""
        subject = self._subjects.pop(item, None)
        if subject is None:
            return False
        queue = self._queues[subject]
        queue.remove(item)
        if not queue:
            del self._queues[subject]
        return True
