"""Runs that go on, by the ids of their requests, so that another thread can end one. Starts none."""

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
    """One run of a request, in one process after the other if something outside ends them.

    Args:
        request: None for a run that nobody can name, as the check of an algorithm is.
    """

    def __init__(self, request: ComputeRequest | None = None) -> None:
        self._request = request
        self._lock = threading.Lock()
        self._process: _Killable | None = None
        self._is_cancelled = False
        self.deadline_s = request.deadline_s if request is not None else None

    def enter(self, process: _Killable) -> None:
        """Let this process be ended when the run is cancelled, until :meth:`leave`.

        Raises:
            RunCancelled: it was, before.
            DeadlineExceeded: it comes too late.
        """
        with self._lock:
            self.check()
            self._process = process

    def leave(self) -> None:
        """From here on nobody signals the process, whose descriptor may be closed.

        Raises:
            RunCancelled: it was, meanwhile.
        """
        with self._lock:
            self._process = None
            self.check_cancelled()

    @property
    def is_registered(self) -> bool:
        """Whether nobody has unregistered its algorithm since the request was made."""
        return self._request is None or not self._request.is_unregistered

    def check(self) -> None:
        """
        Raises:
            RunCancelled: it was cancelled.
            DeadlineExceeded: it is too late for it.
        """
        self.check_cancelled()
        if self.deadline_s is not None and time.monotonic() >= self.deadline_s:
            raise deadline_exceeded(self.deadline_s, "before its turn")

    def check_cancelled(self) -> None:
        """
        Raises:
            RunCancelled: it was cancelled.
        """
        if self._request is not None and (self._is_cancelled or self._request.is_cancelled):
            raise cancelled(self._request)

    def cancel(self) -> None:
        """Let it raise RunCancelled, now or before it begins. Any thread may call it."""
        with self._lock:
            self._is_cancelled = True
            if self._process is not None:
                self._process.kill()


class Runs:
    """Those of one executor. Threads may use it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}

    def begin(self, request: ComputeRequest) -> Run:
        """A run of a request, until :meth:`end`.

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
        """A run goes on no more."""
        with self._lock:
            del self._runs[request.id]

    def cancel(self, request_id: str) -> bool:
        """End a run; returns whether there was one."""
        with self._lock:
            run = self._runs.get(request_id)
        if run is None:
            return False
        run.cancel()
        return True
