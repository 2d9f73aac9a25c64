"""A thread that does what takes long, one job after the other. Knows no workers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from ..base.background import Background

__all__ = ["Jobs"]

_log = logging.getLogger("tr_mmap")


class Jobs:
    """Functions that are called one after the other, in a thread of their own.

    Args:
        on_done: called after each, in that thread.
    """

    def __init__(self, on_done: Callable[[], None]) -> None:
        self._on_done = on_done
        self._jobs: deque[Callable[[], None]] = deque()
        self._thread: Background | None = None

    def start(self) -> None:
        """Begin, if it has not begun. Any thread.

        Raises:
            SystemLimit: the system has no thread left.
        """
        if self._thread is None:
            made = Background(self._run)
            if self._thread is None:  # no call before the next line: a signal handler may have begun another one
                self._thread = made
        self._thread.wake()  # which does nothing before it is noted here

    def do(self, job: Callable[[], None], *, is_first: bool = False) -> None:
        """Have a function called soon, before all others or after them. Any thread."""
        if is_first:
            self._jobs.appendleft(job)
        else:
            self._jobs.append(job)
        if self._thread is not None:
            self._thread.wake()

    def stop(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.stop()

    def _run(self, thread: Background) -> bool:
        while self._thread is None and not thread.has_to_return:
            thread.sleep(None)
        if self._thread is not thread:  # another one was begun, or this one was interrupted by a fork
            return self._thread is not None
        while not thread.has_to_return:
            while self._jobs and not thread.has_to_return:
                job = self._jobs.popleft()
                try:
                    job()
                except Exception:  # whatever the system does: the other workers go on
                    _log.exception("a worker of a pool could not be started or ended")
                finally:
                    self._on_done()
            thread.sleep(None)
        return False
