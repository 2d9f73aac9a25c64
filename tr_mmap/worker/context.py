"""The request context: what a handler says and asks about its request. Never sends a message.

A worker that handles one request at a time has one context, and every thread finds it. A worker that handles several at
once has one for each, which a context variable names: a task and ``asyncio.to_thread`` find it, and a thread that a
handler starts itself does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, TypeAlias

from ..channel.interface import Channel
from ..errors import RequestCancelled
from ..protocol.messages import Request
from ..transfer.interface import WorkerTransfer
from ..wire.messages import WITHDRAWN_TYPE
from .reply import Reply

__all__ = ["RequestContext", "current"]

current: ContextVar[RequestContext] = ContextVar("tr_mmap_request")  # where there are several at once
Logic: TypeAlias = Callable[[str, str], bool | None]
_REPORT_S: Final = 0.05  # the shortest time between two statuses that show progress
_NOT_BEGUN: Final = "the request was cancelled before its handler was called"
_Withdrawn: Final = type(WITHDRAWN_TYPE, (RequestCancelled,), {})


class RequestContext:
    """One request at a time, or what there is between two requests.

    Attributes:
        channel: that brought the request; None if somebody wrote it by hand, and before there is a session.
        transfer: of its tensors and results; None before there is a session.
        reply: what the handler has said so far; None if there is no request. The fast path sets it.
        main_logic: handles the request.
        named_logic: handles one with arguments by name.
        request: the request; None if there is none. The fast path sets it.
        order: how many requests the controller had sent to this worker before; None for the one that was taken last.
        is_abandoned: the worker ends without waiting for the handler.
    """

    __slots__ = (
        "__weakref__",
        "_due_s",
        "_is_cancelled",
        "channel",
        "is_abandoned",
        "main_logic",
        "named_logic",
        "order",
        "reply",
        "request",
        "transfer",
    )

    def __init__(self, main_logic: Logic, named_logic: Logic) -> None:
        self.main_logic, self.named_logic = main_logic, named_logic
        self.channel: Channel | None = None
        self.transfer: WorkerTransfer | None = None
        self.reply: Reply | None = None
        self.request: Request | None = None
        self.order: int | None = None
        self.is_abandoned = False
        self._is_cancelled = False
        self._due_s = 0.0

    def check_wanted(self) -> None:
        """To be called before the handler is.

        Raises:
            RequestCancelled: nobody waits for its answer; or, with the name of another class, another worker has the
                request.
        """
        channel = self.channel
        if channel is not None and (order := self._place(channel)) >= 0 and channel.is_withdrawn(order):
            raise _Withdrawn(_NOT_BEGUN)
        if self.is_cancelled():
            raise RequestCancelled(_NOT_BEGUN)

    def _place(self, channel: Channel) -> int:
        return channel.requests_taken - 1 if self.order is None else self.order

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more. Once so, it stays so."""
        channel = self.channel
        if self.is_abandoned or self._is_cancelled:
            return True
        if channel is None:
            return False
        order = self._place(channel)
        is_cancelled = order >= 0 and channel.is_cancelled(order)
        if self.order is not None:  # else this context has another request soon
            self._is_cancelled = is_cancelled
        return is_cancelled

    def is_report_due(self) -> bool:
        """Whether the status was not written for a while. Then it is written now."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return False
        self._due_s = now_s + _REPORT_S
        return True
