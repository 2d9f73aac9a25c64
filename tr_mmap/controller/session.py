"""``PythonSession``: start a worker, send it tensors and requests, receive tensors. Never imports the worker's side.

It imports torch only for tensors in that framework.
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

START_TIMEOUT_MS: Final = 60_000.0  # of the context manager: to import torch from a cold disk takes tens of seconds


class PythonSession:
    """A worker process and the tensors that cross to and from it.

    A context manager: on entry it starts the worker and waits until it is ready; on exit it ends the worker and cleans
    up. Threads may share a session; one waits while another's request is under way.

    Args:
        script_path: a Python script that runs a server, or ``"default"`` for the worker that ships with the package.
        session_id: names the session on this machine; at most 64 of ``A-Z a-z 0-9 _ . -``.
        quiet_mode: False also prints the worker's output to this process's stderr.
        framework: ``"numpy"`` or ``"torch"``: of received tensors, unless a call says otherwise.
        channel: ``"mapped"``, or ``"files"`` where there are no semaphores, or ``"legacy"`` for a worker that speaks
            only the legacy dialect.
        budget_nbytes: most bytes of tensors that each side holds in shared memory; None for no limit but the file
            system's.
        at_budget: ``"fail"`` raises OutOfSpace there; ``"block"`` first waits up to 10 s for the other side to release
            views.
        auth: both sides sign each control message with a secret that only they have; forged messages are ignored. See
            ``tr_mmap.protocol.mac`` for what this protects from.
        checksum: both sides store a CRC-32 of each tensor's bytes and compare it when they receive the tensor. This
            finds damage, not malice. It reads every tensor twice more.
        spin_us: microseconds that either side polls for a message, at most, before it sleeps; up to 1000. Saves
            wake-ups if messages come that soon and each side has a processor for itself. After a longer wait a side
            sleeps at once the next time, so an idle session costs nothing.

    Raises:
        BadMessage: an option is not valid.
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
        """Start the worker; does not wait until it is ready. After a worker's death, starts a new one; tags stay.

        Raises:
            SessionInUse: another process has a session of this id, or this session is started already.
            ScriptNotFound: there is no such script.
            HostilePath: the workspace is not a directory that this user can trust and use.
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
        """End the worker and every process it started, at once: SIGTERM, one second, SIGKILL.

        Tags stay; :meth:`start` starts a new worker. May be called while another thread waits; that thread gets
        WorkerDied.
        """
        worker = self._worker_or_none()
        if worker is not None:
            worker.process.terminate_tree()
            worker.channel.wake()

    def join(self, timeout_ms: float | None = None) -> bool:
        """Wait for the worker's end, for ever if ``timeout_ms`` is None. Returns whether it has ended."""
        worker = self._worker_or_none()
        return worker is None or worker.process.wait(float("inf") if timeout_ms is None else timeout_ms / 1000)

    def please_exit(self, timeout_ms: float = EXIT_TIMEOUT_MS, ensure: bool = True) -> bool:
        """Request that the worker exit, and wait. If it ends, clean up: the session is over and its tags are gone.

        Args:
            timeout_ms: how long to wait.
            ensure: whether to end the worker by force, and clean up, if it does not end by itself.

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
                self._dispatcher = None  # only now: if a system call failed, close() may be called again
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
        # After an error the worker may still run a handler: do not wait long for it.
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
        """Whether the worker works on a request."""
        worker = self._worker_or_none()
        return worker is not None and not worker.is_over() and worker.channel.read_status().status is Status.BUSY

    def new_response(self) -> bool:
        """Whether a response waits to be taken."""
        dispatcher = self._dispatcher
        return dispatcher is not None and dispatcher.has_result()

    def wait_until_ready(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Wait until the worker is ready for a request; False when the time is over.

        Raises:
            WorkerDied: it ended.
            SessionNotStarted: there is no worker.
        """
        return self._wait_status(lambda each: each.status.is_waiting, timeout_ms) is not None

    def wait_until_ok(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Wait until the request under way is done. Returns whether it succeeded; False also when the time is over.

        Raises:
            WorkerDied: the worker ended.
            SessionNotStarted: there is no worker.
        """
        line = self._wait_status(lambda each: each.status in (Status.OK, Status.ERROR), timeout_ms, of_request=True)
        return line is not None and line.status is Status.OK

    def _wait_status(self, until: StatusTest, timeout_ms: float, *, of_request: bool = False) -> StatusLine | None:
        with self._lock:
            return self._open().wait_status(until, timeout_ms, of_request=of_request)

    # -- text -----------------------------------------------------------------------------------------------------

    def send_request(self, message: UserMessage) -> None:
        """Send a request. To take its response, call :meth:`read_response` or a ``wait_for_…`` method.

        If there is no response to an earlier request yet, waits for that first. The earlier response can still be
        taken, unless it belongs to a ``fetch_…`` or ``calculate`` call that has timed out.

        Args:
            message: ``"matmul a b"``, or JSON, or a dict: ``{"cmd": "matmul", "params": "a,b"}``.

        Raises:
            BadMessage: there is no command in it.
            WorkerDied: the worker ended.
            ResponseTimeout: the earlier request does not end.
            SessionNotStarted: there is no worker.
        """
        with self._lock:
            self._open().send(message, DEFAULT_TIMEOUT_MS)

    def read_response(self) -> str | None:
        """Take the response's text if the response is there; None if not.

        Raises:
            RemoteError: the request failed.
            SessionNotStarted: there is no worker.
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
        """Send a request and take the text of its own response.

        Raises:
            BadMessage: there is no command in the message.
            ResponseTimeout, RemoteError, WorkerDied: as in :meth:`wait_for_response`.
        """
        with self._lock:
            return (self._dispatcher or self._open()).call(message, (), timeout_ms, None)[0].result

    # -- tensors --------------------------------------------------------------------------------------------------

    def send_tensor(self, tensor: Any, tag: str) -> None:
        """Let ``tag`` name a tensor until the tag is sent again or dropped, or the session ends.

        Copies the tensor once into shared memory; a loan (:meth:`empty`) is not copied. The next request announces the
        tag to the worker.

        Args:
            tensor: numpy or torch, of any strides, at most 16 dimensions; see ``tr_mmap.tsr`` for the dtypes.
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
        """Forget a tag and release its memory.

        Raises:
            MissingTag: there is no such tag.
        """
        with self._lock:
            self._open().transfer.drop(tag)

    def fetch_tensor(self, message: UserMessage, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> Any:
        """Send a request and take the tensor of its own response, or the list of its tensors if there are several.

        Raises:
            BadMessage: there is no command in the message.
            UnexpectedResponse, ResponseTimeout, RemoteError, WorkerDied: as in :meth:`wait_for_tensor`.
        """
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
        """Send a request with its tensors, and take its result, in one call.

        Args:
            message: the command, and words for it if it takes any.
            *tensors: for this request only. They get tags of their own, which follow the message's words.
            timeout_ms: how long to wait for the response.

        Returns:
            The result's tensor, the list of its tensors if there are several, or its text if there is none. Tensors are
            of the framework of the first tensor sent, or of the session's framework if none was sent.

        Raises:
            BadMessage: there is no command in the message.
            UnsupportedTensor, OutOfSpace: of the tensors to send.
            RemoteError, UnknownCommand, ResponseTimeout, WorkerDied: as in :meth:`wait_for_response`.
        """
        framework = self._options.framework
        if tensors:
            is_torch = type(tensors[0]) is not np.ndarray and hasattr(tensors[0], "untyped_storage")
            framework = "torch" if is_torch else "numpy"
        with self._lock:
            response, arrays = (self._dispatcher or self._open()).call(message, tensors, timeout_ms, framework)
        return tensors_of(response, arrays) if arrays else response.result

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32", framework: str | None = None) -> Any:
        """A loan: a tensor of undefined content in shared memory; sending it copies nothing.

        After sending, no store into the loan reaches the worker: a numpy loan becomes read-only, and a store into a
        torch loan stays in this process. The same holds for slices and reshaped views. But the library does not know
        objects that were made of a loan before, with ``torch.from_numpy``, ``memoryview`` or ``as_strided`` of a numpy
        loan, or with ``torch.from_dlpack`` or ``untyped_storage`` of a torch loan. Do not write through those any more.

        Args:
            shape: sizes in elements, outermost first.
            dtype: ``"float32"``, ``"bfloat16"``, … or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``; the session's own if left out.

        Raises:
            UnsupportedTensor: no such dtype or framework, or a shape that TSR cannot hold.
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
        """With ``auth=True``: how many messages since the first start the worker had not signed; they were ignored."""
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
        """The session's name."""
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
