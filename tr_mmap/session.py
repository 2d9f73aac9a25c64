"""The controlling side: start a worker, send it tensors, ask for a command, get tensors back.

Never imports the server's side, nor torch unless tensors are asked for in it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

import msgspec

from . import manifest as manifests
from .channel import CHANNELS, Channel
from .errors import (
    BadMessage,
    RemoteError,
    ResponseTimeout,
    SessionInUse,
    SessionNotStarted,
    UnexpectedResponse,
    UnknownCommand,
    WorkerDied,
)
from .launch import DEFAULT_WORKER, check_script, launch
from .manifest import Manifest
from .process import Identity, PeerWatch, WorkerProcess
from .protocol import (
    MAX_SEQ,
    Failure,
    FailureKind,
    Request,
    Response,
    Status,
    StatusLine,
    TensorRef,
    decode_response,
    now_ms,
    parse_command,
)
from .segments import PoolStats, Receiver, Segment, SegmentPool, Tags
from .workspace import Workspace, check_session_id, check_tag

__all__ = ["PythonSession"]

DEFAULT_TIMEOUT_MS: Final = 10_000.0
START_TIMEOUT_MS: Final = 60_000.0  # of the context manager: importing torch from a cold disk takes tens of seconds
EXIT_TIMEOUT_MS: Final = 5_000.0
_EXIT_COMMAND: Final = "exit"

Message = str | Mapping[str, Any]


class _Run:
    """One worker's life: what exists from start() until that worker is gone."""

    def __init__(self, channel: Channel, process: WorkerProcess, receiver: Receiver) -> None:
        self.channel = channel
        self.process = process
        self.receiver = receiver
        self.watch = PeerWatch(process.identity, channel.wake)

    def is_over(self) -> bool:
        return self.watch.is_dead

    def end(self) -> None:
        """Let go of everything; the process has ended."""
        self.watch.stop()
        self.process.forward_log(False)
        self.receiver.close()
        self.channel.close()


class _Place:
    """The session's directory and all that is in it; released when the session goes, however it goes."""

    def __init__(self, workspace: Workspace, session_id: str, directory: str, budget_nbytes: int | None) -> None:
        self.workspace = workspace
        self.session_id = session_id
        self.directory = directory
        self.pool = SegmentPool(directory, "segment", budget_nbytes=budget_nbytes)
        self.run: _Run | None = None
        self._owner_pid = os.getpid()

    def release(self) -> None:
        """End the worker if it lives, remove the directory. Never raises for what is gone already."""
        if os.getpid() != self._owner_pid:
            return  # a fork's child: all of this is its parent's
        run, self.run = self.run, None
        try:
            if run is not None:
                try:
                    if run.process.is_alive():
                        run.process.terminate_tree()
                finally:
                    run.end()
        finally:
            self.pool.close()
            self.workspace.release(self.session_id)


