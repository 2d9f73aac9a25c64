"""One worker of a pool: a session, and a state that only moves forward. Decides nothing.

::

    starting ──> ready ──> retiring ──> dead
        └──────────┴────────────────────^

A worker that is ``starting`` has no requests yet. It becomes ``ready`` with its first answer, which also says that it
has all tags that were broadcast. One that is ``retiring`` gets no more requests, and ends after its last answer.
``dead`` means that its process has ended, or is about to be killed: what it had goes to others.
"""

from __future__ import annotations

import enum
import math
import signal
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..controller.futures import Futures
from ..controller.session import PythonSession
from ..errors import WorkerDied
from ..native import copy
from ..processes.identity import send_signal
from ..tsr.dtypes import DType
from .stats import PoolWorkerStats
from .tasks import Attempt, Task

if TYPE_CHECKING:
    from ..controller.worker_handle import WorkerHandle

__all__ = ["State", "Worker"]


class State(enum.StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    RETIRING = "retiring"
    DEAD = "dead"


_NEXT: Final = {
    State.STARTING: {State.READY, State.RETIRING, State.DEAD},
    State.READY: {State.RETIRING, State.DEAD},
    State.RETIRING: {State.DEAD},
    State.DEAD: set(),
}


class Worker:
    """One worker.

    Args:
        session: of its own; not started yet.
        generation: how often the script had changed when the worker was made.
        most: how many requests it may answer in its life; infinity for any number.
        start_deadline_s: when it has to be ready, by the monotonic clock.

    Attributes:
        state: see the module's docstring. Only :meth:`advance` changes it.
        fd: can be read when answers may have come; None before it was started, or if there is no such descriptor.
        in_flight: its requests, in the order of sending; also those that were taken back, until it has said so.
        left: how many requests it may still get.
        done: how many it has answered.
        tags: the version of each tag that was broadcast to it.
        culprit: the request for which the pool has ended it; None if there is none.
        ended_for: what that request had done.
        death: why it could not be started; None if it could.
        mark_s: when its present request was begun, as far as the dispatcher has seen.
        retire_by_s: when it is killed if it has not ended by itself.
        is_asked_to_exit: it was, or it is killed.
        was_ready: it has been ready once.
        ready_s: since when, by the monotonic clock.
        has_served: it has begun a request.
        is_short: its budget is used up: it gets no tensors before its next answer.
    """

    def __init__(self, session: PythonSession[Any], generation: int, most: float, start_deadline_s: float) -> None:
        self.session = session
        self.generation = generation
        self.start_deadline_s = start_deadline_s
        self.state = State.STARTING
        self.fd: int | None = None
        self.in_flight: dict[Attempt, None] = {}
        self.left = most
        self.done = 0
        self.tags: dict[str, int] = {}
        self.culprit: Task | None = None
        self.ended_for = ""
        self.death: Exception | None = None
        self.mark_s = 0.0
        self.retire_by_s = math.inf
        self.is_asked_to_exit = False
        self.was_ready = self.has_served = self.is_short = False
        self.ready_s = 0.0
        self._futures: Futures | None = None
        self._handle: WorkerHandle | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.session.session_id()} {self.state}, {len(self.in_flight)} in flight>"

    def advance(self, state: State) -> None:
        """Move on to another state."""
        if state not in _NEXT[self.state]:
            raise AssertionError(f"a worker that is {self.state} does not become {state}")
        if state is State.READY:
            self.was_ready, self.ready_s = True, time.monotonic()
        self.state = state

    def note_started(self) -> None:
        """Its session was started."""
        self._futures = self.session._open_futures()
        self._handle = self.session._worker_or_none()

    @property
    def futures(self) -> Futures:
        """The requests of its session."""
        assert self._futures is not None  # note_started() comes first
        return self._futures

    def attempts(self) -> list[Attempt]:
        """What is in flight and was not taken back."""
        return [each for each in list(self.in_flight) if not each.is_withdrawn]

    def place_of_loans(self) -> str:
        """The directory of its loans' memory, if all workers of this process read that; else "". Any thread.

        Raises:
            SessionNotStarted: it has ended.
        """
        return getattr(self.session._open().transfer, "pool_directory", "")

    def loaned_copy(self, dtype: DType, source: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A copy of an array in shared memory, which costs nothing to send. Any thread.

        Args:
            dtype: of the copy.
            source: its elements, in unsigned integers if numpy does not know the dtype.

        Raises:
            SessionNotStarted: it has ended.
            OutOfSpace, SystemLimit: no room.
        """
        transfer = self.session._open().transfer
        quick = transfer.quick_loan(source.shape, dtype.name, "numpy")
        loan: np.ndarray[Any, Any] = transfer.empty(source.shape, dtype.name, "numpy") if quick is None else quick
        copy(loan.reshape(-1).view(np.uint8), 0, source, True)  # no view may be left when it is sent
        return loan

    def start_error(self) -> Exception:
        """Why it counts as a start that has failed."""
        what = "it had begun a request" if self.was_ready else "it was ready"
        return self.death or WorkerDied(f"a worker ended before {what}", exit_code=None, log_tail="")

    @property
    def is_started(self) -> bool:
        """Whether its session was started."""
        return self._futures is not None

    def is_over(self) -> bool:
        """Whether its process has ended, or serves no more."""
        return self._handle is None or self._handle.is_over()

    def kill(self, grace_s: float, dump_s: float = 0.0) -> None:
        """End its process and every process that this one has started: SIGTERM, so many seconds, SIGKILL.

        Before that, it has ``dump_s`` seconds to write where its threads are.
        """
        if self._handle is not None:
            self._handle.process.terminate_tree(grace_s, dump_s)
            self._handle.channel.wake()

    def ask_to_end(self) -> None:
        """Send its process SIGTERM, and do not wait."""
        if self._handle is not None:
            send_signal(self._handle.process.identity, signal.SIGTERM)

    def has_begun(self, attempt: Attempt) -> bool:
        """Whether the handler of a request may have been called; asked when the worker has died."""
        handle = self._handle  # to withdraw a request from a dead worker changes nothing, and tells
        return handle is None or not handle.channel.cancel(attempt.pending.order - handle.sent_before)

    def is_running(self, attempt: Attempt) -> bool:
        """Whether the handler of a request was called, and has not answered."""
        return self.futures.is_running(attempt)

    def cancel(self, attempt: Attempt) -> bool:
        """Withdraw a request. Returns whether its handler was not called, and will not be."""
        return self.futures.cancel(attempt)

    def withdraw(self, attempt: Attempt) -> bool:
        """Take a request back. Returns as :meth:`cancel` does; a handler that was called does not learn of it."""
        return self.futures.withdraw(attempt)

    def stats(self) -> PoolWorkerStats:
        """What it does."""
        pid = None if self._handle is None else self._handle.process.pid
        return PoolWorkerStats(self.session.session_id(), pid, self.state.value, len(self.attempts()), self.done)
