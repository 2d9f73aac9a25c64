"""``SessionPool``: what a program calls. Sends nothing and starts nothing itself: the dispatcher and its staff do."""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from operator import length_hint
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self, SupportsIndex

from ..controller.launch import check_script
from ..controller.lifecycle import START_TIMEOUT_MS
from ..controller.options import check_bool, seconds_of
from ..controller.progress import OnProgress
from ..controller.results import Result, value_of
from ..controller.session import PythonSession
from ..errors import BadMessage, SessionNotStarted
from ..wire.messages import MOST_IN_FLIGHT
from ..wire.names import DEFAULT_WORKER
from ..wire.waits import EXIT_TIMEOUT_MS, TERMINATE_GRACE_S
from ..wire.words import OF_PARENT
from .arguments import check_count, message_of, worker_count
from .dispatcher import Dispatcher
from .mapping import Chunk, Feed, MapResults
from .progress import Progress, progress_of
from .staff import Staff
from .stats import SessionPoolStats
from .tasks import FutureTask, PoolFuture, Task

if TYPE_CHECKING:
    from typing import Unpack

    from ..controller.session import SessionKeywords

__all__ = ["SessionPool"]

_SHUT: Final = "cannot schedule new futures after shutdown"  # the standard library's words
_GRACE_AFTER_ERROR_S: Final = 0.5  # for handlers that run, at the end of a ``with`` block that has raised
_OF_POOL: Final = ("session_id", "at_limit", "at_budget", "replace")  # options of a session that a pool sets
_BUFFER: Final = 8
_BUFFER_OF_WORKER: Final = 3

_pools: weakref.WeakSet[Dispatcher] = weakref.WeakSet()  # that have begun


class _Inherited:
    """Stands for the pool's own timeout."""

    def __repr__(self) -> str:
        return "that of the pool"


_INHERITED: Final = _Inherited()


