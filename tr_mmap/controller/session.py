"""``PythonSession``: start a worker, send it tensors and requests, receive tensors. Never imports the worker's side.

It imports torch only for tensors in that framework.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypedDict, TypeVar, overload

import numpy as np

from ..base.identifiers import check_tag
from ..errors import ResponseTimeout, SemaphoresUnavailable
from ..protocol.commands import UserMessage
from ..wire.names import DEFAULT_WORKER
from ..wire.waits import DEFAULT_TIMEOUT_MS
from .lifecycle import SessionLifecycle
from .options import AtBudget, AtLimit, ChannelName, Device, Views, seconds_of
from .progress import OnProgress
from .request_future import RequestFuture
from .results import Result, tensors_of, value_of

if TYPE_CHECKING:
    from typing import Unpack

    import torch

__all__ = ["PythonSession", "SessionKeywords", "WorkerKeywords"]

_Tensor = TypeVar("_Tensor", covariant=True)  # a tensor of the session's framework
_PLAIN: Final = (float, int)  # a timeout of exactly one of these classes is valid if it is not negative


class WorkerKeywords(TypedDict, total=False):
    """The options of :class:`PythonSession` by name that a pool, too, passes on to each of its sessions."""

    channel: ChannelName
    budget_nbytes: int | None
    auth: bool
    checksum: bool
    spin_us: float
    recycle_memory: bool
    views: Views | None
    device: Device | None
    start_timeout_ms: float | None
    args: Iterable[str]
    env: Mapping[str, str | None] | None
    cwd: str | os.PathLike[str] | None
    python: str | os.PathLike[str] | None
    spare_workers: int


class SessionKeywords(WorkerKeywords, total=False):
    """The options of :class:`PythonSession` that are given by name, for programs that pass them on."""

    at_budget: AtBudget
    replace: bool
    max_in_flight: int
    at_limit: AtLimit


class PythonSession(SessionLifecycle, Generic[_Tensor]):
    """A worker process and the tensors that cross to and from it.

    A context manager: on entry it starts the worker and waits until it is ready; on exit it ends the worker and cleans
    up. Threads may share a session, and have requests in flight at the same time. Every ``timeout_ms`` is for the whole
    call, in milliseconds, also while the worker handles earlier requests; None sets no limit.

    Args:
        script_path: a Python script that runs a server, or ``"default"`` for the worker that ships with the package.
            A relative path is resolved now.
        session_id: names the session on this machine; at most 64 of ``A-Z a-z 0-9 _ . -``.
        quiet_mode: False also prints the worker's output to this process's stderr.
        framework: ``"numpy"`` or ``"torch"``: of received tensors, unless a call says otherwise.
        channel: ``"mapped"``, or ``"files"`` where there are no semaphores, or ``"legacy"`` for a worker that speaks
            only the legacy dialect.
        budget_nbytes: most bytes of tensors that each side holds in shared memory; None for no limit but the file
            system's.
        at_budget: what happens when the next tensor would exceed the budget. ``"fail"`` raises OutOfSpace; ``"block"``
            first waits up to 10 s for the other side to release views, but not longer than the call may take.
        auth: both sides sign each control message with a secret that only they have; forged messages are ignored. See
            ``tr_mmap.protocol.mac`` for what this protects from.
        checksum: both sides store a CRC-32 of each tensor's bytes and compare it when they receive the tensor. This
            finds damage, not malice. Each side reads every tensor once more for it.
        spin_us: microseconds that either side polls for a message, at most, before it sleeps; up to 1000. Saves
            wake-ups if messages come that soon and each side has a processor for itself. After a longer wait a side
            sleeps at once the next time, so an idle session costs nothing.
        recycle_memory: the worker keeps up to 256 MiB of private memory that it has freed, so that new large arrays of
            its handlers wait for no memory pages. False gives it back to the system at once.
        views: ``"readonly"`` or ``"copy_on_write"``: what received tensors are. None is ``"readonly"`` for numpy and
            ``"copy_on_write"`` for torch. A store into a read-only numpy array raises; a store into a read-only torch
            tensor ends the process, because torch has no such tensors. What is stored into a copy-on-write tensor
            stays in this process.
        device: None has received tensors in CPU memory. ``"same"`` puts each torch tensor on the device where the
            worker had it; a process without that device gets UnsupportedTensor. See :func:`tr_mmap.sender_device`.
        replace: whether :meth:`start` first closes another session of this process that has the same id, for example
            that of an earlier run of the same notebook cell.
        start_timeout_ms: how long ``with`` waits until the worker is ready; None sets no limit.
        args: more words for the worker's command line, after the session id.
        env: changes to the environment that the worker inherits: names to values, or to None to remove a variable.
            ``TR_PYTHON`` in it chooses this worker's interpreter. What tr_mmap itself sets for the worker stays:
            ``TR_WORKSPACE``, and its own folders at the beginning of a script's ``PYTHONPATH``.
        cwd: the worker's current directory; None for this process's.
        python: the worker's interpreter; None for ``TR_PYTHON`` in ``env`` or else in this process's environment, else
            this process's.
        max_in_flight: most requests that are with the worker at a time, 1 to 62. A channel other than ``"mapped"``
            carries one.
        at_limit: what one more request does then: ``"block"`` waits until one is answered, ``"fail"`` raises Busy.
        spare_workers: how many further processes are kept that have imported numpy and tr_mmap, and torch with
            ``framework="torch"``, but nothing of the script's. A later :meth:`start` takes one of them, and is much
            faster. The first one is made when the first worker is ready. Not for the legacy channel.

    Raises:
        BadMessage: an option is not valid; ``detail`` is its name.
        TypeError: there is no option of that name.
        MissingPackage: the framework is not installed.
        ScriptNotFound: a path is relative, and this process's current directory has been removed.
    """

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: PythonSession[np.ndarray[Any, Any]],
            script_path: str | os.PathLike[str] = DEFAULT_WORKER,
            session_id: str = "default",
            quiet_mode: bool = False,
            *,
            framework: Literal["numpy"] = "numpy",
            **options: Unpack[SessionKeywords],
        ) -> None: ...
        @overload
        def __init__(
            self: PythonSession[torch.Tensor],
            script_path: str | os.PathLike[str] = DEFAULT_WORKER,
            session_id: str = "default",
            quiet_mode: bool = False,
            *,
            framework: Literal["torch"],
            **options: Unpack[SessionKeywords],
        ) -> None: ...
        @overload
        def __init__(
            self: PythonSession[Any],
            script_path: str | os.PathLike[str] = DEFAULT_WORKER,
            session_id: str = "default",
            quiet_mode: bool = False,
            *,
            framework: str,
            **options: Unpack[SessionKeywords],
        ) -> None: ...
        def __init__(self, *arguments: Any, **options: Any) -> None: ...

    # -- text -----------------------------------------------------------------------------------------------------

    def send_request(self, message: UserMessage, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> None:
        """Send a request. To take its response, call :meth:`read_response` or a ``wait_for_…`` method.

        Does not wait for the responses to earlier requests: this thread takes them in the order of its requests.

        Args:
            message: ``"matmul a b"``, or JSON, or a dict: ``{"cmd": "matmul", "params": "a,b"}``.
            timeout_ms: how long to wait until one more request may be in flight.

        Raises:
            BadMessage: there is no command in it.
            Busy: ``max_in_flight`` requests are in flight, and ``at_limit`` is ``"fail"``.
            WorkerDied: the worker ended.
            ResponseTimeout: there was no room for one more request in time.
            SessionNotStarted: there is no worker.
        """
        dispatcher = self._open()
        self._named.forget(dispatcher)
        dispatcher.send_public(message, seconds_of(timeout_ms))

    def read_response(self) -> str | None:
        """Take the response's text if the response is there; None if not.

        Raises:
            RemoteError: the request failed.
            WorkerDied: the worker ended before it answered the request; each lost request says so once.
            SessionNotStarted: there is no worker.
        """
        dispatcher = self._open()
        if not dispatcher.has_result():
            dispatcher.worker()
            return None
        try:
            return self._text_of(dispatcher.take(0))
        except ResponseTimeout:  # another thread was faster
            return None

    def wait_for_response(self, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> str:
        """Take the next response's text.

        Raises:
            ResponseTimeout: none came in time.
            RemoteError: the request failed; UnknownCommand if the worker does not know the command.
            WorkerDied: the worker ended.
            SessionNotStarted: there is no worker, or the session was closed meanwhile.
        """
        return self._text_of(self._open().take(seconds_of(timeout_ms)))

    def fetch_response(self, message: UserMessage, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> str:
        """Send a request and take the text of its own response.

        Raises:
            BadMessage: there is no command in the message.
            ResponseTimeout, RemoteError, WorkerDied: as in :meth:`wait_for_response`.
        """
        plain: Any = timeout_ms
        timeout_s = plain / 1000 if plain.__class__ in _PLAIN and plain >= 0 else seconds_of(timeout_ms)
        return (self._dispatcher or self._open()).call(message, (), timeout_s, None)[0].result

    def _text_of(self, result: Result) -> str:
        response, tensors = result
        if tensors or response.tensors:  # a program may still take them by their names
            self._named.note(result)
        return response.result

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
            OutOfSpace: no room. If the file system is full and no request is under way, the worker is first asked to
                give up its free segments. The tag still names what it named before.
            SessionNotStarted: the session is not started.
        """
        check_tag(tag)
        dispatcher = self._open()
        dispatcher.with_room(dispatcher.transfer.put, tag, tensor)

    def drop_tensor(self, tag: str) -> None:
        """Forget a tag and release its memory.

        Raises:
            MissingTag: there is no such tag.
        """
        self._open().transfer.drop(tag)

    def fetch_tensor(self, message: UserMessage, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> Any:
        """Send a request and take the tensor of its own response, or the list of its tensors if there are several.

        Raises:
            BadMessage: there is no command in the message.
            UnexpectedResponse, ResponseTimeout, RemoteError, WorkerDied: as in :meth:`wait_for_tensor`.
        """
        dispatcher = self._dispatcher or self._open()
        return tensors_of(*dispatcher.call(message, (), seconds_of(timeout_ms), self._options.framework))

    def wait_for_tensor(self, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> Any:
        """Take the next response's tensor, or the list of its tensors if there are several.

        A tensor is a view of shared memory. By default (``views=None``) a numpy view is read-only and a torch view is
        copy-on-write.

        Raises:
            UnexpectedResponse: the response has no tensor.
            ResponseTimeout, RemoteError, WorkerDied: as in :meth:`wait_for_response`.
        """
        return tensors_of(*self._open().take(seconds_of(timeout_ms)))

    def recv_tensor(self, tag: str, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> Any:
        """Take a tensor by its name from this thread's next response, or from the one that it took last.

        The last response is used if no other one is due. This method took it, or :meth:`wait_for_response` or
        :meth:`read_response` took its text.

        The tensors of a response are named ``"result_0"``, ``"result_1"``, …; if there is only one, it is named
        ``"result"`` too. A worker may also write a file of another name with ``write_tsr_file``. If no response is
        due, this method waits for such a file. A tensor can be taken once; those that were not taken stay until the
        session's next request.

        Raises:
            MissingTag: the response has no tensor of that name. It can still be taken, by another name or by a
                ``wait_for_…`` method, until the session's next request.
            BadTag: the name may not name a tensor.
            TSRFormatError: the worker has written a file of that name that holds no tensor.
            ResponseTimeout, RemoteError, WorkerDied: as in :meth:`wait_for_response`.
        """
        dispatcher, framework = self._open(), self._options.framework
        return self._named.receive(dispatcher, tag, seconds_of(timeout_ms), self.session_dir(), framework)

    def calculate(
        self,
        message: UserMessage,
        *tensors: Any,
        timeout_ms: float | None = DEFAULT_TIMEOUT_MS,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """Send a request with its tensors, and take its result, in one call.

        Args:
            message: the command, and words for it if it takes any.
            *tensors: for this request only. They get tags of their own, which follow the message's words. Or one dict:
                the arguments by name, which are tensors, texts, numbers, None, and lists of these.
            timeout_ms: how long to wait for the response.
            on_progress: called with the fraction that is done and a text, when the handler calls ``server.progress``.
                It need not see each one, but sees the last. It runs in the thread that waits for answers.

        Returns:
            The result's tensor, the list of its tensors if there are several, or its text if there is none; a dict if
            the function has returned one. Tensors are of the framework of the first tensor sent, or of the session's
            framework if none was sent.

        Raises:
            BadMessage: there is no command in the message.
            UnsupportedTensor, OutOfSpace: of the tensors to send.
            RemoteError, UnknownCommand, ResponseTimeout, WorkerDied: as in :meth:`wait_for_response`.
        """
        framework = self._framework_of(tensors)
        plain: Any = timeout_ms
        timeout_s = plain / 1000 if plain.__class__ in _PLAIN and plain >= 0 else seconds_of(timeout_ms)
        return value_of((self._dispatcher or self._open()).call(message, tensors, timeout_s, framework, on_progress))

    def _framework_of(self, tensors: tuple[Any, ...]) -> str:
        """The framework of the result of a request with such tensors."""
        if not tensors:
            return self._options.framework
        if isinstance(tensors[0], Mapping):  # arguments by name
            tensors = tuple(each for each in tensors[0].values() if hasattr(each, "shape"))[:1]
            return self._framework_of(tensors)
        is_torch = type(tensors[0]) is not np.ndarray and hasattr(tensors[0], "untyped_storage")
        return "torch" if is_torch else "numpy"

    # -- many requests at once ------------------------------------------------------------------------------------

    def submit(
        self,
        message: UserMessage,
        *tensors: Any,
        timeout_ms: float | None = DEFAULT_TIMEOUT_MS,
        on_progress: OnProgress | None = None,
    ) -> RequestFuture:
        """Send a request with its tensors, and return at once; the result comes as a future.

        As many requests as ``max_in_flight`` may be with the worker. The results come in the order in which it answers.
        ``concurrent.futures.wait`` and ``as_completed``, and ``asyncio.wrap_future``, take such futures.

        Args:
            message: the command, and words for it if it takes any.
            *tensors: for this request only, as in :meth:`calculate`. They may be changed when this method has returned.
            timeout_ms: how long the response may take; the future fails with ResponseTimeout then.
            on_progress: as in :meth:`calculate`.

        Returns:
            A ``concurrent.futures.Future``. Its result is that of :meth:`calculate`; its error, what that would raise.

        Raises:
            BadMessage: there is no command in the message.
            UnsupportedTensor, OutOfSpace: of the tensors to send.
            Busy: ``max_in_flight`` requests are in flight, and ``at_limit`` is ``"fail"``.
            ResponseTimeout: there was no room for one more request in time.
            WorkerDied: the worker ended.
            SessionNotStarted: there is no worker.
        """
        futures = self._open_futures()
        plain: Any = timeout_ms
        timeout_s = plain / 1000 if plain.__class__ in _PLAIN and plain >= 0 else seconds_of(timeout_ms)
        make = partial(RequestFuture, futures, self, timeout_s, value_of)
        return futures.send(message, tensors, timeout_s, self._framework_of(tensors), make, on_progress)

    def fileno(self) -> int:
        """A descriptor that can be read when answers may have come, or the worker has ended, for another event loop.

        From now on the loop calls :meth:`process_responses` each time the descriptor can be read, and futures get their
        results there. Without this call a thread of the session's does that. The descriptor stays the same until the
        session ends.

        Raises:
            SessionNotStarted: the session is not started.
            SemaphoresUnavailable: this channel, or this file system, has no such descriptor.
        """
        futures = self._open_futures()
        bell = futures.use_own_loop()
        if bell is None:
            raise SemaphoresUnavailable(
                f"a session with channel={self._options.channel!r} here has no descriptor to sleep on; leave the "
                "futures to the session's own thread",
                reason="no FIFO",
            )
        return bell

    def process_responses(self) -> float | None:
        """Deal with the answers that are there, as :meth:`fileno` says. Never waits.

        Returns:
            In how many seconds to call this again if the descriptor is not readable before, because the time of a
            request is over then; None if no request has a time limit.

        Raises:
            SessionNotStarted: the session is not started.
        """
        futures = self._open_futures()
        futures.process()
        deadline_s = futures.next_deadline_s()
        return None if deadline_s == math.inf else max(0.0, deadline_s - time.monotonic())

    @overload
    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32", framework: None = None) -> _Tensor: ...
    @overload
    def empty(
        self, shape: int | tuple[int, ...], dtype: Any = "float32", *, framework: Literal["numpy"]
    ) -> np.ndarray[Any, Any]: ...
    @overload
    def empty(
        self, shape: int | tuple[int, ...], dtype: Any = "float32", *, framework: Literal["torch"]
    ) -> torch.Tensor: ...
    @overload
    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32", framework: str | None = None) -> Any: ...
    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32", framework: str | None = None) -> Any:
        """A loan: a tensor of undefined content in shared memory; sending it copies nothing.

        After sending, no store into the loan reaches the worker: a numpy loan becomes read-only, and a store into a
        torch loan stays in this process. The same holds for slices and reshaped views.

        The library does not know some other objects that were made from a loan before it was sent. Do not write through
        these any more:

        - from a numpy loan: what ``torch.from_numpy``, ``memoryview``, ``np.from_dlpack``, ``as_strided`` or a writable
          ``sliding_window_view`` made, and views whose class is a subclass of ``ndarray``;
        - from a torch loan: what ``torch.from_dlpack`` or ``untyped_storage`` made;
        - either kind of loan, in a child that was forked before.

        Args:
            shape: sizes in elements, outermost first.
            dtype: ``"float32"``, ``"bfloat16"``, … or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``; the session's own if left out.

        Raises:
            UnsupportedTensor: no such dtype, or a shape that TSR cannot hold.
            BadMessage: no such framework.
            OutOfSpace: no room.
        """
        if framework is None:
            framework = self._options.framework
        dispatcher = self._dispatcher or self._open()
        loaned = dispatcher.transfer.quick_loan(shape, dtype, framework)
        if loaned is not None:
            return loaned
        dispatcher = self._open()
        return dispatcher.with_room(dispatcher.transfer.empty, shape, dtype, framework)
