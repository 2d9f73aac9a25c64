"""Many timers with one delay, most of which are cancelled: a queue in order of time, and one timer of the event loop.

A timer of the event loop costs ten microseconds, because the loop keeps its timers in a heap. With one delay for all,
the order in which they were added is their order in time, and a timer costs less than a microsecond.
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
        loop: the event loop; only its thread may use this object.
        delay_s: from :meth:`add` to the call, in seconds.
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
        """Call what is due, and look again when the next call is due."""
        waiting, now_s = self._waiting, self._loop.time()
        while waiting and (waiting[0].call is None or waiting[0].due_s <= now_s):
            call = waiting.popleft().call
            if call is not None:
                self._loop.call_soon(call)  # the loop reports what it raises, and the others are called
        self._is_set = bool(waiting)
        if waiting:
            self._loop.call_at(waiting[0].due_s, self._look)
