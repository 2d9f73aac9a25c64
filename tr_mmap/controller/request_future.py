"""The future that ``PythonSession.submit`` gives. Waits for nothing itself: ``futures.py`` does."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from operator import attrgetter
from threading import Condition
from typing import Any, Final, Protocol

from ..errors import RequestCancelled, TRException
from .futures import LOOK_S, Futures
from .pending import Pending
from .results import Result
from .worker_handle import WorkerHandle

__all__ = ["RequestFuture"]

_log = logging.getLogger("tr_mmap")
_PENDING: Final = "PENDING"  # states of the standard library's futures
_FINISHED: Final = "FINISHED"
_DONE: Final = frozenset({_FINISHED, "CANCELLED", "CANCELLED_AND_NOTIFIED"})


class Replacing(Protocol):
    """A session."""

    def _replace_worker(self, worker: WorkerHandle) -> None:
        """End a worker, and start another in its place."""


class _Condition(Condition):
    """A condition that a ``with`` statement enters and leaves without a step of Python's.

    After such a step a signal handler may raise, and then the lock would stay taken.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class _MadeWhenUsed:
    """The condition of a future: made when somebody waits for that future, or adds a callback."""

    def __get__(self, future: RequestFuture, owner: type[RequestFuture]) -> Condition:
        made: Condition = future.__dict__.setdefault("_condition", _Condition())
        return made


class RequestFuture(Future[Any]):
    """The result of one request; made by ``PythonSession.submit``.

    Callbacks run in the thread that consumes the answer: of the session, or of a caller that waits for another one. So
    they should be short.
    """

    # Whoever looks at the state makes the condition first, and settle() stores the state before it looks whether there
    # is one. So a result for which nobody waits yet needs no lock, and nobody misses it.
    _condition = _MadeWhenUsed()
    _is_unwanted = False  # cancel() was called
    _to_replace: tuple[Replacing, WorkerHandle] | None = None  # by a call of cancel() that has not ended

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
        if isinstance(outcome, RequestCancelled) and self._is_unwanted:
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
        if self._to_replace is None:
            if self.done():
                return self.cancelled()
            self._is_unwanted = True
            if self._futures.cancel(self):
                is_cancelled = self._note_cancelled()  # first: an exception may come before the next step
                self._futures.drop(self)
                return is_cancelled
            if not kill_running or self.done():
                return self.cancelled()
            owner, worker = self._owner, self._futures.worker_of(self)
            if owner is not None and worker is not None:
                self._to_replace = owner, worker
        # From here on a call that was interrupted is finished by the next one.
        if not self._note_cancelled():
            self._to_replace = None
            return False
        self._futures.drop(self)
        if self._to_replace is not None:
            owner, worker = self._to_replace
            owner._replace_worker(worker)
            self._to_replace = None
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
                self._done_soon(min(left_s, LOOK_S))
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
