"""A request of a pool, from its submission to its outcome, and its attempts. Sends nothing: the dispatcher does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..controller.pending import Pending
from ..controller.progress import OnProgress
from ..controller.results import Result
from ..errors import WorkerDied
from ..protocol.commands import UserMessage

if TYPE_CHECKING:
    from .worker import Worker

__all__ = ["Attempt", "FutureTask", "Hub", "PoolFuture", "Task"]

_log = logging.getLogger("tr_mmap")

_WANTED: Final = ("PENDING", "CANCELLED")  # before anybody was told; states of the standard library's futures
_RUNNING: Final = "RUNNING"
_CANCELLED: Final = "CANCELLED_AND_NOTIFIED"


class Hub(Protocol):
    """The dispatcher, as tasks see it."""

    def settled(self, attempt: Attempt, outcome: Result | Exception) -> None:
        """An attempt has its outcome. Any thread may say so."""

    def is_current_thread(self) -> bool:
        """Whether the caller is the dispatcher's own thread."""

    def check_wait(self) -> None:
        """Refuse to wait for a result where it would never come."""

    def kill_running(self, task: Task) -> None:
        """End the worker that runs a task."""


class Attempt:
    """One attempt to have a task done: a request to one worker.

    Attributes:
        worker: that has the request.
        task: that it is for.
        pending: the request.
        began_s: when its handler was seen to run, by the monotonic clock; 0 if that was not seen.
        was_begun: whether its handler may have been called; known once the attempt has failed.
        is_unwanted: it was to be cancelled.
        was_to_be_withdrawn: its worker may answer that it has not begun it.
        is_withdrawn: another worker gets the request, and what is answered to this attempt counts for nothing.
    """

    __slots__ = (
        "_hub",
        "_is_settled",
        "began_s",
        "deadline_s",
        "is_unwanted",
        "is_withdrawn",
        "pending",
        "task",
        "timeout_s",
        "was_begun",
        "was_to_be_withdrawn",
        "worker",
    )

    def __init__(self, hub: Hub, worker: Worker, task: Task, pending: Pending, deadline_s: float) -> None:
        self._hub = hub
        self._is_settled = False
        self.worker = worker
        self.task = task
        self.pending = pending
        self.deadline_s = deadline_s
        self.timeout_s = deadline_s
        self.began_s = 0.0
        self.was_begun = True
        self.is_unwanted = self.is_withdrawn = self.was_to_be_withdrawn = False

    def settle(self, outcome: Result | Exception) -> None:
        """There is a result, or an error; what is said later than the first counts for nothing."""
        if self._is_settled:
            return
        self._is_settled = True
        if isinstance(outcome, WorkerDied):
            self.was_begun = self.worker.has_begun(self)
        if self.was_begun:
            self.worker.has_served = True
        self._hub.settled(self, outcome)

    def is_running(self) -> bool:
        """Whether the worker has given it to its handler, and has not answered."""
        return not self._is_settled and self.worker.is_running(self)

    def cancel(self) -> bool:
        """Withdraw it. Returns whether its handler was not called, and will not be."""
        self.is_unwanted = True  # first: the answer to it may come at once
        return not self._is_settled and self.worker.cancel(self)

    def can_be_withdrawn(self) -> bool:
        """Whether it may be worth a :meth:`withdraw`: it waits for its worker, and nobody has tried."""
        return not (self.was_to_be_withdrawn or self.is_unwanted or self._is_settled or self.is_running())

    def withdraw(self) -> bool:
        """Take it back for another worker. Returns whether its handler was not called, and will not be."""
        self.was_to_be_withdrawn = True
        return self.worker.withdraw(self)


