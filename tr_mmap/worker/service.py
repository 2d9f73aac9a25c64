"""Requests of a worker, one at a time: takes each, has its handler called, sends the response. Connects to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..channel.interface import Channel, check_bounds
from ..errors import BadMessage, HostilePath, SystemLimit
from ..protocol.legacy import decode_legacy_request
from ..protocol.messages import Failure, FailureKind, Request, Response, decode_request, now_ms
from ..protocol.status import Status
from ..transfer.interface import WorkerTransfer
from ..transfer.kinds import Views
from ..wire.messages import EXIT_COMMAND, RELEASE_COMMAND
from .attach import Attachment
from .forked import end_child
from .life import WorkerLife
from .reply import Reply, failure_of
from .stop_signals import Stop
from .traces import is_a

__all__ = ["RequestService"]

_ENDING: Final = (SystemExit, Stop)  # whatever else a handler raises is an error of its request


class RequestService(WorkerLife):
    """The part of ``TechRenaissanceServer`` that answers requests. Its docstring has the arguments."""

    def __init__(self, debug: bool, views: Views | None) -> None:
        super().__init__(debug, views)
        self._reply: Reply | None = None  # of the current request

    def main_logic(self, command: str, parameters: str) -> bool | None:
        """Handle one request. Users override this.

        Args:
            command: the request's command.
            parameters: its other words, as one text.

        Returns:
            False if the command is unknown, True if not. None means True if the handler has set a text or sent tensors,
            and else False.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define main_logic(command, parameters)")

    def process_request(self) -> bool:
        """Wait for the next request and answer it.

        Returns:
            True if it has answered one; False, without one, when the worker must end.

        Raises:
            SessionNotStarted: the server does not run, or this is a forked child of the worker.
        """
        if self.is_foreign:
            self._refuse_in_child()
        channel = self._channel or self._open_channel()
        attachment = self._attachment
        assert attachment is not None
        if self._is_stopping:
            return False
        self._requests_until_look -= 1
        if self._requests_until_look <= 0:
            self._look_at_log()
        if self._fast_path is not None:
            left = self._fast_path.serve(self)
            if left is True:
                return True
            if left is not None:
                request, reply, is_known, error = left
                failure = self._failure_of(error, reply)
                del left, error  # and the traceback, whose frames hold views
                self._finish(channel, attachment.transfer, request, reply, is_known, failure)
                return True
        while not self._is_stopping:
            if self._process_slowly(channel, attachment):
                return True
        return False

    def _process_slowly(self, channel: Channel, attachment: Attachment) -> bool:
        """Wait for what comes next. Returns whether that was a request, which has its answer now."""
        self._responder.repeat_status(channel)
        by_hand = channel.take_by_hand()
        if by_hand is not None:
            return self._serve_by_hand(channel, attachment, by_hand)
        try:
            raw = channel.receive(None, lambda: self._has_to_stop() or channel.has_by_hand())
            if raw is None:
                self._is_stopping = self._has_to_stop()  # else a request by hand has come
                return False
            request = (decode_legacy_request if channel.may_carry_legacy else decode_request)(raw)
        except SystemLimit as error:  # no descriptor is left, say: the request stays, to be read later
            self._pause(error)
            return False
        except (BadMessage, HostilePath) as error:
            if isinstance(error, HostilePath) and channel.has_message():
                self._pause(error)  # a directory in place of the message: none can come until it is gone
                return False
            self.debug_message(error)
            failure = failure_of(error)
            failure.kind = FailureKind.BAD_INPUT
            self._advance_status(channel, Status.ERROR, failure.message)
            answering = attachment.legacy_side()[0] if channel.may_carry_legacy else channel
            answering.reply_unreadable(failure)
            return True
        if request.command == EXIT_COMMAND:
            self._is_stopping = True
            return False
        if request.command == RELEASE_COMMAND:
            self._release_memory(channel, attachment.transfer, request)
        elif request.seq:
            self._serve(channel, attachment.transfer, request)
        else:
            self._serve(*attachment.legacy_side(), request)
        return True

    def _serve(
        self,
        channel: Channel,
        transfer: WorkerTransfer,
        request: Request,
        send: Callable[[Response], None] | None = None,
    ) -> None:
        """Answer a request that took the slow path; through ``send`` if it is not the controller's."""
        channel.touch()
        self._advance_status(channel, Status.BUSY)
        transfer.consumed(channel.responses_consumed())
        transfer.begin(request)
        self._transfer = transfer
        reply = self._reply = Reply()
        is_known: bool | None = None
        raised: BaseException | None = None
        try:
            is_known = self.main_logic(request.command, request.parameters)
        except BaseException as error:
            raised = error
        finally:
            self._reply = None
        failure = self._failure_of(raised, reply)
        del raised  # and the traceback, whose frames hold views
        self._finish(channel, transfer, request, reply, is_known, failure, send)

    def _release_memory(self, channel: Channel, transfer: WorkerTransfer, request: Request) -> None:
        """Answer the controller's request that this side give up what it keeps for later results."""
        transfer.consumed(channel.responses_consumed())
        transfer.begin(request)
        transfer.release_free()
        transfer.end(request, True)
        # The status stays that of the last request.
        channel.send(Response(request.seq, request.command, timestamp=now_ms()))

    def _serve_by_hand(self, channel: Channel, attachment: Attachment, raw: bytes) -> bool:
        """Answer a request that somebody wrote by hand into a file of the channel. False if it is the one to exit."""
        try:
            request = decode_legacy_request(check_bounds(raw))
        except BadMessage as error:
            self.debug_message(error)
            failure = Failure(FailureKind.BAD_INPUT, type(error).__name__, str(error))
            channel.reply_by_hand(Response(result="error", error=failure))
            return True
        if request.command == EXIT_COMMAND:
            self._is_stopping = True
            return False
        transfer = attachment.transfer_by_hand()
        # Its words only: the numbers, tensors and tags of requests are the controller's.
        plain = Request(command=request.command, parameters=request.parameters, timestamp=request.timestamp)
        fast_path, self._fast_path = self._fast_path, None  # it would find the controller's tags
        try:
            self._serve(channel, transfer, plain, channel.reply_by_hand)
        finally:
            self._transfer, self._fast_path = attachment.transfer, fast_path
        return True

    def _failure_of(self, error: BaseException | None, reply: Reply) -> Failure | None:
        """The failure for what a handler raised; None if it returned. Raises what ends the worker, and ends a child."""
        if self.is_foreign:
            end_child(error)
        if error is None:
            return None
        if is_a(error, *_ENDING):
            raise error
        return failure_of(error, reply)

    def _finish(
        self,
        channel: Channel,
        transfer: WorkerTransfer,
        request: Request,
        reply: Reply,
        is_known: bool | None,
        failure: Failure | None,
        send: Callable[[Response], None] | None = None,
    ) -> None:
        """Send the response to a request.

        Args:
            channel: to send it on.
            transfer: of the request's tensors and results.
            request: the request.
            reply: what the handler said.
            is_known: what the handler returned; if None, it knew the command if it has said anything.
            failure: how the handler failed; None if it did not.
            send: sends the response; None for the channel's own way.
        """
        has_replied = reply.result is not None or bool(transfer.results)
        try:
            is_unknown = failure is None and not (has_replied if is_known is None else is_known)
        except BaseException as error:  # main_logic returned an array, say, which is neither true nor false
            is_unknown, failure = False, self._failure_of(error, reply)
        if is_unknown:
            failure = Failure(FailureKind.UNKNOWN_COMMAND, "UnknownCommand", self.describe_unknown(request.command))
        self._responder.respond(channel, transfer, request, reply, failure, send)

    def describe_unknown(self, command: str) -> str:
        """The message of the failure for an unknown command."""
        return f"the worker knows no command {command[:80]!r}"
