"""Requests whose results come later: ``PythonSession.submit``. Never starts or ends a worker but to kill what it runs.

Whoever waits in ``result()`` consumes answers itself, if no other thread does. Else a thread of the session does, which
begins with the first future and sleeps while there is none: so ``concurrent.futures.wait``, ``as_completed`` and
``asyncio.wrap_future`` work with nobody in ``result()``.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED
from typing import Any, Final

from ..base.background import Background
from ..errors import TRException
from .dispatcher import Dispatcher
from .options import shown_ms
from .pending import Pending, command_of
from .results import Result

__all__ = ["Futures", "RequestFuture"]

_DONE: Final = (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)


class RequestFuture(Future[Any]):
    """The result of one request.

    Attributes:
        pending: the request.
    """

    def __init__(self, futures: Futures, pending: Pending, shape: Callable[[Result], Any], deadline_s: float) -> None:
        super().__init__()
        self._futures = futures
        self._shape = shape
        self._deadline_s = deadline_s
        self.pending = pending

    def _on_done(self, pending: Pending) -> None:
        """There is an outcome. Runs in the thread that has consumed the answer."""
        self._futures.leave(self)
        if self._state in _DONE:
            return
        outcome = pending.outcome
        if isinstance(outcome, Exception):
            self.set_exception(outcome)
            return
        try:
            result = self._shape(outcome)
        except Exception as error:
            self.set_exception(error)
        else:
            self.set_result(result)

    def result(self, timeout: float | None = None) -> Any:
        """The result.

        Args:
            timeout: seconds to wait; None for the request's own time.

        Raises:
            TimeoutError: it is not there in that time; the request goes on.
            RemoteError, ResponseTimeout, WorkerDied: there is none.
            CancelledError: the request was cancelled.
        """
        deadline_s = math.inf if timeout is None else time.monotonic() + timeout
        self._futures.consume_for(self, deadline_s)
        return super().result(None if timeout is None else max(0.0, deadline_s - time.monotonic()))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What :meth:`result` would raise; None if it would return."""
        deadline_s = math.inf if timeout is None else time.monotonic() + timeout
        self._futures.consume_for(self, deadline_s)
        return super().exception(None if timeout is None else max(0.0, deadline_s - time.monotonic()))

    def is_over(self, now_s: float) -> bool:
        """Whether the request's own time is over."""
        return now_s >= self._deadline_s
