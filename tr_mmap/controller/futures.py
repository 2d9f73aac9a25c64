"""Requests whose results come later. Sends and consumes nothing itself: ``flow.py`` and ``answers.py`` do.

Whoever waits in ``result()`` consumes answers, if no other thread does. Else a thread of the session's does: it begins
with the first future, and sleeps on the bell, so that ``concurrent.futures.wait``, ``as_completed`` and
``asyncio.wrap_future`` work with nobody in ``result()``. While nothing is in flight, nothing wakes it. A program whose
own loop sleeps on the bell (``PythonSession.fileno``) has no such thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from ..base import system
from ..base.background import Background
from ..channel.interface import Channel
from ..errors import SystemLimit
from ..protocol.commands import UserMessage
from .dispatcher import Dispatcher
from .pending import Pending
from .progress import OnProgress
from .results import Result
from .worker_handle import WorkerHandle

__all__ = ["LOOK_S", "Awaited", "Futures"]

_log = logging.getLogger("tr_mmap")
LOOK_S: Final = 1.0  # how often to look while something is in flight: a ring may be lost
_RETURN_S: Final = 0.02  # how often to return from a wait on a channel that has no bell
_YIELD_S: Final = 0.001  # how long the thread leaves the answers to callers that wait for some themselves


_A = TypeVar("_A", bound="Awaited")


class Awaited(Protocol):
    """A request whose result somebody waits for.

    Attributes:
        pending: the request.
        deadline_s: when its time is over, by the monotonic clock.
        timeout_s: what the user said.
    """

    pending: Pending
    deadline_s: float
    timeout_s: float

    def settle(self, outcome: Result | Exception) -> None:
        """There is a result, or an error. May be called again, and does nothing then."""


class Futures:
    """The requests of one session whose results come later.

    Args:
        dispatcher: of the session.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._resources = dispatcher.resources
        self._awaited: dict[Pending, Awaited] = {}
        self._thread: Background | None = None
        self._beginning = threading.RLock()
        self.has_own_loop = False  # the program's loop calls process()
        self._sleeps_until_s = math.inf  # when the thread looks at the requests' times again
        self._waits = 0  # how often a caller has waited for a result itself
        self._waits_seen = 0  # when the thread last looked

    def send(
        self,
        message: UserMessage,
        tensors: tuple[Any, ...],
        timeout_s: float,
        framework: str | None,
        make: Callable[[Pending, float], _A],
        on_progress: OnProgress | None = None,
        *,
        is_quiet: bool = False,
    ) -> _A:
        """Send a request, and see to it that its result reaches the one who waits for it.

        Args:
            message: the command, and words for it.
            tensors: for this request only.
            timeout_s: how long this may take in all, in seconds.
            framework: of the result's tensors; None to receive none.
            make: of the request and its deadline, what waits for the result.
            on_progress: is told how far the request is; None for nobody.
            is_quiet: whether the worker need not be woken: the caller calls :meth:`ring` soon.

        Raises:
            BadMessage, UnsupportedTensor, OutOfSpace, SessionNotStarted, WorkerDied: it was not sent.
            Busy: too many are in flight, and the session does not wait.
            ResponseTimeout: too many are in flight, and it has waited for too long.
        """
        pending = Pending(message, framework)
        deadline_s = time.monotonic() + timeout_s
        awaited = make(pending, deadline_s)
        if self._thread is None and not self.has_own_loop:
            self._begin()  # before anything is sent: the system may have no thread left
        pending.on_done = self._on_done
        try:
            self._awaited[pending] = awaited
            if on_progress is not None:
                self._dispatcher.progress.add(pending, on_progress)
            self._dispatcher.send(pending, tensors, deadline_s, timeout_s, is_quiet=is_quiet)
        except BaseException:
            self._awaited.pop(pending, None)
            pending.on_done = None
            self._dispatcher.abandon(pending)
            raise
        if pending.outcome is not None:
            self._on_done(pending)
        elif not self.has_own_loop and min(deadline_s, time.monotonic() + LOOK_S) < self._sleeps_until_s:
            self._sleeps_until_s = 0.0  # it is about to look: one wake is enough
            self.wake()
        return awaited

    def ring(self) -> None:
        """Wake the worker, after requests that were sent quietly."""
        worker = self._resources.worker
        if worker is not None and not self._resources.is_foreign:
            worker.channel.ring()

    def _begin(self) -> None:
        with self._beginning:
            if self._thread is None:
                self._resources.stop_thread = self.stop
                self._thread = Background(self._run)

    def _on_done(self, pending: Pending) -> None:
        awaited = self._awaited.get(pending)
        if awaited is not None and pending.outcome is not None:
            awaited.settle(pending.outcome)
            self._awaited.pop(pending, None)

    def drop(self, awaited: Awaited) -> None:
        """Nobody waits for it any more; its answer is dropped when it comes."""
        self._awaited.pop(awaited.pending, None)
        awaited.pending.on_done = None
        self._dispatcher.abandon(awaited.pending)

    def cancel(self, awaited: Awaited) -> bool:
        """Cancel a request. Returns whether its handler had not been called, and now will not be."""
        channel, order = self._place_of(awaited)
        if channel is None:
            return False
        if channel.cancel(order):
            return awaited.pending.outcome is None
        channel.ring()  # the worker cancels a coroutine when it looks
        return False

    def withdraw(self, awaited: Awaited) -> bool:
        """Take a request back, to send it to another worker. Returns as :meth:`cancel` does."""
        channel, order = self._place_of(awaited)
        return channel is not None and channel.withdraw(order) and awaited.pending.outcome is None

    def is_running(self, awaited: Awaited) -> bool:
        """Whether the worker has given a request to its handler, and has not answered it."""
        channel, order = self._place_of(awaited)
        return channel is not None and channel.is_taken_up(order)

    def _place_of(self, awaited: Awaited) -> tuple[Channel | None, int]:
        """The channel to the worker that has a request, and how many were sent there before; None if it has none."""
        pending, worker = awaited.pending, self._resources.worker
        if pending.outcome is not None or worker is None or self._resources.is_foreign:
            return None, 0
        return worker.channel, pending.order - worker.sent_before

    def unanswered(self, awaited: Awaited, timeout_s: float) -> Exception:
        """The error for a request whose answer has not come in a time."""
        worker = self._resources.worker or self._dispatcher.worker()
        return self._dispatcher.unanswered(worker, awaited.pending, timeout_s)

    def worker_of(self, awaited: Awaited) -> WorkerHandle | None:
        """The worker that a request was sent to; None if it has ended."""
        worker = self._resources.worker
        return worker if worker is not None and awaited.pending.order >= worker.sent_before else None

    def consume_for(self, awaited: Awaited, deadline_s: float) -> None:
        """Consume answers, if no other thread does, until that to a request is there, or the time is over."""
        pending, worker = awaited.pending, self._resources.worker
        self._waits += 1
        if worker is not None and pending.outcome is None and not self._resources.is_foreign:
            until_s = min(deadline_s, awaited.deadline_s)
            self._dispatcher.consume_for(worker, pending, until_s)
        self._settle_what_is_over()

    def _settle_what_is_over(self) -> None:
        """Settle the requests that have an outcome, or whose worker has ended, or whose time is over."""
        dispatcher, worker = self._dispatcher, self._resources.worker
        if worker is not None and worker.is_over() and self._awaited:
            dispatcher.worker_died(worker)
        now_s = time.monotonic()
        for pending, awaited in list(self._awaited.items()):
            if pending.outcome is None and pending.seq and now_s >= awaited.deadline_s and worker is not None:
                dispatcher.look_last(worker, pending)
                error = dispatcher.unanswered(worker, pending, awaited.timeout_s) if pending.outcome is None else None
                if error is not None and pending.outcome is None:
                    awaited.settle(error)  # first: an exception may come before the next step
                    self.drop(awaited)
                    continue
            try:
                dispatcher.take_aside(pending)
            except SystemLimit:
                pass  # nothing is lost: another look follows
            if pending.outcome is not None:
                self._on_done(pending)  # the thread that has consumed its answer was interrupted

    # -- who consumes while nobody waits ------------------------------------------------------------------------------

    def process(self) -> None:
        """Consume the answers that are there, and let the bell ring for the next one."""
        bell = self._resources.bell
        if bell is not None:
            system.drain_fifo(bell)
        while True:
            self._dispatcher.poll(even_if_idle=True)
            if self._dispatcher.progress.is_on:
                self._dispatcher.progress.look()
            self._settle_what_is_over()
            worker = self._resources.worker
            if worker is None or not worker.channel.has_bell or not worker.channel.arm():
                return
            if self._dispatcher.calls_when_free(self.wake):  # another thread takes what is there
                return

    def use_own_loop(self) -> int | None:
        """Leave all to calls of :meth:`process`. Returns the bell's descriptor; None if there is none."""
        bell, worker = self._resources.bell, self._resources.worker
        if bell is None or (worker is not None and not worker.channel.has_bell):
            return None
        self.has_own_loop = True
        self.stop()
        self.process()
        return bell.fd

    def next_deadline_s(self) -> float:
        """When the first of the requests' times is over, by the monotonic clock; infinity for never."""
        return min((each.deadline_s for each in list(self._awaited.values())), default=math.inf)

    def wake(self) -> None:
        """Let the thread, or the program's loop, look."""
        bell, thread = self._resources.bell, self._thread
        if thread is not None:
            thread.wake()
        elif bell is not None:
            system.ring_fifo(bell)

    def _run(self, thread: Background) -> bool:
        while not thread.has_to_return:
            try:
                self._step(thread)
            except BaseException:  # a callback raises SystemExit, say; or the system is at a limit
                _log.exception("session %r: an answer could not be dealt with", self._resources.session_id)
                thread.sleep(LOOK_S)
        return False

    def _step(self, thread: Background) -> None:
        bell, worker = self._resources.bell, self._resources.worker
        while self._waits != self._waits_seen and not thread.has_to_return:  # those callers consume all answers
            self._waits_seen = self._waits
            thread.sleep(_YIELD_S)
        self.process()
        self._sleeps_until_s = math.inf  # before the look: a request that is sent after it wakes this thread
        if not self._awaited:
            thread.sleep(None, *([] if bell is None else [bell.fd]))
            return
        now_s = time.monotonic()
        self._sleeps_until_s = until_s = min(self.next_deadline_s(), now_s + LOOK_S)
        if bell is not None and (worker is None or worker.channel.has_bell):
            thread.sleep(max(0.0, until_s - now_s), bell.fd)
        elif worker is not None:
            self._dispatcher.consume_for(worker, None, min(until_s, now_s + _RETURN_S))

    def stop(self) -> None:
        """End the thread, if there is one."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()
