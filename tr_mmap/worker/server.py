"""The worker's side: serve requests, one after another, until told to end or the controller is gone.

Never imports the controller's side, nor torch unless tensors are asked for in it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Container
from typing import Any, Final

from ..channel.authenticated import RejectionCounter
from ..channel.interface import Channel
from ..errors import BadMessage, HostilePath, MissingTag, OutOfSpace, SessionNotStarted, TRException
from ..native import WorkerFastPath
from ..processes.watch import PeerWatch
from ..protocol.commands import split_words
from ..protocol.messages import Failure, FailureKind, Request, Response, decode_request, now_ms
from ..protocol.status import TRANSITIONS, Status, parse_status
from ..transfer.interface import WorkerTransfer
from ..wire.messages import DEFAULT_RESULT, EXIT_COMMAND, MAX_DETAIL_CHARS
from .attach import Attachment, attach
from .fast_path import worker_fast_path
from .reply import Reply, failure_of, log, printable
from .stop_signals import Stop, stop_signals

__all__ = ["TechRenaissanceServer"]

_RETRY_S: Final = 0.032  # the rate at which a channel of files is looked at
_ORPHAN_GRACE_S: Final = 2.0  # how long a command may go on after the controller is gone


class TechRenaissanceServer:
    """A worker. Override :meth:`main_logic` and call :meth:`run`.

    Args:
        debug: whether :meth:`debug_message` prints.
        framework: what :meth:`get_tensors` gives, ``"torch"`` or ``"numpy"``.
    """

    def __init__(self, debug: bool = False, framework: str = "torch") -> None:
        self.debug = debug
        self.framework = framework
        self.session_dir = ""
        self._channel: Channel | None = None
        self._rejections = RejectionCounter()
        self._attachment: Attachment | None = None
        self._fast_path: WorkerFastPath | None = None
        self._transfer: WorkerTransfer | None = None  # of the current request
        self._watch: PeerWatch | None = None
        self._reply: Reply | None = None
        self._status = Status.STARTING  # the last one that we wrote, but for those of the fast path
        self._is_stopping = False
        self._is_orphan = False
        self._has_ended = threading.Event()

    # -- what users override and call -----------------------------------------------------------------------------

    def main_logic(self, command: str, parameters: str) -> bool | None:
        """Answer one request; False means that the command is unknown."""
        raise NotImplementedError(f"{type(self).__name__} does not define main_logic(command, parameters)")

    def get_tensors(self, parameters: str, count: int | None = None) -> list[Any] | None:
        """The tensors that a parameter text names.

        Args:
            parameters: tags, separated by spaces or commas.
            count: how many there must be; None for any number.

        Returns:
            They, in order; or None if one is missing or the count is wrong. The reason goes to the controller
            with the reply, unless the handler gives a message of its own.
        """
        found = self._quick_fetch(parameters)
        if found is not None and (count is None or len(found) == count):
            return found
        tags = split_words(parameters)
        if count is not None and len(tags) != count:
            self._complain(f"{count} tensors are needed, {len(tags)} are named: {parameters[:200]!r}")
            return None
        try:
            return [self._fetch(tag, self.framework) for tag in tags]
        except (MissingTag, LookupError) as error:
            self._complain(str(error))
            self.debug_message(error)
            return None

    def _complain(self, why: str) -> None:
        if self._reply is not None:
            self._reply.complaint = why

    def send_tensors(self, *tensors: Any) -> None:
        """Add tensors to the reply, in order.

        Raises:
            UnsupportedTensor: one is not a tensor that TSR can hold.
            OutOfSpace: no room.
        """
        if self._reply is None or self._transfer is None:
            raise SessionNotStarted("send_tensors answers a request, and there is none now")
        self._transfer.publish(tensors)

    def write_response(self, command: str, result: str, message: str = "") -> None:
        """Set the reply's text; with :meth:`send_tensors` in the same request it makes one response."""
        if self._reply is None:
            raise SessionNotStarted("write_response answers a request, and there is none now")
        self._reply.command = command
        self._reply.result = str(result)
        self._reply.message = message

    def write_status(self, text: str) -> None:
        """Tell the controller what goes on, ``"busy: epoch 3"`` say.

        ``exiting`` or ``terminated`` also ends the worker when this request is answered.

        Raises:
            BadMessage: the first word is no status, or one that cannot follow the last.
        """
        line = parse_status(text)
        channel = self._open_channel()
        if line.status not in TRANSITIONS[self._status]:
            now = Status.BUSY if self._reply is not None and self._status.is_waiting else self._status
            raise BadMessage(f"a worker that is {now} cannot become {line.status}", detail=text[:80])
        self._advance_status(channel, line.status, line.detail)
        channel.ring()
        if line.status.is_over:
            self._is_stopping = True

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32", framework: str | None = None) -> Any:
        """A loan: a tensor of undefined content in shared memory, which :meth:`send_tensors` need not copy.

        Args:
            shape: sizes in elements, outermost first.
            dtype: ``"float32"``, ``"bfloat16"``, … or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``; the server's own if left out.

        Raises:
            OutOfSpace: no room.
        """
        if self._transfer is None:
            raise SessionNotStarted("empty() lends memory of a session, and the server does not run yet")
        framework = framework or self.framework
        array = self._transfer.quick_loan(shape, dtype) if framework == "numpy" else None
        return self._transfer.empty(shape, dtype, framework) if array is None else array

    @property
    def rejected(self) -> int:
        """In a session with ``auth=True``: messages that were not the controller's, and were not obeyed."""
        return self._rejections.rejected

    def debug_message(self, *args: Any) -> None:
        """Print to the worker's log, if ``debug``."""
        if self.debug:
            log("[worker]", *args)

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self, session_id: str | None = None) -> None:
        """Serve until told to end. Returns when the session is over.

        Args:
            session_id: which session, or its directory; from the command line if left out.

        Raises:
            SessionNotStarted: there is no such session.
        """
        if session_id is None:
            if len(sys.argv) < 2:
                raise SessionNotStarted(f"usage: {sys.argv[0]} SESSION_ID_OR_DIRECTORY (a PythonSession starts it)")
            session_id = sys.argv[1]
        with stop_signals(self._stop_once):
            try:
                self.setup_session_dir(session_id)
                channel = self._open_channel()
                self._advance_status(channel, Status.READY)
                channel.ring()
                while self.should_continue():
                    self.process_request()
            except Stop:
                self.debug_message("asked to end by a signal")
            finally:
                self._is_stopping = True
                self.cleanup_session_dir()

    def should_continue(self) -> bool:
        """Whether to go on serving."""
        return not self._is_stopping

    def process_request(self) -> None:
        """Wait for the next request and answer it; returns without one when it is time to end."""
        channel = self._channel or self._open_channel()
        attachment = self._attachment
        assert attachment is not None
        if self._fast_path is not None:
            left = self._fast_path.serve(self)
            if left is True:
                return
            if left is not None:
                request, reply, is_known, error = left
                failure = None if error is None else failure_of(error)
                del left, error  # and the traceback, whose frames hold views
                self._finish(channel, attachment.transfer, request, reply, is_known, failure)
                return
        try:
            raw = channel.receive(None, self._has_to_stop)
            if raw is None:
                self._is_stopping = True
                return
            request = decode_request(raw)
        except (BadMessage, HostilePath) as error:
            if isinstance(error, HostilePath) and channel.has_message():
                raise  # a directory in the message's place: nothing else can come
            self.debug_message(error)
            self._advance_status(channel, Status.ERROR, str(error))
            channel.reply_unreadable(Failure(FailureKind.BAD_INPUT, type(error).__name__, str(error)))
            return
        if request.command == EXIT_COMMAND:
            self._is_stopping = True
        elif request.seq:
            self._serve(channel, attachment.transfer, request)
        else:
            self._serve(*attachment.legacy_side(), request)

    def _stop_once(self) -> bool:
        """A signal asks for the end; whether it is the first to do so."""
        is_first, self._is_stopping = not self._is_stopping, True
        return is_first

    def _has_to_stop(self) -> bool:
        channel = self._channel
        return self._is_stopping or self._is_orphan or channel is None or channel.is_exit_requested()

    def _advance_status(self, channel: Channel, status: Status, detail: str = "") -> None:
        """Write a status, if the protocol's table lets it follow; else the status already says that the worker ends."""
        if status in TRANSITIONS[self._status]:
            try:
                if channel.advance_status(status, detail):
                    self._status = status
            except OutOfSpace:
                self._status = status  # in a channel of files; the next status or the reply says more

    def _serve(self, channel: Channel, transfer: WorkerTransfer, request: Request) -> None:
        """Answer a request that took the slow path."""
        self._advance_status(channel, Status.BUSY)
        transfer.begin(request)
        self._transfer = transfer
        reply = self._reply = Reply()
        is_known: bool | None = None
        failure: Failure | None = None
        try:
            is_known = self.main_logic(request.command, request.parameters)
        except Exception as error:
            failure = failure_of(error)
        finally:
            self._reply = None
        self._finish(channel, transfer, request, reply, is_known, failure)

    def _finish(
        self,
        channel: Channel,
        transfer: WorkerTransfer,
        request: Request,
        reply: Reply,
        is_known: bool | None,
        failure: Failure | None,
    ) -> None:
        """Send the response to a request.

        Args:
            channel: where to.
            transfer: where its tensors are.
            request: what was asked.
            reply: what the handler said.
            is_known: what it returned; None if it forgot to, and then it knew the command if it said anything.
            failure: how the handler failed.
        """
        has_replied = reply.result is not None or bool(transfer.results)
        if failure is None and not (has_replied if is_known is None else is_known):
            failure = Failure(FailureKind.UNKNOWN_COMMAND, "UnknownCommand", self.describe_unknown(request.command))
        command = reply.command or request.command
        result = "error" if failure is not None else DEFAULT_RESULT if reply.result is None else reply.result
        message = reply.message or reply.complaint
        tensors = transfer.end(request, failure is None)
        if failure is None:
            self._advance_status(channel, Status.OK)
        else:
            self._advance_status(channel, Status.ERROR, failure.message)
        try:
            channel.send(Response(request.seq, command, result, message, now_ms(), tensors, failure))
        except (TRException, OSError) as error:  # too long, or no text, or no file for a long one: answer that instead
            transfer.withdraw()
            self._advance_status(channel, Status.ERROR, str(error))
            failure = Failure(FailureKind.HANDLER, type(error).__name__, str(error))
            command = printable(command[:MAX_DETAIL_CHARS])
            self._insist(channel, Response(seq=request.seq, command=command, timestamp=now_ms(), error=failure))

    def describe_unknown(self, command: str) -> str:
        """The line that tells the controller that a command is unknown."""
        return f"the worker knows no command {command[:80]!r}"

    def _insist(self, channel: Channel, response: Response) -> None:
        """Send a short response, as soon as there is room for it."""
        while True:
            try:
                channel.send(response)
                return
            except OutOfSpace:
                if self._has_to_stop():
                    return
            time.sleep(_RETRY_S)
            self._advance_status(channel, self._status)

    # -- what a subclass of ours uses beside the public methods ---------------------------------------------------

    def _set_result(self, text: str) -> None:
        """Set the reply's text, and leave what the handler has set beside it."""
        if self._reply is None:
            raise SessionNotStarted("a result answers a request, and there is none now")
        self._reply.result = str(text)

    @property
    def _tags(self) -> Container[str]:
        """What names a tensor now."""
        return () if self._transfer is None else self._transfer.tags

    def _quick_fetch(self, parameters: str) -> list[Any] | None:
        """The tensors that a parameter text names, by the fast path; None if the slow path is needed."""
        if self._fast_path is None or self.framework != "numpy":
            return None
        return self._fast_path.quick_fetch(parameters)

    def _fetch(self, tag: str, framework: str) -> Any:
        """The tensor of a tag."""
        if self._transfer is None:
            raise MissingTag(f"no tensor goes by the tag {tag!r}: the server does not run yet", tag=tag)
        return self._transfer.fetch(tag, framework)

    def _open_channel(self) -> Channel:
        if self._channel is None:
            raise SessionNotStarted("the server does not run; call run(session_id)")
        return self._channel

    # -- life -----------------------------------------------------------------------------------------------------

    def setup_session_dir(self, session_id: str) -> None:
        """Find the session and connect to it.

        Raises:
            SessionNotStarted: there is no such session.
            HostilePath: somebody else can write to it.
        """
        attachment = self._attachment = attach(session_id, self._rejections)
        self.session_dir = attachment.directory
        self._transfer = attachment.transfer
        self._channel = attachment.channel
        if attachment.peer is not None:
            self._watch = PeerWatch(attachment.peer, self._controller_died)
        deaths = [] if self._watch is None else self._watch.deaths
        self._fast_path = worker_fast_path(attachment.channel, attachment.transfer, deaths)

    def cleanup_session_dir(self) -> None:
        """Disconnect; removes the session's directory if the controller can no longer do so."""
        channel, self._channel = self._channel, None
        self._fast_path = None
        attachment = self._attachment
        if channel is None or attachment is None:
            return
        self._has_ended.set()  # first, for stopping the watch waits for its thread
        self._advance_status(channel, Status.EXITING)
        if self._watch is not None and not self._is_orphan:
            self._watch.stop()
        attachment.close_transfers(is_orphan=self._is_orphan)
        self._advance_status(channel, Status.TERMINATED)
        channel.ring()
        channel.close()
        if self._is_orphan:
            attachment.remove()

    def _controller_died(self) -> None:
        """In the watch's thread: end the loop, or, if a command does not end, the process."""
        self._is_orphan = True
        channel = self._channel
        if channel is not None:
            channel.wake()
        if not self._has_ended.wait(_ORPHAN_GRACE_S):
            try:
                if self._attachment is not None:
                    self._attachment.remove()
            finally:
                os._exit(1)