class SessionPool(Executor):
    """Workers of one script, over which requests are spread. A ``concurrent.futures.Executor`` of commands.

    Its functions are the names of commands: ``pool.submit("classify", image)``, and
    ``loop.run_in_executor(pool, "classify", image)``. The workers are started with the first request, or on entry to a
    ``with`` block. A worker that dies or hangs is replaced; what it had begun is tried again ``retries`` times, and what
    it had not begun goes to another worker and does not count as an attempt.

    A tensor must not be changed before its request is done: it is copied when a worker gets it, and again for another
    attempt.

    Args:
        script: a Python script that runs a server, or ``"default"`` for the worker that ships with the package.
        max_workers: how many; None for one for each processor that this process may use.
        retries: how often a request is tried again when its worker died while its handler ran.
        max_tasks_per_child: how many requests a worker may answer before it is replaced; None for any number.
        timeout_ms: how long a handler may run. One that runs for longer counts as hung: its worker is ended, which is
            the same as a death. None for no limit.
        max_in_flight: requests that are with one worker at a time, 1 to 62; None to choose: two, and more if they take
            less than a millisecond. A worker that handles several at once (``threads=``) needs more than it has threads.
        reload: whether the workers are replaced, one by one, when the script's file has changed.
        quiet_mode: False also prints the workers' output to this process's stderr.
        framework: ``"numpy"`` or ``"torch"``: of results of requests that have no tensors.
        **options: those of :class:`tr_mmap.PythonSession` for each worker, but for ``session_id``, ``replace``,
            ``at_limit`` and ``at_budget``.

    Raises:
        BadMessage: an option is not valid; ``detail`` is its name.
        ScriptNotFound: there is no such script.
        MissingPackage: the framework is not installed.
    """

    def __init__(
        self,
        script: str | os.PathLike[str] = DEFAULT_WORKER,
        max_workers: int | None = None,
        *,
        retries: int = 0,
        max_tasks_per_child: int | None = None,
        timeout_ms: float | None = None,
        max_in_flight: int | None = None,
        reload: bool = False,
        quiet_mode: bool = False,
        framework: str = "numpy",
        **options: Unpack[SessionKeywords],
    ) -> None:
        self._pid = os.getpid()
        size = worker_count(max_workers)
        self._retries = check_count("retries", retries, 0)
        most = math.inf if max_tasks_per_child is None else check_count("max_tasks_per_child", max_tasks_per_child)
        self._most_tasks = most
        self._limit_s = seconds_of(timeout_ms)
        if max_in_flight is not None and check_count("max_in_flight", max_in_flight) > MOST_IN_FLIGHT:
            raise BadMessage(
                f"max_in_flight is {max_in_flight}; it must be a number of requests, 1 to {MOST_IN_FLIGHT}, or None",
                detail="max_in_flight",
            )
        check_bool("reload", reload)
        check_bool("quiet_mode", quiet_mode)
        for name in _OF_POOL:
            if name in options:
                raise BadMessage(
                    f"{name} cannot be given to a pool, which sets it for each of its sessions", detail=name
                )
        self._name = f"pool-{os.getpid()}-{secrets.token_hex(4)}"
        new_session = partial(
            PythonSession[Any],
            script,
            quiet_mode=quiet_mode,
            framework=framework,
            max_in_flight=MOST_IN_FLIGHT,
            **options,
        )
        checked: Any = new_session(session_id=self._name)
        self._script: str = checked._options.script_path
        check_script(self._script)
        self._framework_of: Callable[[tuple[Any, ...]], str] = checked._framework_of
        start_timeout_ms = options.get("start_timeout_ms", START_TIMEOUT_MS)
        names = _names(self._name)
        staff = Staff(
            lambda: new_session(session_id=next(names)), self._script, size, most, seconds_of(start_timeout_ms), reload
        )
        self._dispatcher = Dispatcher(staff, max_in_flight)
        self._finalizer = weakref.finalize(
            self, self._dispatcher.shut, is_cancelling=False, grace_s=EXIT_TIMEOUT_MS / 1000
        )
        self._finalizer.atexit = False  # _end_all() waits for all pools
        self._starting = threading.Lock()
        self._is_started = False

    def __repr__(self) -> str:
        if self._is_foreign():
            return f"<SessionPool of {self._script}: of the parent process>"
        dispatcher = self._dispatcher
        what = "shut down" if dispatcher.is_shut else "not started" if not self._is_started else "running"
        return f"<SessionPool of {self._script}: {dispatcher.staff.size} workers, {what}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a SessionPool can be neither copied nor pickled, because it owns processes: make another one")

    # -- start and end ------------------------------------------------------------------------------------------------

    def _is_foreign(self) -> bool:
        return os.getpid() != self._pid

    def _open(self) -> Dispatcher:
        """The dispatcher, running."""
        if self._is_foreign():
            raise SessionNotStarted(f"pool {self._name!r}{OF_PARENT}")
        dispatcher = self._dispatcher
        if dispatcher.is_shut:
            raise RuntimeError(_SHUT)
        if not self._is_started:
            with self._starting:
                if not self._is_started:
                    dispatcher.staff.start()
                    dispatcher.start()
                    _pools.add(dispatcher)
                    self._is_started = True
        return dispatcher

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shut down. After an error, what no handler has is cancelled, and handlers that run are ended after 0.5 s."""
        if error is None:
            self.shutdown()
            return
        self._shut(cancel_futures=True, grace_s=_GRACE_AFTER_ERROR_S)
        if not self._dispatcher.has_ended.wait(_GRACE_AFTER_ERROR_S):
            self._dispatcher.end_workers(0.0)
            self._dispatcher.has_ended.wait()

    def wait_until_ready(self, timeout_ms: float | None = START_TIMEOUT_MS) -> bool:
        """Wait until all workers are ready. Requests need not wait for that. False if the time is over.

        Raises:
            WorkerDied: the workers cannot be started; or another error, which says why.
        """
        return self._open().staff.wait_until_ready(seconds_of(timeout_ms))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more requests, and end the workers when all requests are done.

        Args:
            wait: whether to wait for that. The program does not end before, in either case.
            cancel_futures: whether requests whose handlers were not called are cancelled.
        """
        self._shut(cancel_futures, EXIT_TIMEOUT_MS / 1000)
        if wait and not self._is_foreign() and not self._dispatcher.is_current_thread():
            self._dispatcher.has_ended.wait()

    def _shut(self, cancel_futures: bool, grace_s: float) -> None:
        if not self._is_foreign():
            self._dispatcher.shut(is_cancelling=cancel_futures, grace_s=grace_s)

    def terminate_workers(self) -> None:
        """End all workers now: SIGTERM, one second, SIGKILL. What they have fails with WorkerDied; the pool is shut down.

        Requests whose handlers were not called are cancelled.
        """
        self._end_workers(TERMINATE_GRACE_S)

    def kill_workers(self) -> None:
        """End all workers now, by SIGKILL. What they have fails with WorkerDied; the pool is shut down.

        Requests whose handlers were not called are cancelled.
        """
        self._end_workers(0.0)

    def _end_workers(self, grace_s: float) -> None:
        if not self._is_foreign():
            self._dispatcher.end_workers(grace_s)

    def resize(self, max_workers: int) -> None:
        """Have another number of workers. Returns at once; those that are too many end after their last answer.

        Raises:
            BadMessage: it is no number from 1 on.
            RuntimeError: the pool is shut down.
        """
        size = check_count("max_workers", max_workers)
        dispatcher = self._open()
        dispatcher.post(partial(dispatcher.staff.resize, size))

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(  # type: ignore[override] # the functions of this executor are names
        self,
        command: Any,
        /,
        *arguments: Any,
        timeout_ms: float | None | _Inherited = _INHERITED,
        on_progress: OnProgress | None = None,
    ) -> PoolFuture:
        """Have a worker handle a request, and return at once; the result comes as a future.

        Args:
            command: the command, and perhaps words for it.
            *arguments: texts, numbers and paths become further words. Tensors are for this request only. Or one dict:
                the arguments by name. None of them may be changed before the future is done.
            timeout_ms: how long the handler may run; that of the pool if left out, None for no limit.
            on_progress: called in the pool's thread with the fraction that is done and a text, when the handler calls
                ``server.progress``.

        Returns:
            A ``concurrent.futures.Future``. It fails with WorkerDied if the worker dies, or hangs, ``retries`` + 1 times;
            with RemoteError if the handler raises; with UnsupportedTensor or OutOfSpace if an argument cannot be sent.

        Raises:
            BadMessage: there is no command.
            RuntimeError: the pool is shut down.
            SessionNotStarted: this process is a forked child.
        """
        return self._submit(value_of, command, arguments, timeout_ms, on_progress)

    def _submit(
        self,
        shape: Callable[[Result], Any],
        command: Any,
        arguments: tuple[Any, ...],
        timeout_ms: Any,
        on_progress: OnProgress | None,
    ) -> PoolFuture:
        dispatcher = self._open()
        message, tensors = message_of(command, arguments)
        if not isinstance(message, str) or not message or message.isspace():
            _check_message(message)
        limit_s = self._limit_s if timeout_ms is _INHERITED else seconds_of(timeout_ms)
        task = FutureTask(
            dispatcher, shape, message, tensors, self._framework_of(tensors), limit_s, self._retries, on_progress
        )
        if tensors:
            task.home = dispatcher.places.home_of(tensors)
        dispatcher.submit(task)
        return task.future

    def calculate(
        self,
        command: Any,
        /,
        *arguments: Any,
        timeout_ms: float | None | _Inherited = _INHERITED,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """Have a worker handle a request, and wait for its result. Takes the arguments of :meth:`submit`.

        Returns:
            As :meth:`tr_mmap.PythonSession.calculate`.

        Raises:
            RemoteError, WorkerDied: there is no result.
            BadMessage, UnsupportedTensor, OutOfSpace: of the arguments.
        """
        future = self._submit(value_of, command, arguments, timeout_ms, on_progress)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupt of the wait
            raise

    def map(  # type: ignore[override] # the functions of this executor are names
        self,
        command: Any,
        *iterables: Iterable[Any],
        ordered: bool = True,
        buffersize: int | None = None,
        chunksize: int | Literal["auto"] = "auto",
        timeout: float | None = None,
        timeout_ms: float | None | _Inherited = _INHERITED,
        progress: Progress = None,
    ) -> MapResults:
        """Have each item handled, and iterate over the results.

        Lazy and bounded: the iterables are read in the thread that takes the results, and only ``buffersize`` requests
        ahead of it. Like that of ``concurrent.futures``, but for the defaults of ``buffersize`` and ``chunksize``.

        Args:
            command: the command, and perhaps words for it.
            *iterables: of arguments, as for :meth:`submit`; with several, each request gets one item of each.
            ordered: whether the results come in the order of the items; else as they are there.
            buffersize: most requests whose results were not taken; None for 8, or three for each worker if that is more.
            chunksize: items in one request. ``"auto"`` puts small items that take little time together. When a worker
                dies, a request of several items counts as one attempt for each of them, and they are tried again one by
                one.
            timeout: seconds from this call until the last result; then ``next`` raises TimeoutError.
            timeout_ms: how long the handler of one item may run.
            progress: True, or a text as its name, for a bar of tqdm; or a function of how many are done and how many
                there are (None if that is not known).

        Returns:
            An iterator, which is also a context manager. An item's error is raised in its place, and ends the
            iteration. :meth:`MapResults.close` cancels what was not begun.

        Raises:
            BadMessage: an option is not valid; ``detail`` is its name.
            MissingPackage: there is no tqdm for the bar.
            RuntimeError: the pool is shut down.
        """
        dispatcher = self._open()
        if not iterables:
            raise BadMessage("map() needs an iterable of arguments", detail="iterables")
        message_of(command, ())
        size = None if chunksize == "auto" else check_count("chunksize", chunksize)
        if size is not None and size > self._most_tasks:
            raise BadMessage(
                f"chunksize is {size}; a worker may answer only {self._most_tasks} requests (max_tasks_per_child)",
                detail="chunksize",
            )
        if size is None and self._most_tasks < math.inf:
            size = 1
        most = (
            max(_BUFFER, _BUFFER_OF_WORKER * dispatcher.staff.size)
            if buffersize is None
            else check_count("buffersize", buffersize)
        )
        totals = [length_hint(each, -1) for each in iterables]
        on_result, on_end = progress_of(progress, min(totals) if min(totals) >= 0 else None)
        deadline_s = time.monotonic() + (math.inf if timeout is None else timeout)
        limit_s = self._limit_s if timeout_ms is _INHERITED else seconds_of(timeout_ms)

        def make_feed(tell: Callable[[Chunk], None]) -> Feed:
            return Feed(
                command,
                zip(*iterables, strict=False),
                size,
                self._framework_of,
                limit_s,
                self._retries,
                dispatcher.places.home_of,
                tell,
            )

        return MapResults(make_feed, self._take, most, ordered, deadline_s, on_result, on_end)

    def _take(self, task: Task) -> None:
        self._open().submit(task)

    # -- tensors that all workers have ----------------------------------------------------------------------------------

    def broadcast(self, tensor: Any, tag: str) -> None:
        """Let a tag name a tensor in every worker, also in those that are started later.

        When this method returns, all workers that take requests have it. Requests that wait for a worker see it, too.
        The tensor must not be changed while the tag is in use.

        Args:
            tensor: numpy or torch.
            tag: at most 128 of ``A-Z a-z 0-9 _ . -``; requests name it as a word: ``pool.submit("apply weights", x)``.

        Raises:
            BadTag, UnsupportedTensor, OutOfSpace: the tag names what it named before.
            RuntimeError: the pool is shut down.
        """
        staff = self._open().staff
        staff.broadcasts.send(tensor, tag, staff.workers)

    def drop_tensor(self, tag: str) -> None:
        """Forget a tag that was broadcast, and release its memory.

        Raises:
            MissingTag: there is no such tag.
        """
        staff = self._open().staff
        staff.broadcasts.drop(tag, staff.workers)

    def stats(self) -> SessionPoolStats:
        """What the pool does, and what each of its workers does."""
        return self._dispatcher.stats()


def _names(prefix: str) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"{prefix}-{number}"


def _check_message(message: Any) -> None:
    """Refuse a message without a command now, and not when a worker gets it."""
    from ..protocol.commands import parse_command

    parse_command(message)


def _end_all() -> None:
    """At the interpreter's exit: all requests are done first, as with the standard library's executors."""
    own = [each for each in list(_pools) if each.pid == os.getpid()]
    for each in own:
        each.shut(is_cancelling=False, grace_s=EXIT_TIMEOUT_MS / 1000)
    for each in own:
        each.has_ended.wait()


try:
    threading._register_atexit(_end_all)  # type: ignore[attr-defined] # before daemon threads are ended, as atexit is not
except RuntimeError:  # the interpreter ends already
    pass
