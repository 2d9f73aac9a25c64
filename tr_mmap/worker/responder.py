"""Sends the response to a request, and the status before it. Never calls a handler, and receives nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from ..channel.interface import Channel
from ..errors import HostilePath, OutOfSpace, SystemLimit
from ..protocol.messages import Failure, Request, Response, now_ms
from ..protocol.status import TRANSITIONS, Status
from ..transfer.interface import WorkerTransfer
from ..wire.messages import DEFAULT_RESULT, MAX_DETAIL_CHARS
from .reply import Reply, failure_of
from .traces import plain_text

__all__ = ["RETRY_S", "Responder"]

RETRY_S: Final = 0.032  # how often to try again; the first rate of a channel of files


_SHORT_CHARS: Final = 1000  # of each text of a failure, so that it has room in a slot


def _shortened(failure: Failure) -> Failure:
    """A failure for which there is no room in the file system: what is said first of its message, and last of all."""
    return msgspec.structs.replace(
        failure, message=failure.message[:_SHORT_CHARS], traceback=failure.traceback[-_SHORT_CHARS:]
    )


class Responder:
    """Sends the responses of one worker, one after the other. Threads may use it at once.

    Args:
        has_to_stop: whether the worker must end, even if a response cannot be sent.

    Attributes:
        status: the last one that the slow path wrote.
        under_way: how many requests :meth:`begin` has counted that have no response yet.
        is_closed: no response is sent any more, because the worker ends.
    """

    def __init__(self, has_to_stop: Callable[[], bool]) -> None:
        self._has_to_stop = has_to_stop
        self._unwritten: tuple[Status, str] | None = None  # the last one, if there was no room for it
        self._lock = threading.RLock()  # reentrant, because a signal handler may write a status
        self.status = Status.STARTING
        self.under_way = 0
        self.is_closed = False

    def forked_in_child(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    def close(self) -> None:
        """Send no response any more. One that is being sent is sent first."""
        with self._lock:
            self.is_closed = True

    def begin(self, channel: Channel) -> None:
        """One more of several requests at once is under way: the worker is busy until the last of them is answered."""
        with self._lock:
            self.under_way += 1
            if self.under_way == 1:
                self.advance_status(channel, Status.BUSY)

    def advance_status(self, channel: Channel, status: Status, detail: str = "") -> None:
        """Write a status, if it may follow the last one; if not, the last one already says that the worker ends."""
        with self._lock:
            self._advance_status(channel, status, detail)

    def _advance_status(self, channel: Channel, status: Status, detail: str = "") -> None:
        if status in TRANSITIONS[self.status]:
            try:
                if channel.advance_status(status, detail):
                    self.status = status
                self._unwritten = None
            except (OutOfSpace, SystemLimit, HostilePath):  # in a channel of files
                self.status = status
                self._unwritten = status, detail

    def repeat_status(self, channel: Channel) -> None:
        """Write the last status once more, if it could not be written; there may be room for it now."""
        if self._unwritten is not None:
            self.advance_status(channel, *self._unwritten)

    def respond(
        self,
        channel: Channel,
        transfer: WorkerTransfer,
        request: Request,
        reply: Reply,
        failure: Failure | None,
        send: Callable[[Response], None] | None = None,
        *,
        is_counted: bool = False,
    ) -> None:
        """Send the response to a request.

        Args:
            channel: to send it on.
            transfer: of the request's tensors and results.
            request: the request.
            reply: what the handler said.
            failure: how the request failed; None if it did not.
            send: sends the response; None for the channel's own way.
            is_counted: :meth:`begin` has counted the request.
        """
        with self._lock:
            if is_counted:
                self.under_way -= 1
            if not self.is_closed:
                self._respond(channel, transfer, request, reply, failure, send)

    def _respond(
        self,
        channel: Channel,
        transfer: WorkerTransfer,
        request: Request,
        reply: Reply,
        failure: Failure | None,
        send: Callable[[Response], None] | None,
    ) -> None:
        command = reply.command or request.command
        result = "error" if failure is not None else DEFAULT_RESULT if reply.result is None else reply.result
        message = reply.message or reply.complaint
        form = reply.form if failure is None else ""
        tensors = transfer.end(request, failure is None)
        if self.under_way:
            if reply.has_shown:
                self.advance_status(channel, Status.BUSY)  # without what the request has said of itself
        elif failure is None:
            self.advance_status(channel, Status.OK)
        else:
            self.advance_status(channel, Status.ERROR, failure.message)
        order = channel.responses_sent
        try:
            (send or channel.send)(Response(request.seq, command, result, message, now_ms(), tensors, failure, form))
            transfer.responded(order)
        except Exception as error:  # too long, or no text, or no file for a spill: send this error instead
            transfer.withdraw()
            is_too_long = failure is not None and isinstance(error, OutOfSpace)
            failure = _shortened(failure) if failure is not None and is_too_long else failure_of(error)
            if not self.under_way:
                self.advance_status(channel, Status.ERROR, failure.message)
            command = plain_text(command[:MAX_DETAIL_CHARS]) or ""
            response = Response(seq=request.seq, command=command, timestamp=now_ms(), error=failure)
            if send is None:
                self._insist(channel, response)
            else:
                send(response)
        self.repeat_status(channel)

    def _insist(self, channel: Channel, response: Response) -> None:
        """Send a short response, as soon as there is room for it in the file system, and a descriptor."""
        while True:
            try:
                channel.send(response)
                return
            except (OutOfSpace, SystemLimit):
                if self._has_to_stop():
                    return
            time.sleep(RETRY_S)
            self.repeat_status(channel)
