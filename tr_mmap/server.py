"""The worker's side: serve requests, one after another, until told to end or the controller is gone.

Never imports the session's side, nor torch unless tensors are asked for in it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from . import short_cuts
from .answers import Answer, failure_of, log, printable
from .auth import Tally
from .channel import Channel
from .errors import BadMessage, HostilePath, MissingTag, OutOfSpace, SessionNotStarted, TRException
from .join import Joined, join
from .native import Answerer
from .process import PeerWatch
from .protocol import (
    EXIT_COMMAND,
    MAX_DETAIL_CHARS,
    TRANSITIONS,
    Failure,
    FailureKind,
    Request,
    Response,
    Status,
    decode_request,
    now_ms,
    parse_status,
    split_words,
)
from .stores import WorkerStore

__all__ = ["TechRenaissanceServer"]

_RETRY_S: Final = 0.032  # the rate at which a channel of files is looked at
_ORPHAN_GRACE_S: Final = 2.0  # how long a command may go on after the controller is gone


class _Stop(BaseException):
    """Raised by SIGINT and SIGTERM; a BaseException so that no handler's ``except Exception`` keeps it."""


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
        self._tally = Tally()
        self._joined: Joined | None = None
        self._answerer: Answerer | None = None
        self._store: WorkerStore | None = None  # of the request at hand
        self._watch: PeerWatch | None = None
        self._answer: Answer | None = None
        self._status = Status.STARTING  # the last one that we wrote, but for those of requests that took the short cut
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
            They, in order; or None if one is missing or the count is wrong. Why goes to the controller with the
            answer, unless the handler gives a message of its own.
        """
        if self._answerer is not None and self.framework == "numpy":
            found = self._answerer.fetch_again(parameters)
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
        if self._answer is not None:
            self._answer.complaint = why

    def send_tensors(self, *tensors: Any) -> None:
        """Add tensors to the answer, in order.

        Raises:
            UnsupportedTensor: one is not a tensor that TSR can hold.
            OutOfSpace: no room.
        """
        if self._answer is None or self._store is None:
            raise SessionNotStarted("send_tensors answers a request, and there is none now")
        self._store.publish(tensors)

    def write_response(self, command: str, result: str, message: str = "") -> None:
        """Set the answer's text; with :meth:`send_tensors` in the same request it makes one response."""
        if self._answer is None:
            raise SessionNotStarted("write_response answers a request, and there is none now")
        self._answer.command = command
        self._answer.result = str(result)
        self._answer.message = message

    def write_status(self, text: str) -> None:
        """Tell the controller what goes on, ``"busy: epoch 3"`` say.

        ``exiting`` or ``terminated`` also ends the worker when this request is answered.

        Raises:
            BadMessage: the first word is no status, or one that cannot follow the last.
        """
        line = parse_status(text)
        channel = self._open_channel()
        if line.status not in TRANSITIONS[self._status]:
            now = Status.BUSY if self._answer is not None and self._status.is_waiting else self._status
            raise BadMessage(f"a worker that is {now} cannot become {line.status}", detail=text[:80])
        self._enter(channel, line.status, line.detail)
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
        if self._store is None:
            raise SessionNotStarted("empty() lends memory of a session, and the server does not run yet")
        framework = framework or self.framework
        array = self._store.lend_again(shape, dtype) if framework == "numpy" else None
        return self._store.empty(shape, dtype, framework) if array is None else array

    @property
    def rejected(self) -> int:
        """In a session with ``auth=True``: messages that were not the controller's, and were not obeyed."""
        return self._tally.rejected

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
        with self._signals():
            try:
                self.setup_session_dir(session_id)
                channel = self._open_channel()
                self._enter(channel, Status.READY)
                channel.ring()
                while self.should_continue():
                    self.process_request()
            except _Stop:
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
        joined = self._joined
        assert joined is not None
        if self._answerer is not None:
            left = self._answerer.serve(self)
            if left is True:
                return
            if left is not None:
                request, answer, is_known, error = left
                failure = None if error is None else failure_of(error)
                del left, error  # and the traceback, whose frames hold views
                self._finish(channel, joined.store, request, answer, is_known, failure)
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
            self._enter(channel, Status.ERROR, str(error))
            channel.answer_unreadable(Failure(FailureKind.BAD_INPUT, type(error).__name__, str(error)))
            return
        if request.command == EXIT_COMMAND:
            self._is_stopping = True
        elif request.seq:
            self._serve(channel, joined.store, request)
        else:
            self._serve(*joined.older_end(), request)

    def _has_to_stop(self) -> bool:
        channel = self._channel
        return self._is_stopping or self._is_orphan or channel is None or channel.is_exit_asked()

    def _enter(self, channel: Channel, status: Status, detail: str = "") -> None:
        """Write a status, if the protocol's table lets it follow; else what stands says that the worker ends."""
        if status in TRANSITIONS[self._status]:
            try:
                if channel.enter(status, detail):
                    self._status = status
            except OutOfSpace:
                self._status = status  # in a channel of files; the next status or the answer says more

    def _serve(self, channel: Channel, store: WorkerStore, request: Request) -> None:
        """Answer a request that took the long way."""
        self._enter(channel, Status.BUSY)
        store.begin(request)
        self._store = store
        answer = self._answer = Answer()
        is_known: bool | None = None
        failure: Failure | None = None
        try:
            is_known = self.main_logic(request.command, request.parameters)
        except Exception as error:
            failure = failure_of(error)
        finally:
            self._answer = None
        self._finish(channel, store, request, answer, is_known, failure)

    def _finish(
        self,
        channel: Channel,
        store: WorkerStore,
        request: Request,
        answer: Answer,
        is_known: bool | None,
        failure: Failure | None,
    ) -> None:
        """Send the answer to a request.

        Args:
            channel: where to.
            store: where its tensors are.
            request: what was asked.
            answer: what the handler said.
            is_known: what it returned; None if it forgot to, and then it knew the command if it said anything.
            failure: how it failed.
        """
        has_answered = answer.result is not None or bool(store.results)
        if failure is None and not (has_answered if is_known is None else is_known):
            failure = Failure(FailureKind.UNKNOWN_COMMAND, "UnknownCommand", self.describe_unknown(request.command))
        command = answer.command or request.command
        result = "error" if failure is not None else "ok" if answer.result is None else answer.result
        message = answer.message or answer.complaint
        tensors = store.end(request, failure is None)
        if failure is None:
            self._enter(channel, Status.OK)
        else:
            self._enter(channel, Status.ERROR, failure.message)
        try:
            channel.send(Response(request.seq, command, result, message, now_ms(), tensors, failure))
        except (TRException, OSError) as error:  # too long, or no text, or no file for a long one: say that, in short
            store.withdraw()
            self._enter(channel, Status.ERROR, str(error))
            failure = Failure(FailureKind.HANDLER, type(error).__name__, str(error))
            command = printable(command[:MAX_DETAIL_CHARS])
            self._insist(channel, Response(seq=request.seq, command=command, timestamp=now_ms(), error=failure))

    def describe_unknown(self, command: str) -> str:
        """The line that tells the controller that a command is unknown."""
        return f"the worker knows no command {command[:80]!r}"

    def _insist(self, channel: Channel, response: Response) -> None:
        """Send a short answer, as soon as there is room for it."""
        while True:
            try:
                channel.send(response)
                return
            except OutOfSpace:
                if self._has_to_stop():
                    return
            time.sleep(_RETRY_S)
            self._enter(channel, self._status)

    def _fetch(self, tag: str, framework: str) -> Any:
        if self._store is None:
            raise MissingTag(f"no tensor goes by the tag {tag!r}: the server does not run yet", tag=tag)
        return self._store.fetch(tag, framework)

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
        joined = self._joined = join(session_id, self._tally)
        self.session_dir = joined.directory
        self._store = joined.store
        self._channel = joined.channel
        if joined.peer is not None:
            self._watch = PeerWatch(joined.peer, self._controller_died)
        ends = [] if self._watch is None else self._watch.ends
        self._answerer = short_cuts.answerer(joined.channel, joined.store, ends)

    def cleanup_session_dir(self) -> None:
        """Disconnect; removes the session's directory if the controller can no longer do so."""
        channel, self._channel = self._channel, None
        self._answerer = None
        joined = self._joined
        if channel is None or joined is None:
            return
        self._has_ended.set()  # first, for stopping the watch waits for its thread
        self._enter(channel, Status.EXITING)
        if self._watch is not None and not self._is_orphan:
            self._watch.stop()
        joined.close_stores(is_orphan=self._is_orphan)
        self._enter(channel, Status.TERMINATED)
        channel.ring()
        channel.close()
        if self._is_orphan:
            joined.remove()

    def _controller_died(self) -> None:
        """In the watch's thread: end the loop, or, if a command does not end, the process."""
        self._is_orphan = True
        channel = self._channel
        if channel is not None:
            channel.wake()
        if not self._has_ended.wait(_ORPHAN_GRACE_S):
            try:
                if self._joined is not None:
                    self._joined.remove()
            finally:
                os._exit(1)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the loop; only the main thread may say so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:  # noqa: ARG001 - the signature is Python's
            if not self._is_stopping:
                self._is_stopping = True
                raise _Stop

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
