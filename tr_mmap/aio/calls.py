"""A request of an asyncio session while it is awaited. Sends nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from ..controller.futures import Futures
from ..controller.pending import Pending
from ..controller.results import Result
from ..errors import TRException

__all__ = ["Call", "Waiter"]


class Waiter(asyncio.Future[bool]):
    """Waits until one more request may be in flight: True then, False if its time is over.

    Args:
        loop: the session's.
        deadline_s: when that is, by the monotonic clock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, deadline_s: float) -> None:
        super().__init__(loop=loop)
        self.deadline_s = deadline_s


class Call(asyncio.Future[Any]):
    """The result of one request, as its session's loop sees it. To cancel it cancels the request.

    Args:
        futures: of the session.
        loop: the session's.
        thread: in which that runs.
        timeout_s: what the user said.
        shape: what the result is to its caller.
        pending: the request.
        deadline_s: when its time is over, by the monotonic clock.

    Attributes:
        on_end: called once, in the loop, when it is done; None for nothing.
    """

    def __init__(
        self,
        futures: Futures,
        loop: asyncio.AbstractEventLoop,
        thread: int,
        timeout_s: float,
        shape: Callable[[Result], Any],
        pending: Pending,
        deadline_s: float,
    ) -> None:
        super().__init__(loop=loop)
        self._futures = futures
        self._thread = thread
        self._shape = shape
        self.pending = pending
        self.deadline_s = deadline_s
        self.timeout_s = timeout_s
        self.on_end: Callable[[], None] | None = None

    def settle(self, outcome: Result | Exception) -> None:
        """There is a result, or an error. A thread that is not the loop's leaves it to the loop."""
        if threading.get_ident() == self._thread:
            self._settle(outcome)
            return
        try:
            self.get_loop().call_soon_threadsafe(self._settle, outcome)
        except RuntimeError:
            pass  # the loop is closed: nobody awaits this any more

    def _settle(self, outcome: Result | Exception) -> None:
        if self.done():
            return
        if isinstance(outcome, Exception):
            self.set_exception(outcome)
        else:
            try:
                result = self._shape(outcome)
            except TRException as error:
                self.set_exception(error)
            else:
                self.set_result(result)
        self._ended()

    def _ended(self) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the request; its answer is dropped when it comes."""
        if self.done():
            return False
        self._futures.cancel(self)
        self._futures.drop(self)
        is_cancelled = super().cancel(msg)
        self._ended()
        return is_cancelled