class PythonSession:
    """A worker process and the tensors exchanged with it.

    A context manager: starts the worker, waits until it is ready, and on the way out ends it and cleans up. Threads
    may share a session; one waits while another's request is under way.

    Args:
        script_path: a Python script that runs a server, or ``"default"`` for the worker that ships with the package.
        session_id: names the session on this machine; at most 64 of ``A-Z a-z 0-9 _ . -``.
        quiet_mode: False also prints the worker's output to this process's stderr.
        framework: ``"numpy"`` or ``"torch"``: what tensors arrive as where nothing else says so.
        channel: ``"mapped"``, or ``"files"`` where there are no semaphores.
        budget_nbytes: most bytes of tensors to hold in shared memory on this side; None for no limit of ours.
    """

    def __init__(
        self,
        script_path: str = DEFAULT_WORKER,
        session_id: str = "default",
        quiet_mode: bool = False,
        *,
        framework: str = "numpy",
        channel: str = "mapped",
        budget_nbytes: int | None = None,
    ) -> None:
        check_session_id(session_id)
        if framework not in ("numpy", "torch"):
            raise BadMessage(f"framework is {framework!r}; it is 'numpy' or 'torch'", detail=framework)
        if channel not in CHANNELS:
            raise BadMessage(f"channel is {channel!r}; it is one of {', '.join(CHANNELS)}", detail=channel)
        self._script_path = os.fspath(script_path)
        self._session_id = session_id
        self._quiet_mode = quiet_mode
        self._framework = framework
        self._channel_name = channel
        self._budget_nbytes = budget_nbytes
        self._lock = threading.RLock()
        self._asked = threading.Condition(self._lock)
        self._place: _Place | None = None
        self._tags: Tags | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._seq = 0
        self._pending: Request | None = None  # asked and not answered
        self._is_abandoned = False  # nobody waits for the pending answer any more
        self._in_flight: list[Segment] = []  # what the pending request may still read
        self._answers: deque[tuple[Response, list[Any]]] = deque()  # answered, not taken; with views that hold leases

    # -- process --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the worker; returns at once. After its death, starts a new one that knows the same tags.

        Raises:
            SessionInUse: another process has a session of this id, or this one is started already.
            ScriptNotFound: there is no such script.
        """
        with self._lock:
            check_script(self._script_path)
            if self._place is not None and self._place.run is not None:
                if self._place.run.process.is_alive():
                    raise SessionInUse(
                        f"session {self._session_id!r} is started already", session_id=self._session_id, pid=os.getpid()
                    )
                self._end_run()
            place = self._place or self._claim()
            channel = CHANNELS[self._channel_name].create(place.directory)
            try:
                manifest = self._manifest(doorbells=channel.doorbells)
                manifests.write(place.directory, manifest)
                process = launch(
                    self._script_path,
                    self._session_id,
                    workspace_root=place.workspace.root,
                    session_dir=place.directory,
                    quiet=self._quiet_mode,
                )
            except BaseException:
                channel.close()
                raise
            try:
                place.run = _Run(channel, process, Receiver(place.directory))
                manifests.write(place.directory, msgspec.structs.replace(manifest, worker=process.identity))
            except BaseException:
                process.terminate_tree(0)
                channel.close()
                raise
            assert self._tags is not None
            self._tags.tell_again()

    def _manifest(self, doorbells: list[str]) -> Manifest:
        return Manifest(
            session_id=self._session_id,
            controller=Identity.current(),
            channel=self._channel_name,
            doorbells=doorbells,
            framework="tr_mmap",
            created_ms=now_ms(),
        )

    def _claim(self) -> _Place:
        workspace = Workspace.locate()
        directory = workspace.claim(self._session_id, self._manifest(doorbells=[]))
        place = _Place(workspace, self._session_id, directory, self._budget_nbytes)
        self._place = place
        self._tags = Tags(directory, place.pool, self._release_later)
        self._finalizer = weakref.finalize(self, place.release)
        return place

    def is_alive(self) -> bool:
        """Whether the worker process lives."""
        run = self._run_or_none()
        return run is not None and run.process.is_alive()

    def terminate(self) -> None:
        """End the worker and every process it started, at once: SIGTERM, a second, SIGKILL. Needs no answer of it.

        Tags stay; :meth:`start` starts anew. May be called while another thread waits, which gets WorkerDied.
        """
        run = self._run_or_none()
        if run is not None:
            run.process.terminate_tree()
            run.channel.wake()

    def join(self, timeout_ms: float | None = None) -> bool:
        """Wait for the worker's end; whether it has ended."""
        run = self._run_or_none()
        return run is None or run.process.wait(float("inf") if timeout_ms is None else timeout_ms / 1000)

    def please_exit(self, timeout_ms: float = EXIT_TIMEOUT_MS, ensure: bool = True) -> bool:
        """Ask the worker to end, wait, and if it has ended clean up: the session is over and its tags are gone.

        Args:
            timeout_ms: how long to wait.
            ensure: end it by force if it does not by itself.

        Returns:
            Whether it ended by itself.
        """
        with self._lock:
            run = self._run_or_none()
            if run is None:
                self.close()
                return True
            has_ended = False
            try:
                has_ended = self._ask_to_exit(run, timeout_ms)
            finally:
                if has_ended or ensure:
                    self.close()
            return has_ended

    def _ask_to_exit(self, run: _Run, timeout_ms: float) -> bool:
        if run.process.is_alive() and not run.is_over():
            deadline_s = time.monotonic() + timeout_ms / 1000
            # A worker that is not there yet reads the wish when it is.
            try:
                run.channel.send(Request(seq=self._next_seq(), command=_EXIT_COMMAND, timestamp=now_ms()))
            except ResponseTimeout:
                return False
            return run.process.wait(max(0.0, deadline_s - time.monotonic()))
        return True

    def close(self) -> None:
        """End the worker by force if it lives, and remove everything of the session. Idempotent."""
        with self._lock:
            place, self._place, self._tags = self._place, None, None
            self._forget_requests()
            if place is not None:
                assert self._finalizer is not None
                self._finalizer.detach()
                place.release()

    def __enter__(self) -> PythonSession:
        try:
            self.start()
            if not self.wait_until_ready(START_TIMEOUT_MS):
                raise ResponseTimeout(
                    f"the worker {self._script_path!r} was not ready after {START_TIMEOUT_MS:.0f} ms; it must run a "
                    f"server with the session id of its command line. Its last output:\n{self._log_tail()}",
                    timeout_ms=START_TIMEOUT_MS,
                    command="start",
                )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the worker may be in the middle of anything: do not wait long for its manners.
        try:
            self.please_exit(EXIT_TIMEOUT_MS if error is None else 500)
        finally:
            self.close()

    # -- status ---------------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether the worker waits for a request."""
        run = self._run_or_none()
        return run is not None and not run.is_over() and run.channel.read_status().status.is_waiting

    def is_busy(self) -> bool:
        """Whether the worker is at a request."""
        run = self._run_or_none()
        return run is not None and not run.is_over() and run.channel.read_status().status is Status.BUSY

    def new_response(self) -> bool:
        """Whether a response waits to be taken."""
        if self._answers:
            return True
        run = self._run_or_none()
        return run is not None and self._pending is not None and run.channel.has_message()

    def wait_until_ready(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Wait until the worker waits for a request; False when the time is over.

        Raises:
            WorkerDied: it ended.
        """
        line = self._wait_status(lambda each: each.status.is_waiting, timeout_ms)
        return line is not None

    def wait_until_ok(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Wait until the request under way is done; whether it went well. False also when the time is over.

        Raises:
            WorkerDied: the worker ended.
        """
        line = self._wait_status(lambda each: each.status in (Status.OK, Status.ERROR), timeout_ms, of_request=True)
        return line is not None and line.status is Status.OK

    def _wait_status(self, until: Any, timeout_ms: float, of_request: bool = False) -> StatusLine | None:
        with self._lock:
            run = self._open_run()
            if of_request and self._pending is not None:
                # The status of the request before this one would answer too early.
                self._settle(timeout_ms)
            line = run.channel.wait_status(until, timeout_ms, run.is_over)
            if line is None and run.is_over():
                raise self._worker_died()
            return line

    # -- text -----------------------------------------------------------------------------------------------------

    def send_request(self, message: Message) -> None:
        """Ask for a command; the answer is taken with a ``wait_for_…`` or :meth:`read_response`.

        If an earlier request is not answered yet, waits for that first; its answer can still be taken, unless
        somebody has waited for it in vain.

        Args:
            message: ``"matmul a b"``, or JSON, or a dict: ``{"cmd": "matmul", "params": "a,b"}``.

        Raises:
            BadMessage: there is no command in it.
            WorkerDied: the worker ended.
            ResponseTimeout: the earlier request does not end.
        """
        command, parameters = parse_command(message)
        with self._lock:
            self._ask(command, parameters, [], DEFAULT_TIMEOUT_MS)
            self._asked.notify_all()

    def read_response(self) -> str | None:
        """Take the response's text if there is one; None if not.

        Raises:
            RemoteError: the request failed.
        """
        with self._lock:
            self._open_run()
            if not self.new_response():
                return None
            return self._take(0, None)[0].result

    def wait_for_response(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> str:
        """Take the next response's text.

        Raises:
            ResponseTimeout: none came in time.
            RemoteError: the request failed; UnknownCommand if the worker does not know the command.
            WorkerDied: the worker ended.
        """
        with self._lock:
            return self._take(timeout_ms, None)[0].result

    def fetch_response(self, message: Message, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> str:
        """:meth:`send_request` and :meth:`wait_for_response` of that very request, in one."""
        command, parameters = parse_command(message)
        with self._lock:
            return self._call(command, parameters, [], timeout_ms, None)[0].result

    # -- tensors --------------------------------------------------------------------------------------------------

    def send_tensor(self, tensor: Any, tag: str) -> None:
        """Let ``tag`` name a tensor until it is sent again, dropped, or the session ends.

        Copies the tensor once into shared memory; a loan (:meth:`empty`) not at all. May be called before start().

        Args:
            tensor: numpy or torch, any layout; see ``tr_mmap.tsr`` for the dtypes.
            tag: at most 128 of ``A-Z a-z 0-9 _ . -``.

        Raises:
            BadTag: the tag may not name a tensor.
            UnsupportedTensor: it is not a tensor that TSR can hold.
            OutOfSpace: no room; the tag keeps what it had.
        """
        check_tag(tag)
        with self._lock:
            place, tags = self._open_place()
            tags.put(tag, place.pool.publish(tensor))

    def drop_tensor(self, tag: str) -> None:
        """Forget a tag and give its memory back.

        Raises:
            MissingTag: there is no such tag.
        """
        with self._lock:
            self._open_place()[1].drop(tag)

    def fetch_tensor(self, message: Message, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> Any:
        """:meth:`send_request` and :meth:`wait_for_tensor` of that very request, in one."""
        command, parameters = parse_command(message)
        with self._lock:
            return self._only(*self._call(command, parameters, [], timeout_ms, self._framework))

    def wait_for_tensor(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> Any:
        """Take the next response's tensor, or the list of its tensors if there are several.

        A numpy tensor is a read-only view of shared memory; a torch tensor is a copy-on-write one.

        Raises:
            UnexpectedResponse: the response has no tensor.
            ResponseTimeout, RemoteError, WorkerDied: as in :meth:`wait_for_response`.
        """
        with self._lock:
            return self._only(*self._take(timeout_ms, self._framework))

    def calculate(self, message: Message, *tensors: Any, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> Any:
        """Send tensors, ask for a command over them, and get its result, in one call.

        Args:
            message: the command, and words for it if it takes any.
            *tensors: sent under tags of this call's own, which follow the message's words.
            timeout_ms: how long to wait for the answer.

        Returns:
            The tensor, or the list of tensors if there are several, or the text if there is none; in the framework of
            the first tensor, or in the session's if there is none.

        Raises:
            UnsupportedTensor, OutOfSpace, RemoteError, UnknownCommand, ResponseTimeout, WorkerDied.
        """
        command, parameters = parse_command(message)
        framework = self._framework
        if tensors:
            framework = "torch" if hasattr(tensors[0], "untyped_storage") else "numpy"
        with self._lock:
            response, arrays = self._call(command, parameters, tensors, timeout_ms, framework)
            return self._only(response, arrays) if arrays else response.result

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32", framework: str | None = None) -> Any:
        """A loan: a tensor of undefined content in shared memory, which sending need not copy.

        Once sent it can no longer be written: a numpy loan becomes read-only, a store into a torch loan stays in
        this process.

        Args:
            shape: sizes in elements, outermost first.
            dtype: ``"float32"``, ``"bfloat16"``, … or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``; the session's own if left out.

        Raises:
            OutOfSpace: no room.
        """
        with self._lock:
            return self._open_place()[0].pool.empty(shape, dtype, framework or self._framework)

    def stats(self) -> PoolStats:
        """What this side holds in shared memory."""
        with self._lock:
            return self._open_place()[0].pool.stats()

    # -- access ---------------------------------------------------------------------------------------------------

    def session_dir(self) -> str:
        """Path of the session's directory; it exists from the first start() to the end of the session."""
        place = self._place
        return place.directory if place is not None else Workspace.locate().session_dir(self._session_id)

    def session_id(self) -> str:
        return self._session_id

    def set_quiet_mode(self, quiet_mode: bool) -> None:
        """Whether the worker's output from now on stays in its log only."""
        self._quiet_mode = quiet_mode
        run = self._run_or_none()
        if run is not None:
            run.process.forward_log(not quiet_mode)

    # -- one request and its answer -------------------------------------------------------------------------------

    def _next_seq(self) -> int:
        self._seq = self._seq % MAX_SEQ + 1
        return self._seq

    def _call(
        self, command: str, parameters: str, tensors: Any, timeout_ms: float, framework: str | None
    ) -> tuple[Response, list[Any]]:
        """Ask, and take the answer to just that; nobody else can."""
        pending = self._ask(command, parameters, tensors, timeout_ms)
        try:
            return self._receive(pending, timeout_ms, framework)
        except (ResponseTimeout, KeyboardInterrupt):
            self._is_abandoned = True
            raise

    def _ask(self, command: str, parameters: str, tensors: Any, timeout_ms: float) -> Request:
        run = self._open_run()
        if self._pending is not None:
            self._settle(timeout_ms)
        if run.is_over():
            raise self._worker_died()
        place, tags = self._open_place()
        refs, drops = tags.untold()
        lent: list[Segment] = []
        try:
            for tensor in tensors:
                segment = place.pool.publish(tensor)
                refs.append(TensorRef(f"${len(lent)}", segment.name, segment.seq))
                lent.append(segment)
            if lent:
                words = " ".join([f"${index}" for index in range(len(lent))])
                parameters = f"{parameters} {words}" if parameters else words
            request = Request(self._next_seq(), command, parameters, now_ms(), refs, drops)
            run.channel.send(request)
        except BaseException:
            for segment in lent:
                place.pool.release(segment)
            raise
        self._pending = request
        self._is_abandoned = False
        self._in_flight = lent
        return request

    def _settle(self, timeout_ms: float) -> None:
        """Let the pending request be answered, and keep the answer for whoever asks for it."""
        pending = self._pending
        if pending is None:
            return
        is_abandoned = self._is_abandoned
        response = self._await(pending, timeout_ms)
        if not is_abandoned:
            run = self._open_run()
            self._answers.append((response, [run.receiver.receive(ref, "numpy") for ref in response.tensors]))

    def _await(self, pending: Request, timeout_ms: float) -> Response:
        run = self._open_run()
        deadline_s = time.monotonic() + timeout_ms / 1000
        remaining_ms = timeout_ms
        while True:
            raw = run.channel.receive(remaining_ms, run.is_over)
            if raw is None:
                if run.is_over():
                    raise self._worker_died()
                raise ResponseTimeout(
                    f"no response to {pending.command!r} within {timeout_ms:.0f} ms; wait again, or terminate() "
                    "and start()",
                    timeout_ms=timeout_ms,
                    command=pending.command,
                )
            response = decode_response(raw)
            if response.seq == pending.seq:
                break
            remaining_ms = max(0.0, (deadline_s - time.monotonic()) * 1000)  # an answer that nobody waits for
        self._pending = None
        if pending.tensors or pending.drops:
            self._open_place()[1].told(pending)
        in_flight, self._in_flight = self._in_flight, []
        for segment in in_flight:
            self._open_place()[0].pool.release(segment)
        return response

    def _take(self, timeout_ms: float, framework: str | None) -> tuple[Response, list[Any]]:
        """The oldest answer that nobody has taken; waits for a request too, which another thread may make."""
        self._open_run()
        deadline_s = time.monotonic() + timeout_ms / 1000
        if self._answers:
            response, held = self._answers.popleft()
            return self._finish(response, framework, held)
        if self._pending is None or self._is_abandoned:
            wanted = self._asked.wait_for(lambda: self._pending is not None or self._answers, timeout_ms / 1000)
            if not wanted or self._pending is None:
                raise ResponseTimeout(
                    f"no request was made, so no response came within {timeout_ms:.0f} ms; call send_request first",
                    timeout_ms=timeout_ms,
                    command="",
                )
        return self._receive(self._pending, max(0.0, (deadline_s - time.monotonic()) * 1000), framework)

    def _receive(self, pending: Request, timeout_ms: float, framework: str | None) -> tuple[Response, list[Any]]:
        return self._finish(self._await(pending, timeout_ms), framework, None)

    def _finish(self, response: Response, framework: str | None, held: list[Any] | None) -> tuple[Response, list[Any]]:
        if response.error is not None:
            raise _remote_error(response.command, response.error)
        if framework is None or not response.tensors:
            return response, []
        if held is not None and framework == "numpy":
            return response, held
        receiver = self._open_run().receiver
        return response, [receiver.receive(ref, framework) for ref in response.tensors]

    @staticmethod
    def _only(response: Response, tensors: list[Any]) -> Any:
        if not tensors:
            why = f" ({response.message})" if response.message else ""
            raise UnexpectedResponse(
                f"the response to {response.command!r} has no tensor; its text is {response.result[:200]!r}{why}",
                result=response.result,
            )
        return tensors[0] if len(tensors) == 1 else tensors

    # -- state ----------------------------------------------------------------------------------------------------

    def _run_or_none(self) -> _Run | None:
        place = self._place
        return None if place is None else place.run

    def _open_run(self) -> _Run:
        run = self._run_or_none()
        if run is None:
            raise SessionNotStarted(
                f"session {self._session_id!r} has no worker; call start(), or use it as a context manager"
            )
        return run

    def _open_place(self) -> tuple[_Place, Tags]:
        if self._place is None or self._tags is None:
            raise SessionNotStarted(
                f"session {self._session_id!r} is not started; call start(), or use it as a context manager"
            )
        return self._place, self._tags

    def _release_later(self, segment: Segment) -> None:
        """A tag lets go of a segment, which the request under way may be about to read."""
        if self._pending is not None:
            self._in_flight.append(segment)
        else:
            self._open_place()[0].pool.release(segment)

    def _log_tail(self) -> str:
        run = self._run_or_none()
        return "" if run is None else run.process.log_tail()

    def _worker_died(self) -> WorkerDied:
        """Build the error, and put the session where start() works again."""
        run = self._open_run()
        run.process.wait(1.0)  # the watch may be faster than the kernel's bookkeeping
        code, tail = run.process.exit_code, self._log_tail()
        how = "with status unknown" if code is None else f"killed by signal {-code}" if code < 0 else f"status {code}"
        self._end_run()
        output = f"; its last output:\n{tail}" if tail else "; it printed nothing"
        return WorkerDied(
            f"the worker of session {self._session_id!r} ended ({how}){output}", exit_code=code, log_tail=tail
        )

    def _end_run(self) -> None:
        place, _ = self._open_place()
        run, place.run = place.run, None
        if run is not None:
            run.end()
        self._forget_requests()
        place.pool.reader_died()

    def _forget_requests(self) -> None:
        in_flight, self._in_flight = self._in_flight, []
        if self._place is not None:
            for segment in in_flight:
                self._place.pool.release(segment)
        self._pending = None
        self._is_abandoned = False
        self._answers.clear()


def _remote_error(command: str, failure: Failure) -> RemoteError:
    fields = {"command": command, "error_type": failure.type, "remote_traceback": failure.traceback}
    if failure.kind is FailureKind.UNKNOWN_COMMAND:
        return UnknownCommand(failure.message, **fields)
    if failure.kind is FailureKind.BAD_INPUT:
        return RemoteError(failure.message, **fields)
    trace = f"\n\n{failure.traceback}" if failure.traceback else ""
    return RemoteError(f"{command!r} failed in the worker: {failure.type}: {failure.message}{trace}", **fields)