class Task:
    """One request, or a batch of them.

    Args:
        message: the command, and words for it.
        tensors: its other arguments.
        framework: of the result's tensors.
        limit_s: how long a handler may run, in seconds; infinity for no limit.
        retries: how often it may be tried again when a worker dies.
        on_progress: is told how far it is; None for nobody.

    Attributes:
        attempt: the present one; None while it waits for a worker.
        attempts: how many workers have begun it.
        count: how many requests it stands for.
        home: the worker in whose memory its arguments lie; None if there is none.
        was_taken_back: a worker had room for it before.
    """

    count = 1
    is_batch = False
    __slots__ = (
        "attempt",
        "attempts",
        "framework",
        "home",
        "limit_s",
        "message",
        "on_progress",
        "retries",
        "tensors",
        "was_taken_back",
    )

    def __init__(
        self,
        message: UserMessage,
        tensors: tuple[Any, ...],
        framework: str,
        limit_s: float,
        retries: int,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.message = message
        self.tensors = tensors
        self.framework = framework
        self.limit_s = limit_s
        self.retries = retries
        self.on_progress = on_progress
        self.attempt: Attempt | None = None
        self.attempts = 0
        self.home: Worker | None = None
        self.was_taken_back = False

    def begin(self) -> bool:
        """A worker is about to get it. Returns False if nobody wants it any more."""
        raise NotImplementedError

    def wait_again(self) -> None:
        """It waits for another worker."""
        self.attempt = None

    def take_back(self, attempt: Attempt) -> bool:
        """Let it wait for another worker than that of its present attempt, if that has not begun it."""
        return attempt.withdraw() and self._note_taken_back(attempt)

    def _note_taken_back(self, attempt: Attempt) -> bool:
        if attempt.is_unwanted:  # it is being cancelled, and its answer will say so
            return False
        attempt.is_withdrawn = self.was_taken_back = True
        self.wait_again()
        return True

    def finish(self, result: Result) -> None:
        """There is a result."""
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """There will be no result."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Nobody wants it any more."""
        raise NotImplementedError

    def split(self) -> list[Task]:
        """Those of which a batch consists."""
        return [self]


class FutureTask(Task):
    """A task whose outcome is a future's.

    Args:
        hub: the dispatcher.
        shape: what the result is to its caller.
        arguments: those of :class:`Task`.
    """

    __slots__ = ("_shape", "future", "is_waiting")

    def __init__(self, hub: Hub, shape: Callable[[Result], Any], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._shape = shape
        self.is_waiting = True
        self.future: PoolFuture | None = PoolFuture(hub, self)  # None once that has its outcome: no cycle keeps that

    def begin(self) -> bool:
        future = self.future
        if future is None:
            return False
        with future._condition:
            self.is_waiting = False
            if future._state == _RUNNING:  # it was tried before
                return True
            # The program may have given it a result: then nobody wants that of a worker.
            is_wanted = future._state in _WANTED and future.set_running_or_notify_cancel()
        if not is_wanted:
            self._release()
        return is_wanted

    def wait_again(self) -> None:
        self.is_waiting = True  # first: else it could not be cancelled for a moment
        super().wait_again()

    def take_back(self, attempt: Attempt) -> bool:
        future, is_withdrawn = self.future, attempt.withdraw()
        if future is None or not is_withdrawn:
            return False
        with future._condition:  # of two that want it, the second one learns of the first
            return self._note_taken_back(attempt)

    def finish(self, result: Result) -> None:
        future = self.future
        if future is None:
            return
        try:
            value = self._shape(result)
        except Exception as error:  # what it means cannot be read: that is the outcome
            self.fail(error)
            return
        self._release()
        try:
            future.set_result(value)
        except InvalidStateError:
            pass  # it was cancelled meanwhile

    def fail(self, error: BaseException) -> None:
        future = self.future
        if future is None:
            return
        self._release()
        try:
            future.set_exception(error)
        except InvalidStateError:
            pass

    def cancel(self) -> None:
        future = self.future
        if future is not None and not future.cancel():
            future.note_cancelled()
        self._release()

    def _release(self) -> None:
        self.tensors = ()
        self.future = None
        self.attempt = None


class PoolFuture(Future[Any]):
    """The result of one request to a pool; made by ``SessionPool.submit``.

    Callbacks run in the pool's own thread. So they should be short; they may submit requests, but not wait for results.
    """

    def __init__(self, hub: Hub, task: FutureTask) -> None:
        super().__init__()
        self._hub = hub
        self._task: FutureTask = task

    def cancel(self, *, kill_running: bool = False) -> bool:
        """Cancel the request.

        Args:
            kill_running: if a handler has been called already, end its worker, which is replaced. Without it, the
                handler may notice the wish (``server.cancelled()``); then its answer cancels the future.

        Returns:
            Whether it is cancelled now. False if its handler has been called, or if it is done.
        """
        if super().cancel():
            with self._condition:
                if self._state == "CANCELLED":
                    self.set_running_or_notify_cancel()  # for those that wait for several futures
            if kill_running and (attempt := self._task.attempt) is not None and attempt.is_running():
                self._hub.kill_running(self._task)  # an exception has come before the last call could say so
            return True
        if self.done():
            return False
        while True:
            attempt = self._task.attempt
            # Not under the lock: a signal handler that runs meanwhile may wait for another request of the pool.
            is_not_begun = attempt is not None and attempt.cancel()
            with self._condition:
                if attempt is None:
                    is_not_begun = self._task.is_waiting
                elif attempt.is_withdrawn:
                    continue  # it waits for another worker now, or has one
                is_cancelled = is_not_begun and self._state == _RUNNING
                if is_cancelled:
                    self._store_cancelled()
            break
        if is_cancelled:
            self._invoke_callbacks()
            return True
        if kill_running and not self.done():
            if not self.note_cancelled():
                return self.cancelled()
            self._hub.kill_running(self._task)
            return True
        return self.cancelled()

    def note_cancelled(self) -> bool:
        """Let a future that a worker has be cancelled. Returns whether it is."""
        with self._condition:
            if self._state != _RUNNING:
                return self.cancelled()
            self._store_cancelled()
        self._invoke_callbacks()
        return True

    def _invoke_callbacks(self) -> None:
        for callback in self._done_callbacks:  # type: ignore[attr-defined] # as the standard library's does
            try:
                callback(self)
            except BaseException:  # SystemExit, say, would end the pool's thread
                _log.exception("a callback of a pool's future has failed; the pool goes on")

    def _store_cancelled(self) -> None:
        self._state = _CANCELLED
        for waiter in self._waiters:
            waiter.add_cancelled(self)
        self._condition.notify_all()

    def running(self) -> bool:
        """Whether a worker's handler has been called, and has not answered."""
        attempt = self._task.attempt
        return not self.done() and attempt is not None and attempt.is_running()

    def result(self, timeout: float | None = None) -> Any:
        """The result, as ``SessionPool.calculate`` returns it.

        Args:
            timeout: seconds to wait; None for no limit.

        Raises:
            TimeoutError: it is not there in that time; the request goes on.
            RemoteError, WorkerDied: there is none.
            CancelledError: the request was cancelled.
            RuntimeError: this is a callback, in the pool's own thread, which would wait for itself.
            SessionNotStarted: this process is a forked child.
        """
        self._check_thread()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What :meth:`result` would raise; None if it would return."""
        self._check_thread()
        return super().exception(timeout)

    def _check_thread(self) -> None:
        if not self.done():
            self._hub.check_wait()
