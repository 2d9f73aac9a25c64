"""The controlling side: start a worker, send it tensors, ask for a command, get tensors back.

Never imports the server's side, nor torch unless tensors are asked for in it.
"""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Any, Final

import numpy as np

from ..base.identifiers import check_tag
from ..errors import ResponseTimeout, SessionInUse, SessionNotStarted
from ..protocol.commands import UserMessage
from ..protocol.status import Status, StatusLine
from ..sessions.workspace import Workspace
from ..shm.pool import PoolStats
from ..wire.names import DEFAULT_WORKER
from ..wire.waits import DEFAULT_TIMEOUT_MS, EXIT_TIMEOUT_MS
from .dispatcher import Dispatcher, StatusTest
from .launch import check_script
from .options import SessionOptions
from .resources import SessionResources
from .results import tensors_of
from .worker_handle import WorkerHandle

__all__ = ["PythonSession"]

START_TIMEOUT_MS: Final = 60_000.0  # of the context manager: importing torch from a cold disk takes tens of seconds


class PythonSession:
    """A worker process and the tensors that cross to and from it.

    A context manager: starts the worker, waits until it is ready, and on the way out ends it and cleans up. Threads
    may share a session; one waits while another's request is under way.

    Args:
        script_path: a Python script that runs a server, or ``"default"`` for the worker that ships with the package.
        session_id: names the session on this machine; at most 64 of ``A-Z a-z 0-9 _ . -``.
        quiet_mode: False also prints the worker's output to this process's stderr.
        framework: ``"numpy"`` or ``"torch"``: what tensors arrive as where nothing else says so.
        channel: ``"mapped"``, or ``"files"`` where there are no semaphores, or ``"legacy"`` for a worker that speaks
            only the legacy dialect.
        budget_nbytes: most bytes of tensors that each side holds in shared memory; None for no limit of ours.
        at_budget: ``"fail"`` raises OutOfSpace there; ``"block"`` first waits up to 10 s for the other side to release
            views.
        auth: each control message is signed with a secret that only the worker gets; forged ones are ignored. See
            ``tr_mmap.protocol.mac`` for what that protects from.
        checksum: both sides store a CRC-32 of each tensor's bytes and compare it on receipt. Found is damage, not
            malice. Reads every tensor twice more.
        spin_us: microseconds that either side polls for a message, at most, before it sleeps; up to 1000. Saves the
            wake-ups where answers come that soon and each side has a processor to itself. After a longer wait the
            next one sleeps at once, so an idle session costs nothing.
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
        at_budget: str = "fail",
        auth: bool = False,
        checksum: bool = False,
        spin_us: float = 0.0,
    ) -> None:
        self._options = SessionOptions.checked(
            script_path,
            session_id,
            framework=framework,
            channel=channel,
            budget_nbytes=budget_nbytes,
            at_budget=at_budget,
            auth=auth,
            checksum=checksum,
            spin_us=spin_us,
        )
        self._quiet_mode = quiet_mode
        self._lock = threading.RLock()
        self._dispatcher: Dispatcher | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    # -- process --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the worker; returns at once. After its death, starts a new one that knows the same tags.

        Raises:
            SessionInUse: another process has a session of this id, or this one is started already.
            ScriptNotFound: there is no such script.
        """
        with self._lock:
            check_script(self._options.script_path)
            dispatcher = self._dispatcher
            if dispatcher is not None and (worker := dispatcher.resources.worker) is not None:
                if worker.process.is_alive():
                    raise SessionInUse(
                        f"session {self.session_id()!r} is started already",
                        session_id=self.session_id(),
                        pid=os.getpid(),
                    )
                dispatcher.forget_worker()
            if dispatcher is None:
                resources = SessionResources(self._options)
                self._finalizer = weakref.finalize(self, resources.release)
                self._dispatcher = dispatcher = Dispatcher(resources, self._lock, self._options.framework)
            dispatcher.resources.start(quiet=self._quiet_mode)

    def is_alive(self) -> bool:
        """Whether the worker process lives."""
        worker = self._worker_or_none()
        return worker is not None and worker.process.is_alive()

    def terminate(self) -> None:
        """End the worker and every process it started, at once: SIGTERM, a second, SIGKILL. Needs no answer from it.

        Tags stay; :meth:`start` starts anew. May be called while another thread waits, which gets WorkerDied.
        """
        worker = self._worker_or_none()
        if worker is not None:
            worker.process.terminate_tree()
            worker.channel.wake()

    def join(self, timeout_ms: float | None = None) -> bool:
        """Wait for the worker's end; whether it has ended."""
        worker = self._worker_or_none()
        return worker is None or worker.process.wait(float("inf") if timeout_ms is None else timeout_ms / 1000)

    def please_exit(self, timeout_ms: float = EXIT_TIMEOUT_MS, ensure: bool = True) -> bool:
        """Ask the worker to end, wait, and if it has ended clean up: the session is over and its tags are gone.

        Args:
            timeout_ms: how long to wait.
            ensure: end it by force if it does not by itself.

        Returns:
            Whether it ended by itself.
        """
        with self._lock:
            if self._worker_or_none() is None:
                self.close()
                return True
            has_ended = False
            try:
                has_ended = self._open().request_exit(timeout_ms)
            finally:
                if has_ended or ensure:
                    self.close()
            return has_ended

    def close(self) -> None:
        """End the worker by force if it lives, and remove everything of the session. Idempotent."""
        with self._lock:
            dispatcher = self._dispatcher
            if dispatcher is not None:
                assert self._finalizer is not None
                dispatcher.close()
                self._dispatcher = None  # now, for if a system call failed this may be called again
                self._finalizer.detach()

    def __enter__(self) -> PythonSession:
        try:
            self.start()
            if not self.wait_until_ready(START_TIMEOUT_MS):
                worker = self._worker_or_none()
                output = worker.process.log_tail() if worker is not None else ""
                raise ResponseTimeout(
                    f"the worker {self._options.script_path!r} was not ready after {START_TIMEOUT_MS:.0f} ms; "
                    f"it must run a server with the session id of its command line. Its last output:\n{output}",
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
        # After an error the worker may be in the middle of anything: do not wait long for it.
        try:
            self.please_exit(EXIT_TIMEOUT_MS if error is None else 500)
        finally:
            self.close()

    # -- status ---------------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether the worker waits for a request."""
        worker = self._worker_or_none()
        return worker is not None and not worker.is_over() and worker.channel.read_status().status.is_waiting

    def is_busy(self) -> bool:
        """Whether the worker is at a request."""
        worker = self._worker_or_none()
        return worker is not None and not worker.is_over() and worker.channel.read_status().status is Status.BUSY

    def new_response(self) -> bool:
        """Whether a response waits to be taken."""
        dispatcher = self._dispatcher
        return dispatcher is not None and dispatcher.has_result()

    def wait_until_ready(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Wait until the worker waits for a request; False when the time is over.

        Raises:
            WorkerDied: it ended.
        """
        return self._wait_status(lambda each: each.status.is_waiting, timeout_ms) is not None

    def wait_until_ok(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Wait until the request under way is done; whether it went well. False also when the time is over.

        Raises:
            WorkerDied: the worker ended.
        """
        line = self._wait_status(lambda each: each.status in (Status.OK, Status.ERROR), timeout_ms, of_request=True)
        return line is not None and line.status is Status.OK

    def _wait_status(self, until: StatusTest, timeout_ms: float, *, of_request: bool = False) -> StatusLine | None:
        with self._lock:
            return self._open().wait_status(until, timeout_ms, of_request=of_request)

    # -- text -----------------------------------------------------------------------------------------------------

    def send_request(self, message: UserMessage) -> None:
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
        with self._lock:
            self._open().send(message, DEFAULT_TIMEOUT_MS)

    def read_response(self) -> str | None:
        """Take the response's text if there is one; None if not.

        Raises:
            RemoteError: the request failed.
        """
        with self._lock:
            dispatcher = self._open()
            dispatcher.worker()
            return dispatcher.take(0, has_tensors=False)[0].result if dispatcher.has_result() else None

    def wait_for_response(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> str:
        """Take the next response's text.

        Raises:
            ResponseTimeout: none came in time.
            RemoteError: the request failed; UnknownCommand if the worker does not know the command.
            WorkerDied: the worker ended.
        """
        with self._lock:
            return self._open().take(timeout_ms, has_tensors=False)[0].result

    def fetch_response(self, message: UserMessage, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> str:
        """:meth:`send_request` and :meth:`wait_for_response` of that very request, in one."""
        with self._lock:
            return (self._dispatcher or self._open()).call(message, (), timeout_ms, None)[0].result

    # -- tensors --------------------------------------------------------------------------------------------------

    def send_tensor(self, tensor: Any, tag: str) -> None:
        """Let ``tag`` name a tensor until it is sent again, dropped, or the session ends.

        Copies the tensor once into shared memory; a loan (:meth:`empty`) not at all. The worker hears of it with the
        next request.

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
            self._open().transfer.put(tag, tensor)

    def drop_tensor(self, tag: str) -> None:
        """Forget a tag and give its memory back.

        Raises:
            MissingTag: there is no such tag.
        """
        with self._lock:
            self._open().transfer.drop(tag)

    def fetch_tensor(self, message: UserMessage, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> Any:
        """:meth:`send_request` and :meth:`wait_for_tensor` of that very request, in one."""
        with self._lock:
            return tensors_of(
                *(self._dispatcher or self._open()).call(message, (), timeout_ms, self._options.framework)
            )

    def wait_for_tensor(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> Any:
        """Take the next response's tensor, or the list of its tensors if there are several.

        A numpy tensor is a read-only view of shared memory; a torch tensor is a copy-on-write one.

        Raises:
            UnexpectedResponse: the response has no tensor.
            ResponseTimeout, RemoteError, WorkerDied: as in :meth:`wait_for_response`.
        """
        with self._lock:
            return tensors_of(*self._open().take(timeout_ms, has_tensors=True))

    def calculate(self, message: UserMessage, *tensors: Any, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> Any:
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
        framework = self._options.framework
        if tensors:
            is_torch = type(tensors[0]) is not np.ndarray and hasattr(tensors[0], "untyped_storage")
            framework = "torch" if is_torch else "numpy"
        with self._lock:
            response, arrays = (self._dispatcher or self._open()).call(message, tensors, timeout_ms, framework)
        return (arrays[0] if len(arrays) == 1 else arrays) if arrays else response.result

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32", framework: str | None = None) -> Any:
        """A loan: a tensor of undefined content in shared memory, which sending need not copy.

        Once sent it can no longer be written: a numpy loan becomes read-only, a store into a torch loan stays in
        this process; slices and reshaped views as well. (What else was made of a loan before is not known here, with
        ``torch.from_numpy``, ``memoryview`` or ``as_strided`` of a numpy one, ``torch.from_dlpack`` or
        ``untyped_storage`` of a torch one: no longer write through that.)

        Args:
            shape: sizes in elements, outermost first.
            dtype: ``"float32"``, ``"bfloat16"``, … or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``; the session's own if left out.

        Raises:
            OutOfSpace: no room.
        """
        framework = framework or self._options.framework
        dispatcher = self._dispatcher or self._open()
        array = dispatcher.transfer.quick_loan(shape, dtype) if framework == "numpy" else None
        if array is not None:
            return array
        with self._lock:
            return self._open().transfer.empty(shape, dtype, framework)

    def stats(self) -> PoolStats:
        """What this side holds in shared memory."""
        with self._lock:
            return self._open().transfer.stats()

    @property
    def rejected(self) -> int:
        """With ``auth=True``: messages since the first start that were not the worker's, and were not taken for one."""
        dispatcher = self._dispatcher
        return 0 if dispatcher is None else dispatcher.resources.rejections.rejected

    # -- access ---------------------------------------------------------------------------------------------------

    def session_dir(self) -> str:
        """Path of the session's directory; it exists from the first start() to the end of the session."""
        dispatcher = self._dispatcher
        return (
            dispatcher.resources.directory
            if dispatcher is not None
            else Workspace.locate().session_dir(self._options.session_id)
        )

    def session_id(self) -> str:
        return self._options.session_id

    def set_quiet_mode(self, quiet_mode: bool) -> None:
        """Whether the worker's output from now on stays in its log only."""
        self._quiet_mode = quiet_mode
        worker = self._worker_or_none()
        if worker is not None:
            worker.process.forward_log(not quiet_mode)

    def _open(self) -> Dispatcher:
        dispatcher = self._dispatcher
        if dispatcher is None:
            raise SessionNotStarted(
                f"session {self._options.session_id!r} is not started; call start(), or use it as a context manager"
            )
        dispatcher.check_own()
        return dispatcher

    def _worker_or_none(self) -> WorkerHandle | None:
        dispatcher = self._dispatcher
        return None if dispatcher is None or dispatcher.resources.is_foreign else dispatcher.resources.worker
