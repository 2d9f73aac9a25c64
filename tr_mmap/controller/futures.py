"""Requests whose results come later. Sends and consumes nothing itself: ``flow.py`` and ``answers.py`` do.

Whoever waits in ``result()`` consumes answers, if no other thread does. Else a thread of the session's does: it begins
with the first future, and sleeps on the bell, so that ``concurrent.futures.wait``, ``as_completed`` and
``asyncio.wrap_future`` work with nobody in ``result()``. While nothing is in flight, nothing wakes it. A program whose
own loop sleeps on the bell (``PythonSession.fileno``) has no such thread.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from threading import Condition
from typing import Any, Final, Protocol, TypeVar

from ..base import system
from ..base.background import Background
from ..errors import RequestCancelled, SystemLimit, TRException
from ..protocol.commands import UserMessage
from .dispatcher import Dispatcher
from .pending import Pending
from .progress import OnProgress
from .results import Result
from .worker_handle import WorkerHandle

__all__ = ["Awaited", "Futures", "RequestFuture"]

_log = logging.getLogger("tr_mmap")
_LOOK_S: Final = 1.0  # how often to look while something is in flight: a ring may be lost
_RETURN_S: Final = 0.02  # how often to return from a wait on a channel that has no bell
_YIELD_S: Final = 0.001  # how long the thread leaves the answers to callers that wait for some themselves
_PENDING: Final = "PENDING"  # states of the standard library's futures
_FINISHED: Final = "FINISHED"
_DONE: Final = frozenset({_FINISHED, "CANCELLED", "CANCELLED_AND_NOTIFIED"})


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


class Replacing(Protocol):
    """A session."""

    def _replace_worker(self, worker: WorkerHandle) -> None:
        """End a worker, and start another in its place."""


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
        elif not self.has_own_loop:
            if self._thread is None:
                self._begin()
            elif min(deadline_s, time.monotonic() + _LOOK_S) < self._sleeps_until_s:
                self._sleeps_until_s = 0.0  # it is about to look: one wake is enough
                self.wake()
        return awaited

    def ring(self) -> None:
        """Wake the worker, after requests that were sent quietly."""
        worker = self._resources.worker
        if worker is not None and not self._resources.is_foreign:
            worker.channel.ring()

    def _begin(self) -> None:
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
        pending, worker = awaited.pending, self._resources.worker
        if pending.outcome is not None or worker is None or self._resources.is_foreign:
            return False
        if worker.channel.cancel(pending.order - worker.sent_before):
            return pending.outcome is None
        worker.channel.ring()  # the worker cancels a coroutine when it looks
        return False

    def is_running(self, awaited: Awaited) -> bool:
        """Whether the worker has given a request to its handler, and has not answered it."""
        pending, worker = awaited.pending, self._resources.worker
        if pending.outcome is not None or worker is None or self._resources.is_foreign:
            return False
        return worker.channel.is_taken_up(pending.order - worker.sent_before)

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
                    self.drop(awaited)
                    awaited.settle(error)
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
            self._dispatcher.poll()
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
            except BaseException:  # a callback raises SystemExit, say
                _log.exception("session %r: an answer could not be dealt with", self._resources.session_id)
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
        self._sleeps_until_s = until_s = min(self.next_deadline_s(), now_s + _LOOK_S)
        if bell is not None and (worker is None or worker.channel.has_bell):
            thread.sleep(max(0.0, until_s - now_s), bell.fd)
        elif worker is not None:
            self._dispatcher.consume_for(worker, None, min(until_s, now_s + _RETURN_S))

    def stop(self) -> None:
        """End the thread, if there is one."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()


class _MadeWhenUsed:
    """The condition of a future: made when somebody waits for that future, or adds a callback."""

    def __get__(self, future: RequestFuture, owner: type[RequestFuture]) -> Condition:
        made: Condition = future.__dict__.setdefault("_condition", Condition())
        return made


