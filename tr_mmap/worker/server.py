"""``TechRenaissanceServer``: serves requests, one after another. Never imports the controller's side.

It ends after a request to exit, a signal, or the controller's death. It imports torch only for tensors in that
framework.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Container
from types import CodeType
from typing import Any, Final

from ..base.fork_safety import ForkAware
from ..channel.authenticated import RejectionCounter
from ..channel.interface import Channel, check_bounds
from ..errors import BadMessage, HostilePath, MissingTag, SessionNotStarted, SystemLimit
from ..native import WorkerFastPath
from ..processes.watch import PeerWatch
from ..protocol.commands import split_words
from ..protocol.messages import Failure, FailureKind, Request, Response, decode_request
from ..protocol.status import TRANSITIONS, Status, parse_status
from ..transfer.interface import WorkerTransfer
from ..transfer.kinds import Views, check_views
from ..tsr.framework_names import check_framework_name
from ..wire.messages import EXIT_COMMAND, RELEASE_COMMAND
from ..wire.waits import ORPHAN_GRACE_S
from .attach import Attachment, attach
from .fast_path import worker_fast_path
from .forked import end_child
from .log import WorkerLog, log
from .reply import Reply, failure_of
from .responder import RETRY_S, Responder
from .stop_signals import Stop, stop_signals

__all__ = ["TechRenaissanceServer"]

_ENDING: Final = (SystemExit, Stop)  # whatever else a handler raises is an error of its request
_LOOK_REQUESTS: Final = 64  # until the log's size is looked at: native code and children write to it uncounted


def _do_nothing() -> None:
    """Stands for the heartbeat before there is a session."""


def _plain(value: Any) -> str:
    """A value's text; of a text that is a member of an ``Enum`` its value, which ``str`` would not give."""
    return str.__str__(value) if isinstance(value, str) else str(value)


