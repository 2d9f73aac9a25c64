"""Many timers of one delay, of which most are cancelled: a list in the order of their time, and one timer of the loop.

A timer of a loop takes it ten microseconds, a heap's work and several calls; one of these takes less than one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["Delay", "Delayed"]


class Delayed:
    """A call that is to come. Set ``call`` to None to cancel it."""

    __slots__ = ("call", "due_s")

    def __init__(self, call: Callable[[], object], due_s: float) -> None:
        self.call: Callable[[], object] | None = call
        self.due_s = due_s


class Delay:
    """Calls functions in the thread of a loop, each some time after it was added.

    Args:
        loop: whose thread uses it.
        delay_s: the same for all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        self._loop = loop
        self._delay_s = delay_s
        self._waiting: deque[Delayed] = deque()
        self._is_set = False

    def add(self, call: Callable[[], object]) -> Delayed:
        """Call a function once the delay is over."""
        added = Delayed(call, self._loop.time() + self._delay_s)
        self._waiting.append(added)
        if not self._is_set:
            self._is_set = True
            self._loop.call_at(added.due_s, self._look)
        return added

    def _look(self) -> None:
        """Call what is due; from the first that is not on, look again when it is."""
        waiting, now_s = self._waiting, self._loop.time()
        while waiting and (waiting[0].call is None or waiting[0].due_s <= now_s):
            call = waiting.popleft().call
            if call is not None:
                self._loop.call_soon(call)  # whatever it raises is the loop's to tell, and the others are called
        self._is_set = bool(waiting)
        if waiting:
            self._loop.call_at(waiting[0].due_s, self._look)
