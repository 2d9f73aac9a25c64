"""A queue of runs that wait for a free thread, the highest priority first. Knows no executors."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from .errors import SandboxBroken
from .running import deadline_exceeded

__all__ = ["WaitingRuns", "closed"]

_T = TypeVar("_T")


def closed() -> SandboxBroken:
    """The error for a run of a sandbox that was closed."""
    return SandboxBroken("the sandbox was closed; make a new one")


class WaitingRuns(Generic[_T]):
    """A queue, and threads that empty it; they start when they are first needed.

    Args:
        max_workers: how many run at once.

    Raises:
        TypeError: ``max_workers`` is not a whole number.
        ValueError: ``max_workers`` is below 1.
    """

    def __init__(self, max_workers: int) -> None:
        if not isinstance(max_workers, int):
            raise TypeError(f"max_workers is a whole number, and {max_workers!r:.80} is none")
        if max_workers < 1:
            raise ValueError(f"max_workers={max_workers}: nothing would ever run; give 1 or more")
        self._max_workers = max_workers
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._deadlines = threading.Condition(lock)  # notified of a new deadline, and when the queue is closed
        self._watcher: threading.Thread | None = None  # runs while a run with a deadline waits
        self._queue: list[tuple[int, int, float | None, Future[_T], Callable[[], _T]]] = []
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._is_closed = False

    def submit(self, run: Callable[[], _T], priority: int, deadline_s: float | None) -> Future[_T]:
        """Queue a run.

        Args:
            run: a function that does the run.
            priority: the highest comes first; of the same priority, the first that was queued.
            deadline_s: a moment by ``time.monotonic``: a run that still waits then gets DeadlineExceeded.

        Raises:
            SandboxBroken: the queue was closed.
        """
        future: Future[_T] = Future()
        with self._changed:
            if self._is_closed:
                raise closed()
            heapq.heappush(self._queue, (-priority, next(self._numbers), deadline_s, future, run))
            # A thread counts as idle until it wakes, so each run that is queued already may be for an idle thread.
            if len(self._queue) > self._idle and len(self._threads) < self._max_workers:
                thread = threading.Thread(target=self._work, name="tr_mmap-sandbox", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()
            if deadline_s is not None:
                self._deadlines.notify()
                if self._watcher is None:
                    self._watcher = threading.Thread(target=self._watch, name="tr_mmap-deadlines", daemon=True)
                    self._watcher.start()
        return future

    def close(self) -> None:
        """Cancel the runs that wait, and wait for those that have begun. Idempotent."""
        self.end()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def end(self) -> None:
        """Cancel the runs that wait. Idempotent."""
        with self._changed:
            self._is_closed = True
            waiting, self._queue = self._queue, []
            self._changed.notify_all()
            self._deadlines.notify()
        for *_, future, _run in waiting:
            future.cancel()

    def _watch(self) -> None:
        """End runs that still wait at their deadline. The thread ends when no run with a deadline waits."""
        while True:
            with self._changed:
                now_s = time.monotonic()
                late = [each for each in self._queue if each[2] is not None and each[2] <= now_s]
                if late:
                    self._queue = [each for each in self._queue if each[2] is None or each[2] > now_s]
                    heapq.heapify(self._queue)
                else:
                    ends_s = [each[2] for each in self._queue if each[2] is not None]
                    if not ends_s:
                        self._watcher = None
                        return
                    self._deadlines.wait(min(min(ends_s) - now_s, threading.TIMEOUT_MAX))
            while late:
                _, _, deadline_s, future, run = late.pop()
                if future.set_running_or_notify_cancel():
                    future.set_exception(deadline_exceeded(deadline_s or 0.0, "before its turn"))
                del future, run

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._queue or self._is_closed)
                self._idle -= 1
                if not self._queue:
                    return
                _, _, deadline_s, future, run = heapq.heappop(self._queue)
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if deadline_s is not None and time.monotonic() > deadline_s:
                    raise deadline_exceeded(deadline_s, "before its turn")
                result = run()
            except BaseException as error:
                future.set_exception(error)
                del error
            else:
                future.set_result(result)
                del result
            del future, run
