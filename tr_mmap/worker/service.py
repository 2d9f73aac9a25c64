"""Requests of a worker: takes each, has its handler called, sends the response. Connects to nothing.

Usually the main thread does all that, one request at a time. A server with ``threads`` or with ``async def`` handlers
has several at once (see ``concurrency.py``), if its channel can carry several: then each has a context of its own, and
the main thread only takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..base import system
from ..channel.interface import Channel, check_bounds
from ..errors import BadMessage, HostilePath, RequestCancelled, SystemLimit
from ..protocol.legacy import decode_legacy_request
from ..protocol.messages import Failure, FailureKind, Request, Response, decode_request, now_ms
from ..protocol.status import Status
from ..transfer.interface import WorkerTransfer
from ..transfer.kinds import Device, Views
from ..wire.messages import EXIT_COMMAND, FORM_NAMED, RELEASE_COMMAND, RING_SLOTS
from .attach import Attachment
from .context import RequestContext, current
from .forked import end_child
from .life import WorkerLife
from .reply import Reply, failure_of
from .stop_signals import Stop
from .traces import is_a

if TYPE_CHECKING:
    from .concurrency import Concurrency, HandlerLoop

__all__ = ["RequestService"]

_ENDING: Final = (SystemExit, Stop)  # whatever else a handler raises is an error of its request
_MAX_THREADS: Final = RING_SLOTS - 2  # a controller has no more requests in flight


def _check_threads(threads: Any) -> None:
    """Refuse what is no number of threads.

    Raises:
        BadMessage: it is neither None nor a whole number from 1 to ``_MAX_THREADS``.
    """
    if threads is not None and (type(threads) is not int or not 1 <= threads <= _MAX_THREADS):
        raise BadMessage(
            f"threads is {threads!r:.80}; it is a whole number from 1 to {_MAX_THREADS}, or None for the main thread",
            detail="threads",
        )


class RequestService(WorkerLife):
    """The part of ``TechRenaissanceServer`` that answers requests. Its docstring has the arguments."""

    def __init__(
        self, debug: bool, views: Views | None, threads: int | None = None, device: Device | None = None
    ) -> None:
        self._shared = RequestContext(self.main_logic, self._named_logic)
        self._loop: HandlerLoop | None = None
        self._concurrency: Concurrency | None = None
        super().__init__(debug, views, device)
        _check_threads(threads)
        self._threads = threads

    def setup_session_dir(self, session_id: str | None = None) -> None:
        """Find the session and connect to it.

        Args:
            session_id: of the session, or its directory. If left out, what ``self.session_id`` says; else the first
                word of the command line.

        Raises:
            SessionNotStarted: there is no such session, or it has another worker, or none is named.
            HostilePath: another user can write to it.
            BadMessage: ``session_id`` is not valid, or the session's manifest is not.
        """
        super().setup_session_dir(session_id)
        self._shared.main_logic = self.main_logic
        channel = self._open_channel()
        if channel.capacity > 1 and (self._threads is not None or self._has_coroutines()):
            from .concurrency import Concurrency

            self._fast_path = None  # it handles one request at a time
            self._concurrency = Concurrency(
                self._threads, self._handler_loop(), self._answer, self._answer_in_loop, channel.wake
            )

    def _context(self) -> RequestContext:
        """The request at hand: of this thread or task if there may be several, else the only one.

        What each request calls has this line in itself, because a call takes a hundredth of a short request.
        """
        return self._shared if self._concurrency is None else current.get(self._shared)

    def _named_logic(self, command: str, parameters: str) -> bool | None:
        """Handle one request with arguments by name."""
        self._check_form(FORM_NAMED)
        return self.main_logic(command, parameters)

    def _check_form(self, form: str) -> None:  # noqa: ARG002 - Server takes one
        """Refuse a request whose parameters are no words.

        Raises:
            BadMessage: this worker cannot take the arguments.
        """
        self._refuse_form("this worker takes words and tensors, and no arguments by name; see tr_mmap.Server")

    def _refuse_form(self, why: str) -> None:
        error = BadMessage(why, detail="form")
        reply = self._context().reply
        if reply is not None:
            reply.bad_input = error
        raise error

    def _has_coroutines(self) -> bool:
        """Whether a handler is an ``async def``."""
        return False

    def _is_coroutine(self, command: str) -> bool:  # noqa: ARG002 - Server has some
        """Whether the command's handler is one, so that :meth:`_main_coroutine` handles it."""
        return False

    async def _main_coroutine(self, command: str, parameters: str) -> bool | None:
        """Handle one request as :meth:`main_logic` does, in the loop."""
        return self.main_logic(command, parameters)

    def _handler_loop(self) -> HandlerLoop:
        if self._loop is None:
            from .concurrency import HandlerLoop

            self._loop = HandlerLoop(self._loop_ended)
        return self._loop

    def _loop_ended(self, error: BaseException | None) -> None:
        if error is None:
            end_child(None)
        if self._concurrency is not None:
            self._concurrency.end(error)

    def _has_to_stop(self) -> bool:
        return (self._concurrency is not None and self._concurrency.error is not None) or super()._has_to_stop()

    def _end_requests(self) -> None:
        """Let the handlers that run answer their requests; not if a signal or a handler ends the worker."""
        concurrency = self._concurrency
        if concurrency is not None:
            if not self._has_signal:
                concurrency.wait_for_all(lambda: self._has_signal)
            concurrency.abandon()
            self._responder.close()
        if self._loop is not None:
            self._loop.close()

    def forked_in_child(self) -> None:
        super().forked_in_child()
        if self._concurrency is not None:
            self._responder.forked_in_child()
            transfer = self._context().transfer
            if transfer is not None:
                transfer.forked_in_child()
        if self._loop is not None:
            self._loop.forked_in_child()

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
            True if it has answered one, or has begun to handle it beside others; False, without one, when the worker
            must end.

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
            left = self._fast_path.serve(self._shared)
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
        if self._concurrency is not None and self._concurrency.error is not None:
            raise self._concurrency.error
        return False

    def _process_slowly(self, channel: Channel, attachment: Attachment) -> bool:
        """Wait for what comes next. Returns whether that was a request, which has its answer now."""
        self._responder.repeat_status(channel)
        concurrency = self._concurrency
        if concurrency is not None and not self._make_ready(channel, concurrency):
            return False
        by_hand = channel.take_by_hand()
        if by_hand is not None:
            return self._serve_by_hand(channel, attachment, by_hand)
        look = bool if concurrency is None else concurrency.look_for_cancels
        try:
            raw = channel.receive(None, lambda: self._has_to_stop() or channel.has_by_hand() or look())
            if raw is None or (concurrency is not None and self._is_stopping):  # as another thread has said
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

    def _make_ready(self, channel: Channel, concurrency: Concurrency) -> bool:
        """Wait until one more request can be handled. Returns False if the worker must end."""
        if channel.has_by_hand():
            concurrency.wait_for_all(self._has_to_stop)  # a request by hand is the only one
        elif not self._has_coroutines():  # else one whose handler needs no thread may be behind this one
            concurrency.wait_for_thread(lambda: self._has_to_stop() or channel.has_by_hand())
        self._is_stopping = self._is_stopping or self._has_to_stop()
        return not self._is_stopping

    def _serve(
        self,
        channel: Channel,
        transfer: WorkerTransfer,
        request: Request,
        send: Callable[[Response], None] | None = None,
    ) -> None:
        """Answer a request that took the slow path; through ``send`` if it is not the controller's."""
        channel.touch()
        transfer.consumed(channel.responses_consumed())
        concurrency = self._concurrency
        if concurrency is not None and send is None:
            context = RequestContext(self.main_logic, self._named_logic)
            context.channel, context.order = channel, channel.requests_taken - 1
            context.transfer, context.request = transfer.of_request(request), request
            self._responder.begin(channel)
            concurrency.start(context, is_coroutine=self._is_coroutine(request.command))
            return
        self._advance_status(channel, Status.BUSY)
        transfer.begin(request)
        context = self._shared
        context.channel, context.transfer, context.request = None if send else channel, transfer, request
        try:
            self._answer(context, send)
        finally:
            context.channel, context.request = channel, None

    def _answer(self, context: RequestContext, send: Callable[[Response], None] | None = None) -> None:
        """Call a request's handler, and send the response."""
        request = context.request
        assert request is not None
        is_known: bool | None = None
        raised: BaseException | None = None
        reply = context.reply = Reply()
        try:
            context.check_wanted()
            if request.form:
                self._check_form(request.form)
            is_known = self.main_logic(request.command, request.parameters)
        except BaseException as error:
            raised = error
        finally:
            context.reply = None
        failure = self._failure_of(raised, reply)
        del raised  # and the traceback, whose frames hold views
        self._conclude(context, request, reply, is_known, failure, send)

    async def _answer_in_loop(self, context: RequestContext) -> None:
        """The same for a handler that is a coroutine."""
        from asyncio import CancelledError

        request = context.request
        assert request is not None
        is_known: bool | None = None
        raised: BaseException | None = None
        reply = context.reply = Reply()
        try:
            context.check_wanted()
            if request.form:
                self._check_form(request.form)
            is_known = await self._main_coroutine(request.command, request.parameters)
        except BaseException as error:
            raised = RequestCancelled() if is_a(error, CancelledError) and context.is_cancelled() else error
        finally:
            context.reply = None
        failure = self._failure_of(raised, reply)
        del raised  # as above
        self._conclude(context, request, reply, is_known, failure)

    def _conclude(
        self,
        context: RequestContext,
        request: Request,
        reply: Reply,
        is_known: bool | None,
        failure: Failure | None,
        send: Callable[[Response], None] | None = None,
    ) -> None:
        channel, transfer = self._channel if context.channel is None else context.channel, context.transfer
        is_counted = context.order is not None
        if channel is not None and transfer is not None:  # else the worker has ended without this handler
            self._finish(channel, transfer, request, reply, is_known, failure, send, is_counted=is_counted)
        if is_counted and reply.has_shown and self._attachment is not None and self._attachment.progress is not None:
            self._attachment.progress.forget(request.seq)

    def _release_memory(self, channel: Channel, transfer: WorkerTransfer, request: Request) -> None:
        """Answer the controller's request that this side give up what it keeps for later results."""
        transfer.consumed(channel.responses_consumed())
        if self._concurrency is None:
            transfer.begin(request)
        else:
            transfer = transfer.of_request(request)
        transfer.release_free()
        system.return_freed_memory()  # a container counts it together with what lies in shared memory
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
        plain = Request(
            command=request.command, parameters=request.parameters, timestamp=request.timestamp, form=request.form
        )
        fast_path, self._fast_path = self._fast_path, None  # it would find the controller's tags
        try:
            self._serve(channel, transfer, plain, channel.reply_by_hand)
        finally:
            self._shared.transfer, self._fast_path = attachment.transfer, fast_path
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
        *,
        is_counted: bool = False,
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
            is_counted: the request is one of several at once.
        """
        has_replied = reply.result is not None or bool(transfer.results)
        try:
            is_unknown = failure is None and not (has_replied if is_known is None else is_known)
        except BaseException as error:  # main_logic returned an array, say, which is neither true nor false
            is_unknown, failure = False, self._failure_of(error, reply)
        if is_unknown:
            failure = Failure(FailureKind.UNKNOWN_COMMAND, "UnknownCommand", self.describe_unknown(request.command))
        self._responder.respond(channel, transfer, request, reply, failure, send, is_counted=is_counted)

    def describe_unknown(self, command: str) -> str:
        """The message of the failure for an unknown command."""
        return f"the worker knows no command {command[:80]!r}"
