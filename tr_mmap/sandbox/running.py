"""The runs that go on, by the ids of their requests, so that another thread can cancel one. Starts none."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from .errors import DeadlineExceeded, RunCancelled
from .interface import ComputeRequest

__all__ = ["Run", "Runs", "cancelled", "deadline_exceeded"]


class _Killable(Protocol):
    def kill(self) -> None:
        """End it, and wait for its end."""
        ...


def deadline_exceeded(deadline_s: float, when: str) -> DeadlineExceeded:
    """The error for a request that has not ended in time."""
    return DeadlineExceeded(
        f"the request's deadline came {when}; give it a later one, as deadline_s=time.monotonic() + 60",
        limit="deadline_s",
        value=deadline_s,
    )


def cancelled(request: ComputeRequest) -> RunCancelled:
    """The error for a run that somebody has ended."""
    return RunCancelled(f"the run {request.id!r} was cancelled, and its process ended", request_id=request.id)


class Run:
    """One run of a request. It has several processes, one after the other, if they are killed from outside.

    Args:
        request: None for a run that cannot be cancelled: the check of an algorithm.
    """

    def __init__(self, request: ComputeRequest | None = None) -> None:
        self._request = request
        self._lock = threading.Lock()
        self._process: _Killable | None = None
        self._is_cancelled = False
        self.deadline_s = request.deadline_s if request is not None else None

    def enter(self, process: _Killable) -> None:
        """From now until :meth:`leave`, a cancellation kills this process.

        Raises:
            RunCancelled: the run was cancelled before.
            DeadlineExceeded: its deadline is over.
        """
        with self._lock:
            self.check()
            self._process = process

    def leave(self) -> None:
        """From now on a cancellation does not touch the process, whose descriptors may be closed.

        Raises:
            RunCancelled: the run was cancelled meanwhile.
        """
        with self._lock:
            self._process = None
            self.check_cancelled()

    @property
    def is_registered(self) -> bool:
        """Whether its algorithm is still registered."""
        return self._request is None or not self._request.is_unregistered

    def check(self) -> None:
        """Raise if the run must not go on.

        Raises:
            RunCancelled: it was cancelled.
            DeadlineExceeded: its deadline is over.
        """
        self.check_cancelled()
        if self.deadline_s is not None and time.monotonic() >= self.deadline_s:
            raise deadline_exceeded(self.deadline_s, "before its turn")

    def check_cancelled(self) -> None:
        """Raise if the run was cancelled.

        Raises:
            RunCancelled: it was.
        """
        if self._request is not None and (self._is_cancelled or self._request.is_cancelled):
            raise cancelled(self._request)

    def cancel(self) -> None:
        """Cancel the run: it raises RunCancelled, at once or before it begins. Any thread may call this."""
        with self._lock:
            self._is_cancelled = True
            if self._process is not None:
                self._process.kill()


class Runs:
    """The runs of one executor. Threads may use it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}

    def begin(self, request: ComputeRequest) -> Run:
        """Begin a run of a request; it is listed until :meth:`end`.

        Raises:
            ValueError: another run has the same id.
        """
        run = Run(request)
        with self._lock:
            if request.id in self._runs:
                raise ValueError(f"a run of the id {request.id!r} goes on; give each request an id of its own")
            self._runs[request.id] = run
        return run

    def end(self, request: ComputeRequest) -> None:
        """Remove a run that has ended."""
        with self._lock:
            del self._runs[request.id]

    def cancel(self, request_id: str) -> bool:
        """Cancel a run; returns whether there was one."""
        with self._lock:
            run = self._runs.get(request_id)
        if run is None:
            return False
        run.cancel()
        return True
