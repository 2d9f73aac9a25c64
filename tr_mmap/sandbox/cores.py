"""Chooses the cores of contained processes that may use only some: those that the fewest of our others run on."""

from __future__ import annotations

import os
import threading
from collections import Counter

from ..base.fork_safety import at_fork

__all__ = ["Cores", "cores"]


class Cores:
    """The cores that this process may use, and how many contained processes run on each. Threads may use it at once."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start without any process; also in a forked child, where no thread can release the parent's lock."""
        self._lock = threading.Lock()
        self._running: Counter[int] = Counter()
        self._turn = 0

    def give(self, pid: int, count: int, former: tuple[int, ...]) -> tuple[int, ...]:
        """Let a process run on some cores; they count as taken until :meth:`take_back`.

        Args:
            pid: of the process, which is idle.
            count: how many cores; it gets fewer if this process has fewer.
            former: the cores that it had before; it keeps them if no others are better.
        """
        chosen = self._take(count, former)
        if chosen != former:
            try:
                _pin(pid, chosen)
            except BaseException:
                self.take_back(chosen)
                raise
        return chosen

    def take_back(self, chosen: tuple[int, ...]) -> None:
        """Count the cores of a process as free."""
        with self._lock:
            for each in chosen:
                self._running[each] -= 1

    def _take(self, count: int, former: tuple[int, ...]) -> tuple[int, ...]:
        allowed = os.sched_getaffinity(0)
        with self._lock:
            is_enough = len(former) == min(count, len(allowed)) and allowed.issuperset(former)
            if is_enough and (len(former) == len(allowed) or not any(map(self._running.__getitem__, former))):
                for each in former:  # no other cores are better
                    self._running[each] += 1
                return former
            usable = sorted(allowed)
            self._turn += 1
            turns = {core: (place - self._turn) % len(usable) for place, core in enumerate(usable)}
            usable.sort(key=lambda core: (self._running[core], core not in former, turns[core]))
            chosen = tuple(sorted(usable[:count]))
            self._running.update(chosen)
        return chosen


cores = Cores()
"""The cores of this process, which all its sandboxes share."""
at_fork(after_in_child=cores.begin)


def _pin(pid: int, chosen: tuple[int, ...]) -> None:
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(task), chosen)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