class TechRenaissanceServer(ForkAware):
    """A worker. Override :meth:`main_logic` and call :meth:`run`.

    Args:
        debug: whether :meth:`debug_message` prints.
        framework: of the tensors from :meth:`get_tensors` and :meth:`empty`, ``"torch"`` or ``"numpy"``.
        views: ``"readonly"`` or ``"copy_on_write"``: what received tensors are. None is ``"readonly"`` for numpy and
            ``"copy_on_write"`` for torch. A store into a read-only torch tensor, or through torch into a read-only
            numpy array, ends the worker with SIGSEGV.

    Raises:
        BadMessage: no such framework, or no such views.
    """

    def __init__(self, debug: bool = False, framework: str = "torch", views: Views | None = None) -> None:
        super().__init__()
        check_framework_name(framework)
        check_views(views)
        self.debug = debug
        self.framework = framework
        self.session_dir = ""
        self._channel: Channel | None = None
        self._rejections = RejectionCounter()
        self._attachment: Attachment | None = None
        self._fast_path: WorkerFastPath | None = None
        self._transfer: WorkerTransfer | None = None  # of the current request
        self._views = views
        self._has_quick_views = True
        self._watch: PeerWatch | None = None
        self._reply: Reply | None = None
        self._touch: Callable[[], None] = _do_nothing  # the session's heartbeat
        self._responder = Responder(self._has_to_stop)
        self._is_stopping = False
        self._is_orphan = False
        self._has_ended = threading.Event()
        self._log: WorkerLog | None = None
        self._requests_until_look = _LOOK_REQUESTS

    # -- what users override and call -----------------------------------------------------------------------------

    def main_logic(self, command: str, parameters: str) -> bool | None:
        """Handle one request. Users override this.

        Args:
            command: the request's command.
            parameters: its other words, as one text.

        Returns:
            False if the command is unknown, True if not. None means the same as True if the handler has said anything.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define main_logic(command, parameters)")

    def get_tensors(self, parameters: str, count: int | None = None) -> list[Any] | None:
        """The tensors that a parameter text names.

        Args:
            parameters: tags, separated by spaces or commas.
            count: how many there must be; None for any number.

        Returns:
            The tensors, in order; None if one is missing or the count is wrong. The reason goes to the controller with
            the reply, unless the handler gives a message of its own.
        """
        if self._fast_path is not None and self._has_quick_views and self.framework == "numpy":
            found = self._fast_path.quick_fetch(parameters)
            if found is not None and (count is None or len(found) == count):
                return found
        self._touch()
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
            SessionNotStarted: there is no request, or this is a forked child of the worker.
        """
        if self._reply is None or self._transfer is None or self.is_foreign:
            self._refuse_in_child()
            raise SessionNotStarted("send_tensors answers a request, and there is none now")
        self._touch()
        self._transfer.publish(tensors)

    def write_response(self, command: str, result: str, message: str = "") -> None:
        """Set the reply's text. Together with :meth:`send_tensors` in the same request it makes one response.

        Args:
            command: what the handler calls the command.
            result: the text.
            message: a remark.

        Raises:
            SessionNotStarted: there is no request.
        """
        if self._reply is None:
            raise SessionNotStarted("write_response answers a request, and there is none now")
        self._reply.command = _plain(command)
        self._reply.result = _plain(result)
        self._reply.message = _plain(message)

    def write_status(self, text: str) -> None:
        """Write a status with a remark for the controller, for example ``"busy: epoch 3"``.

        ``exiting`` or ``terminated`` also ends the worker after the response to this request.

        Args:
            text: a status word, then perhaps a colon and the remark.

        Raises:
            BadMessage: the first word is no status, or a status that cannot follow the last one.
            SessionNotStarted: the server does not run, or this is a forked child of the worker.
        """
        line = parse_status(text)
        self._refuse_in_child()
        channel = self._open_channel()
        self._touch()
        last = self._responder.status
        if line.status not in TRANSITIONS[last]:
            now = Status.BUSY if self._reply is not None and last.is_waiting else last
            raise BadMessage(f"a worker that is {now} cannot become {line.status}", detail=text[:80])
        self._advance_status(channel, line.status, line.detail)
        channel.show()  # the handler may go on for long
        channel.ring()
        if line.status.is_over:
            self._is_stopping = True

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32", framework: str | None = None) -> Any:
        """A loan: a tensor of undefined content in shared memory; :meth:`send_tensors` copies nothing of it.

        Args:
            shape: sizes in elements, outermost first.
            dtype: ``"float32"``, ``"bfloat16"``, … or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``; the server's own if left out.

        Raises:
            UnsupportedTensor: no such dtype, or a shape that TSR cannot hold.
            BadMessage: no such framework.
            OutOfSpace: no room.
            SessionNotStarted: the server does not run.
        """
        if self._transfer is None:
            raise SessionNotStarted("empty() lends memory of a session, and the server does not run yet")
        self._touch()
        if framework is None:
            framework = self.framework
        array = self._transfer.quick_loan(shape, dtype) if framework == "numpy" else None
        return self._transfer.empty(shape, dtype, framework) if array is None else array

    @property
    def rejected(self) -> int:
        """In a session with ``auth=True``: how many messages the controller had not signed; they were ignored."""
        return self._rejections.rejected

    def debug_message(self, *args: Any) -> None:
        """Print to the worker's log, if ``debug``."""
        if self.debug:
            log("[worker]", *args)

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self, session_id: str | None = None) -> None:
        """Serve requests until the session is over.

        Args:
            session_id: of the session, or its directory; from the command line if left out.

        Raises:
            SessionNotStarted: there is no such session, or it has another worker; for example, this process is a child
                of that worker, and runs the worker's script again.
            HostilePath: another user can write to it.
        """
        if self._channel is not None:
            self._refuse_in_child()
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
                if not self.is_foreign:
                    self._is_stopping = True
                    self.cleanup_session_dir()

    def should_continue(self) -> bool:
        """Whether to go on serving."""
        return not self._is_stopping

    def process_request(self) -> None:
        """Wait for the next request and answer it. Returns without one when the worker must end.

        Raises:
            SessionNotStarted: the server does not run, or this is a forked child of the worker.
        """
        if self.is_foreign:
            self._refuse_in_child()
        channel = self._channel or self._open_channel()
        attachment = self._attachment
        assert attachment is not None
        self._requests_until_look -= 1
        if self._requests_until_look <= 0:
            self._look_at_log()
        if self._fast_path is not None:
            left = self._fast_path.serve(self)
            if left is True:
                return
            if left is not None:
                request, reply, is_known, error = left
                failure = self._failure_of(error, reply)
                del left, error  # and the traceback, whose frames hold views
                self._finish(channel, attachment.transfer, request, reply, is_known, failure)
                return
        by_hand = channel.take_by_hand()
        if by_hand is not None:
            self._serve_by_hand(channel, attachment, by_hand)
            return
        try:
            raw = channel.receive(None, lambda: self._has_to_stop() or channel.has_by_hand())
            if raw is None:
                self._is_stopping = self._has_to_stop()  # else a request by hand has come
                return
            request = decode_request(raw)
        except SystemLimit as error:  # no descriptor is left, say: the request stays, to be read later
            self._pause(error)
            return
        except (BadMessage, HostilePath) as error:
            if isinstance(error, HostilePath) and channel.has_message():
                self._pause(error)  # a directory in place of the message: none can come until it is gone
                return
            self.debug_message(error)
            failure = failure_of(error)
            failure.kind = FailureKind.BAD_INPUT
            self._advance_status(channel, Status.ERROR, failure.message)
            channel.reply_unreadable(failure)
            return
        if request.command == EXIT_COMMAND:
            self._is_stopping = True
        elif request.command == RELEASE_COMMAND:
            self._release_memory(channel, attachment.transfer, request)
        elif request.seq:
            self._serve(channel, attachment.transfer, request)
        else:
            self._serve(*attachment.legacy_side(), request)

    def _pause(self, error: Exception) -> None:
        """Let the cause of an error pass, unless the worker has to stop."""
        self.debug_message(error)
        self._is_stopping = self._is_stopping or self._has_to_stop()
        if not self._is_stopping:
            time.sleep(RETRY_S)

    def _stop_once(self) -> bool:
        """Note that a signal came that ends the worker. Returns whether it is the first one."""
        is_first, self._is_stopping = not self._is_stopping, True
        return is_first

    def _has_to_stop(self) -> bool:
        channel = self._channel
        return self._is_stopping or self._is_orphan or channel is None or channel.is_exit_requested()

    def _advance_status(self, channel: Channel, status: Status, detail: str = "") -> None:
        self._responder.advance_status(channel, status, detail)

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
        self._advance_status(channel, Status.BUSY)
        transfer.begin(request)
        transfer.release_free()
        self._responder.respond(channel, transfer, request, Reply(), None)

    def _serve_by_hand(self, channel: Channel, attachment: Attachment, raw: bytes) -> None:
        """Answer a request that somebody wrote by hand into a file of the channel."""
        try:
            request = decode_request(check_bounds(raw))
        except BadMessage as error:
            self.debug_message(error)
            failure = Failure(FailureKind.BAD_INPUT, type(error).__name__, str(error))
            channel.reply_by_hand(Response(result="error", error=failure))
            return
        if request.command == EXIT_COMMAND:
            self._is_stopping = True
            return
        transfer = attachment.transfer_by_hand()
        # What it says of numbers, tensors and tags is none of the controller's.
        plain = Request(command=request.command, parameters=request.parameters, timestamp=request.timestamp)
        fast_path, self._fast_path = self._fast_path, None  # which finds the tags of the controller's last request
        try:
            self._serve(channel, transfer, plain, channel.reply_by_hand)
        finally:
            self._transfer, self._fast_path = attachment.transfer, fast_path

    def _failure_of(self, error: BaseException | None, reply: Reply) -> Failure | None:
        """The failure for what a handler raised; None if it returned. Raises what ends the worker, and ends a child."""
        if self.is_foreign:
            end_child(error)
        if error is None:
            return None
        if isinstance(error, _ENDING):
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

    # -- what ``Server`` uses beside the public methods -----------------------------------------------------------

    def _set_result(self, text: str) -> None:
        """Set the reply's text; keep the other fields that the handler has set."""
        if self._reply is None:
            raise SessionNotStarted("a result answers a request, and there is none now")
        self._reply.result = _plain(text)

    def _refuse_in_child(self) -> None:
        if self.is_foreign:
            raise SessionNotStarted("this process was forked by the worker; only the worker itself answers requests")

    def forked_in_child(self) -> None:
        """Called in a child that a handler forks: the request is the parent's to answer."""
        if self._fast_path is not None:
            self._fast_path.is_foreign = True

    def _look_at_log(self) -> None:
        self._requests_until_look = _LOOK_REQUESTS
        if self._log is not None:
            self._log.look()

    def _blame_input(self, error: Exception) -> None:
        """Note that the request's words or its tensors raised this error, and no handler."""
        if self._reply is not None:
            self._reply.bad_input = error

    def _blame_result(self, error: Exception, code: CodeType | None) -> None:
        """Note that what a handler of that code has returned raised this error."""
        if self._reply is not None:
            self._reply.bad_result, self._reply.handler_code = error, code

    @property
    def _tags(self) -> Container[str]:
        """The tags that name a tensor now."""
        return () if self._transfer is None else self._transfer.tags

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
            SessionNotStarted: there is no such session, or it has another worker.
            HostilePath: another user can write to it.
        """
        self.is_foreign = False  # a child that was forked before this is a worker of its own
        attachment = self._attachment = attach(session_id, self._rejections, self._views)
        self.session_dir = attachment.directory
        self._transfer = attachment.transfer
        self._has_quick_views = attachment.transfer.has_quick_views
        self._channel = attachment.channel
        self._touch = attachment.channel.touch
        self._log = WorkerLog.keep(*attachment.log_paths)
        if attachment.peer is not None:
            self._watch = PeerWatch(
                attachment.peer,
                self._controller_died,
                attachment.channel.watch_by_hand(),
                each_second=None if self._log is None else self._log.look_from_thread,
                lock_path=attachment.peer_lock,
            )
        deaths = [] if self._watch is None else self._watch.deaths
        self._fast_path = worker_fast_path(attachment.channel, attachment.transfer, deaths)

    def cleanup_session_dir(self) -> None:
        """Disconnect from the session. Removes its directory if the controller is dead."""
        if self.is_foreign:
            return
        channel, self._channel = self._channel, None
        self._fast_path = None
        attachment = self._attachment
        if channel is None or attachment is None:
            return
        attachment.end()
        self._has_ended.set()  # first, because to stop the watch waits for its thread
        self._advance_status(channel, Status.EXITING)
        if self._watch is not None and not self._is_orphan:
            self._watch.stop()
        attachment.close_transfers(is_orphan=self._is_orphan)
        self._advance_status(channel, Status.TERMINATED)
        channel.ring()
        channel.close()
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._is_orphan:
            attachment.remove()

    def _controller_died(self) -> None:
        """Runs in the watch's thread: ends the loop; if a handler does not end in time, ends the process."""
        self._is_orphan = True
        channel = self._channel
        if channel is not None:
            channel.wake()
        if not self._has_ended.wait(ORPHAN_GRACE_S):
            try:
                if self._attachment is not None:
                    self._attachment.remove()
            finally:
                os._exit(1)