class RequestFuture(Future[Any]):
    """The result of one request; made by ``PythonSession.submit``.

    Callbacks run in the thread that consumes the answer: of the session, or of a caller that waits for another one. So
    they should be short.
    """

    # Whoever looks at the state makes the condition first, and settle() stores the state before it looks whether there
    # is one. So a result for which nobody waits yet needs no lock, and nobody misses it.
    _condition = _MadeWhenUsed()

    def __init__(
        self,
        futures: Futures,
        owner: Replacing,
        timeout_s: float,
        shape: Callable[[Result], Any],
        pending: Pending,
        deadline_s: float,
    ) -> None:
        # Those of the standard library's class, whose __init__ makes the condition.
        self._state = _PENDING
        self._result = self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self._futures = futures
        self._owner: Replacing | None = owner  # must live until there is a result
        self._shape = shape
        self.pending = pending
        self.deadline_s = deadline_s
        self.timeout_s = timeout_s

    def settle(self, outcome: Result | Exception) -> None:
        """There is a result, or an error."""
        if self._state in _DONE:
            return
        self._owner = None
        if outcome.__class__ is tuple:
            try:
                result = self._shape(outcome)
            except TRException as error:
                outcome = error
            else:
                if self._ends_with("result"):
                    self._set(result)
                return
        if isinstance(outcome, RequestCancelled):
            self._note_cancelled()
        elif self._ends_with("error"):
            try:
                self.set_exception(outcome)  # type: ignore[arg-type] # what is no result
            except InvalidStateError:
                pass  # another thread was faster

    def _ends_with(self, what: str) -> bool:
        """Whether it ends so: what is said first counts, by whatever thread. May be said again after an interrupt."""
        return bool(self.__dict__.setdefault("_end", what) == what)

    def _set(self, result: Any) -> None:
        self._result = result
        if "_condition" not in self.__dict__:
            self._state = _FINISHED
            if "_condition" not in self.__dict__:
                return
        with self._condition:
            if self.__dict__["_end"] == "told":
                return
            self._state, self.__dict__["_end"] = _FINISHED, "told"
            for waiter in self._waiters:
                waiter.add_result(self)
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined] # as set_result does

    def _note_cancelled(self) -> bool:
        is_cancelled = self._ends_with("cancelled") and super().cancel()
        if is_cancelled and self._state == "CANCELLED":
            self.set_running_or_notify_cancel()  # for those that wait for several futures
        return is_cancelled

    def done(self) -> bool:
        """Whether there is a result, or an error, or it was cancelled."""
        return self._state in _DONE

    def cancel(self, *, kill_running: bool = False) -> bool:
        """Cancel the request.

        Args:
            kill_running: if the worker's handler has been called already, end the worker, and start another one. Other
                requests of the session that are in flight fail with WorkerDied. Without it, a handler that has been
                called may notice the wish (``server.cancelled()``); then its answer cancels the future.

        Returns:
            Whether it is cancelled now. False if its handler has been called, or if it is done.
        """
        if self.done():
            return self.cancelled()
        if self._futures.cancel(self):
            self._futures.drop(self)
            return self._note_cancelled()
        if not kill_running or self.done():
            return self.cancelled()
        owner, worker = self._owner, self._futures.worker_of(self)
        if not self._note_cancelled():
            return False
        self._futures.drop(self)
        if owner is not None and worker is not None:
            owner._replace_worker(worker)
        return True

    def running(self) -> bool:
        """Whether the worker's handler has been called, and has not answered."""
        return not self.done() and self._futures.is_running(self)

    def _wait(self, timeout: float | None) -> float:
        """Consume answers until there is a result, or the time is over. Returns how long to wait then."""
        deadline_s = math.inf if timeout is None else time.monotonic() + timeout
        while not self.done():
            self._futures.consume_for(self, deadline_s)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return 0.0
            if not self.done():
                self._done_soon(min(left_s, _LOOK_S))
        return 0.0

    def _done_soon(self, timeout_s: float) -> None:
        """Wait a little: another thread settles it, or its worker has ended."""
        try:
            super().exception(timeout_s)
        except (TimeoutError, CancelledError):
            pass

    def result(self, timeout: float | None = None) -> Any:
        """The result, as ``calculate`` returns it.

        Args:
            timeout: seconds to wait; None for as long as the request's own ``timeout_ms`` lets it take.

        Raises:
            TimeoutError: it is not there in that time; the request goes on.
            RemoteError, ResponseTimeout, WorkerDied: there is none.
            CancelledError: the request was cancelled.
        """
        wait_s = 0.0 if self._state in _DONE else self._wait(timeout)
        if self._state == _FINISHED and self._exception is None:
            return self._result
        return super().result(wait_s)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What :meth:`result` would raise; None if it would return."""
        return super().exception(self._wait(timeout))
