"""``SessionPool``: what a program calls. Sends nothing and starts nothing itself: the dispatcher and its staff do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import Any, Final, Literal

from ..controller.options import seconds_of
from ..controller.progress import OnProgress
from ..controller.results import Result, value_of
from ..errors import BadMessage
from ..protocol.commands import UserMessage, parse_command
from .arguments import check_count, message_of
from .chunks import Chunk
from .lifecycle import PoolLifecycle
from .mapping import Feed, MapParts, MapResults
from .progress import Guarded, Progress, progress_of
from .stats import SessionPoolStats
from .tasks import FutureTask, PoolFuture, Task
from .worker import Worker

__all__ = ["INHERITED", "Inherited", "SessionPool"]

_BUFFER: Final = 8
_BUFFER_OF_WORKER: Final = 3


class Inherited:
    """Stands for the pool's own timeout."""

    def __repr__(self) -> str:
        return "that of the pool"


INHERITED: Final = Inherited()


class SessionPool(PoolLifecycle):
    """Workers of one script, over which requests are spread. A ``concurrent.futures.Executor`` of commands.

    Its functions are the names of commands: ``pool.submit("classify", image)``, and
    ``loop.run_in_executor(pool, "classify", image)``. The workers are started with the first request, or on entry to a
    ``with`` block. A worker that dies or hangs is replaced; what it had begun is tried again ``retries`` times. What it
    had not begun goes to another worker, and this does not count as an attempt.

    A tensor must not be changed before its request is done: it may be copied only when a worker gets it, and again for
    another attempt.

    Args:
        script: a Python script that runs a server, or ``"default"`` for the worker that ships with the package.
        max_workers: how many; None for one for each processor that this process may use.
        retries: how often a request is tried again when its worker died while its handler ran.
        max_tasks_per_child: how many requests a worker may answer before it is replaced; None for any number.
        timeout_ms: how long a handler may run. One that runs for longer counts as hung: its worker is ended, which is
            the same as a death, and the error says at which line it was. None for no limit.
        max_in_flight: requests that are with one worker at a time, 1 to 62; None to choose: two, and more if they take
            less than a millisecond. Give more for a worker that handles several at once (``threads=``).
        reload: whether the workers are replaced, one by one, when the script's file has changed.
        quiet_mode: False also prints the workers' output to this process's stderr.
        framework: ``"numpy"`` or ``"torch"``: of results of requests that have no tensors.
        **options: those of :class:`tr_mmap.PythonSession` for each worker, but for ``session_id``, ``replace``,
            ``at_limit`` and ``at_budget``. ``spare_workers`` is how many there are for all workers together; those that
            replace dead workers, or that :meth:`resize` and ``reload`` start, are made of them.

    Raises:
        BadMessage: an option is not valid; ``detail`` is its name.
        ScriptNotFound: there is no such script.
        MissingPackage: the framework is not installed.
    """

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(  # type: ignore[override] # the functions of this executor are names
        self,
        command: Any,
        /,
        *arguments: Any,
        timeout_ms: float | Inherited | None = INHERITED,
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
            A ``concurrent.futures.Future``. It fails with WorkerDied if its worker dies, or hangs, ``retries`` + 1
            times; with RemoteError if the handler raises; with UnsupportedTensor or OutOfSpace if an argument cannot be
            sent.

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
        _check_command(message)
        limit_s = self._limit_s if timeout_ms is INHERITED else seconds_of(timeout_ms)
        framework, home = self._framework_of(tensors), None
        if tensors:
            tensors, home = self._place(tensors)
        told = None if on_progress is None else Guarded(on_progress)
        task = FutureTask(dispatcher, shape, message, tensors, framework, limit_s, self._retries, told)
        task.home = home
        future = task.future
        assert future is not None  # it has no outcome yet
        dispatcher.submit(task)
        return future

    def _place(self, tensors: tuple[Any, ...]) -> tuple[tuple[Any, ...], Worker | None]:
        """The tensors of a request, in shared memory if that is of use, and the worker in whose memory they lie."""
        dispatcher = self._dispatcher
        home = dispatcher.places.home_of(tensors)
        if home is None and self._is_staging:
            tensors = dispatcher.staging.staged(tensors)
        return tensors, home

    def calculate(
        self,
        command: Any,
        /,
        *arguments: Any,
        timeout_ms: float | Inherited | None = INHERITED,
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

    def map(
        self,
        command: Any,
        *iterables: Iterable[Any],
        ordered: bool = True,
        buffersize: int | None = None,
        chunksize: int | Literal["auto"] = "auto",
        timeout: float | None = None,
        timeout_ms: float | Inherited | None = INHERITED,
        progress: Progress = None,
    ) -> MapResults:
        """Have each item handled, and iterate over the results.

        Lazy and bounded: the iterables are read in the thread that takes the results, and only ``buffersize`` requests
        ahead of it. Like that of ``concurrent.futures``, but for the defaults of ``buffersize`` and ``chunksize``.

        Args:
            command: the command, and perhaps words for it.
            *iterables: of arguments, as for :meth:`submit`; with several, each request gets one item of each.
            ordered: whether the results come in the order of the items; else as they are there.
            buffersize: most requests whose results were not taken; None for 8, or three for each worker if this is
                more.
            chunksize: items in one request. ``"auto"`` puts small items that take little time together. When a worker
                dies, a request of several items is split, and they are tried again one by one. This counts as no
                attempt, but handlers may be called twice, also with ``retries=0``; with 1 they are not.
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
        deadline_s = time.monotonic() + (math.inf if timeout is None else timeout)
        parts = self._parts_of_map(command, iterables, False, buffersize, chunksize, timeout_ms, progress)
        return MapResults(*parts, ordered, deadline_s)

    def _parts_of_map(
        self,
        command: Any,
        iterables: tuple[Iterable[Any], ...],
        is_asynchronous: bool,
        buffersize: int | None,
        chunksize: int | Literal["auto"],
        timeout_ms: float | Inherited | None,
        progress: Progress,
    ) -> MapParts:
        """What a map is made of, all checked: to make the feed, take a task, refuse a wait; how many; progress."""
        dispatcher = self._open() if self._dispatcher.is_shut else self._dispatcher  # which raises
        if not iterables and not is_asynchronous:
            raise BadMessage("map() needs an iterable of arguments", detail="iterables")
        _check_command(message_of(command, ())[0])
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
        limit_s = self._limit_s if isinstance(timeout_ms, Inherited) else seconds_of(timeout_ms)
        total = min((length_hint(each, -1) for each in iterables), default=-1)
        told = progress_of(progress, total if total >= 0 else None)

        self._open()  # last: nothing is started for a map that is refused

        def make_feed(tell: Callable[[Chunk], None], items: Iterator[tuple[Any, ...]] | None = None) -> Feed:
            given = _zipped(iterables) if items is None else items
            return Feed(command, given, size, self._framework_of, limit_s, self._retries, self._place, tell)

        return make_feed, self._take, dispatcher.check_wait, most, *told

    def _take(self, task: Task) -> None:
        self._open().submit(task)

    # -- tensors that all workers have --------------------------------------------------------------------------------

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


def _check_command(message: UserMessage) -> None:
    """Refuse a message without a command at once."""
    if not isinstance(message, str) or not message or message.isspace():
        parse_command(message)


def _zipped(iterables: tuple[Iterable[Any], ...]) -> Iterator[tuple[Any, ...]]:
    """As zip() does, but a single iterable's last item is not kept: its memory may be that of the next one."""
    return map(_alone, iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)


def _alone(item: Any) -> tuple[Any]:
    return (item,)
