"""Wakes threads that wait for news. Holds no lock, so an interrupt can leave none held."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["Wakes"]


class Wakes:
    """Where threads wait until another thread wakes them.

    A signal handler may raise between any two steps of either side. Then a wake may be lost, so a waiter must look
    again after some time. No thread ever waits in :meth:`wake`.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: deque[threading.Lock] = deque()  # each is locked, and only its own waiter waits for it

    def wait(self, timeout_s: float, is_over: Callable[[], bool]) -> None:
        """Wait for the next :meth:`wake`, or until the time is over; not at all if ``is_over`` says so.

        Args:
            timeout_s: how long to wait at most, in seconds.
            is_over: asked once, when a wake can no longer be missed.
        """
        waiter = threading.Lock()
        waiter.acquire()
        try:
            self._waiters.append(waiter)
            if not is_over():
                waiter.acquire(timeout=max(0.0, timeout_s))
        finally:
            try:
                self._waiters.remove(waiter)
            except (ValueError, IndexError):
                pass  # it was woken

    def wake(self) -> None:
        """Wake all that wait now."""
        try:
            for _ in range(len(self._waiters)):  # not those that come meanwhile
                self._waiters.popleft().release()
        except IndexError:
            pass  # a waiter has left meanwhile
