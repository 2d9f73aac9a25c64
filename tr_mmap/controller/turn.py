"""Which thread may have a request under way. Knows nothing of requests.

A turn is taken and given back by plain stores to an attribute. The interpreter runs a signal handler, and switches
threads, only after a call or at the end of a loop's pass. So no handler and no other thread sees half a step, and an
exception that a handler raises cannot come between the store and the ``try`` that gives the turn back. A lock would
have to be acquired by a call, after which an exception may come.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from ..base.wakes import Wakes
from ..native import TurnWords

__all__ = ["Turn", "get_ident"]

get_ident = threading.get_ident

_SLICE_S = 0.05  # a waiter looks again after so long, in case the one that gave the turn back could not wake it


class _Waiter:
    __slots__ = ("is_waiting", "thread")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.is_waiting = True


class Turn(TurnWords):
    """The right to have a request under way. Threads get it in the order in which they asked.

    A signal handler may come while its own thread waits in the queue. It takes that thread's place, and goes first: the
    thread cannot go on before the handler has returned.

    Use it so; the thread that has the turn may come here again, in a signal handler::

        me = get_ident()
        is_nested = turn.owner == me
        try:
            if not is_nested:
                if turn.owner or turn.queue:
                    turn.wait(deadline_s, is_in_vain)  # has the turn then, if it returns True
                else:
                    turn.owner = me
            ...
        finally:
            if not is_nested and turn.owner == me:
                turn.owner = 0
            if turn.queue or turn.on_free is not None:
                turn.wake()

    Attributes:
        owner: identifies the thread that has the turn; 0 if none has it.
        queue: those that wait for it.
        on_free: called once when the turn is given back; None for nothing.
    """

    __slots__ = ("_changed",)

    def __init__(self) -> None:
        super().__init__()
        self.queue: deque[_Waiter] = deque()
        self._changed = Wakes()

    def wait(self, deadline_s: float, is_in_vain: Callable[[], bool]) -> bool:
        """Wait for the turn and take it, until the monotonic clock says ``deadline_s``. Returns whether it has it.

        A child that a signal handler forks meanwhile does not get it: the thread that has it is not there.

        Args:
            deadline_s: until when to wait.
            is_in_vain: tells whether the thread needs the turn no more; :meth:`wake` lets it look.
        """
        me, own_pid = get_ident(), os.getpid()
        waiter = _Waiter(me)
        try:
            self.queue.append(waiter)
            while True:
                while self.queue and not self.queue[0].is_waiting:  # it gave up, and could not leave the queue
                    self.queue.popleft()
                if self._is_free_for(me):
                    self.owner = me
                    return True
                remaining_s = deadline_s - time.monotonic()
                if remaining_s <= 0 or os.getpid() != own_pid or is_in_vain():
                    return False
                self._changed.wait(min(remaining_s, _SLICE_S), lambda: self._is_free_for(me) or is_in_vain())
        finally:
            waiter.is_waiting = False
            try:
                self.queue.remove(waiter)
            except ValueError:
                pass  # another thread has done it
            if self.queue:
                self.wake()

    def _is_free_for(self, thread: int) -> bool:
        return not self.owner and self.queue[0].thread == thread

    def wake(self) -> None:
        """Let the waiters look, after the turn was given back."""
        self._changed.wake()
        on_free = self.on_free
        if on_free is not None and not self.owner:
            self.on_free = None
            on_free()
