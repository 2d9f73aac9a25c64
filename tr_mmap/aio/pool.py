"""``tr_mmap.aio.SessionPool``: a pool that asyncio awaits. Starts and sends nothing itself: the pool in it does.

An await needs no thread: the pool's dispatcher tells the loop, once for all that was answered since the loop last
looked. What blocks, a broadcast and the end, runs in a thread.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from ..controller.lifecycle import START_TIMEOUT_MS
from ..pool.chunks import Chunk
from ..pool.mapping import FILL_S, Feed
from ..pool.pool import INHERITED, Inherited
from ..pool.pool import SessionPool as BlockingPool
from ..wire.names import DEFAULT_WORKER
from .threads import in_thread

if TYPE_CHECKING:
    from typing import Unpack

    from ..controller.progress import OnProgress
    from ..pool.lifecycle import PoolKeywords
    from ..pool.progress import Progress
    from ..pool.stats import SessionPoolStats
    from ..pool.tasks import PoolFuture

__all__ = ["AsyncMapResults", "SessionPool"]


class _Calls:
    """The results for one loop: one wake of the loop is enough for many of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._done: deque[Callable[[], None]] = deque()
        self._look = _Look()  # the next one

    def post(self, action: Callable[[], None]) -> None:
        """The dispatcher, mostly: have the loop call a function soon."""
        self._done.append(action)
        look = self._look
        if look.is_due:
            return
        try:
            self.loop.call_soon_threadsafe(self._take)
        except RuntimeError:
            pass  # the loop is closed: nobody awaits this any more
        look.is_due = True  # last: after an exception, the next one calls the loop once more

    def _take(self) -> None:
        self._look = _Look()  # before the look: what is appended from here on calls again
        try:
            while self._done:
                action = self._done.popleft()
                try:
                    action()
                except Exception as error:  # of one caller's function: the others have their results
                    self.loop.call_exception_handler(
                        {"message": "a function that a pool has called in the loop has failed", "exception": error}
                    )
        finally:
            if self._done:  # SystemExit, or an interrupt
                self.loop.call_soon(self._take)


class _Look:
    """One look of a loop at what the dispatcher has for it.

    Attributes:
        is_due: the loop was told.
    """

    __slots__ = ("is_due",)

    def __init__(self) -> None:
        self.is_due = False


class _Call(asyncio.Future[Any]):
    """The result of one request, as a loop sees it. To cancel it cancels the request."""

    def __init__(self, calls: _Calls, future: PoolFuture) -> None:
        super().__init__(loop=calls.loop)
        self._future = future
        future.add_done_callback(lambda _: calls.post(self._settle))

    def _settle(self) -> None:
        future = self._future
        if self.done():
            return
        if future.cancelled():
            super().cancel()
        elif (error := future.exception(0)) is not None:
            self.set_exception(error)
        else:
            self.set_result(future.result(0))

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the request; if its handler was called already, its answer is dropped when it comes."""
        if self.done():
            return False
        self._future.cancel()
        return super().cancel(msg)


class SessionPool:
    """Workers of one script, over which requests are spread, for asyncio.

    An asynchronous context manager. Takes the arguments of :class:`tr_mmap.SessionPool`, and has its methods; those
    that wait are awaitable. It may be used from several loops.

    Args:
        script: a Python script that runs a server, or ``"default"`` for the worker that ships with the package.
        max_workers: how many; None for one for each processor that this process may use.
        **options: those of :class:`tr_mmap.SessionPool`.

    Raises:
        BadMessage, ScriptNotFound, MissingPackage: as :class:`tr_mmap.SessionPool`.
    """

    def __init__(
        self,
        script: str | os.PathLike[str] = DEFAULT_WORKER,
        max_workers: int | None = None,
        **options: Unpack[PoolKeywords],
    ) -> None:
        self._pool = BlockingPool(script, max_workers, **options)
        self._calls: _Calls | None = None  # of the loop that has called last

    def __repr__(self) -> str:
        return f"<tr_mmap.aio.SessionPool of {self._pool!r}>"

    def _calls_of_loop(self) -> _Calls:
        loop = asyncio.get_running_loop()
        calls = self._calls
        if calls is None or calls.loop is not loop:
            calls = self._calls = _Calls(loop)
        return calls

    # -- start and end ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._pool.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await in_thread(self._pool.__exit__, kind, error, trace)

    async def wait_until_ready(self, timeout_ms: float | None = START_TIMEOUT_MS) -> bool:
        """Wait until all workers are ready; see :meth:`tr_mmap.SessionPool.wait_until_ready`."""
        return await in_thread(self._pool.wait_until_ready, timeout_ms)

    async def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more requests, and end the workers when all are done; see :meth:`tr_mmap.SessionPool.shutdown`."""
        await in_thread(partial(self._pool.shutdown, wait, cancel_futures=cancel_futures))

    def terminate_workers(self) -> None:
        """End all workers now: SIGTERM, one second, SIGKILL. The pool is shut down."""
        self._pool.terminate_workers()

    def kill_workers(self) -> None:
        """End all workers now, by SIGKILL. The pool is shut down."""
        self._pool.kill_workers()

    def resize(self, max_workers: int) -> None:
        """Have another number of workers."""
        self._pool.resize(max_workers)

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(
        self,
        command: Any,
        /,
        *arguments: Any,
        timeout_ms: float | Inherited | None = INHERITED,
        on_progress: OnProgress | None = None,
    ) -> asyncio.Future[Any]:
        """As :meth:`tr_mmap.SessionPool.submit`; the result is a future of the running loop, to be awaited later."""
        calls = self._calls_of_loop()
        told = None if on_progress is None else _in_loop(calls, on_progress)
        return _Call(calls, self._pool.submit(command, *arguments, timeout_ms=timeout_ms, on_progress=told))

    async def calculate(
        self,
        command: Any,
        /,
        *arguments: Any,
        timeout_ms: float | Inherited | None = INHERITED,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """As :meth:`tr_mmap.SessionPool.calculate`. To cancel the task cancels the request."""
        return await self.submit(command, *arguments, timeout_ms=timeout_ms, on_progress=on_progress)

    def map(
        self,
        command: Any,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        ordered: bool = True,
        buffersize: int | None = None,
        chunksize: int | Literal["auto"] = "auto",
        timeout: float | None = None,
        timeout_ms: float | Inherited | None = INHERITED,
        progress: Progress = None,
    ) -> AsyncMapResults:
        """As :meth:`tr_mmap.SessionPool.map`, for ``async for``. The iterable may be an asynchronous one."""
        source = None
        if len(iterables) == 1 and isinstance(iterables[0], AsyncIterable):
            source = aiter(iterables[0])
        parts = self._pool._parts_of_map(
            command,
            () if source is not None else iterables,  # type: ignore[arg-type] # none is asynchronous then
            source is not None,
            buffersize,
            chunksize,
            timeout_ms,
            progress,
        )
        deadline_s = time.monotonic() + (math.inf if timeout is None else timeout)
        return AsyncMapResults(self._calls_of_loop(), source, ordered, deadline_s, *parts)

    # -- tensors that all workers have --------------------------------------------------------------------------------

    async def broadcast(self, tensor: Any, tag: str) -> None:
        """Let a tag name a tensor in every worker; see :meth:`tr_mmap.SessionPool.broadcast`."""
        await in_thread(self._pool.broadcast, tensor, tag)

    async def drop_tensor(self, tag: str) -> None:
        """Forget a tag that was broadcast, and release its memory."""
        await in_thread(self._pool.drop_tensor, tag)

    def stats(self) -> SessionPoolStats:
        """What the pool does, and what each of its workers does."""
        return self._pool.stats()


def _in_loop(calls: _Calls, on_progress: OnProgress) -> OnProgress:
    def tell(fraction: float, text: str) -> None:
        calls.post(partial(_call, on_progress, fraction, text))

    return tell


def _call(on_progress: OnProgress, fraction: float, text: str) -> None:
    on_progress(fraction, text)


def _popped(items: deque[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The items, first to last. Is asked for no more than there are."""
    while True:
        yield items.popleft()


class AsyncMapResults(AsyncIterator[Any]):
    """The results of :meth:`SessionPool.map`. Also an asynchronous context manager, which closes it.

    Args:
        calls: of the loop.
        source: gives the items; None if the feed has them.
        is_ordered: whether the results come in the order of the items.
        deadline_s: when the last result has to be there, by the monotonic clock.
        make_feed, submit, check_wait, most, on_result, on_end: as :class:`tr_mmap.pool.mapping.MapResults`.
    """

    def __init__(
        self,
        calls: _Calls,
        source: AsyncIterator[Any] | None,
        is_ordered: bool,
        deadline_s: float,
        make_feed: Callable[[Callable[[Chunk], None], Iterator[tuple[Any, ...]] | None], Feed],
        submit: Callable[[Any], None],
        check_wait: Callable[[], None],
        most: int,
        on_result: Callable[[int], object] | None,
        on_end: Callable[[], object] | None,
    ) -> None:
        self._calls = calls
        self._source = source
        self._is_fed = source is not None
        self._items: deque[tuple[Any, ...]] = deque()  # of the source, that are not in a chunk yet
        self._is_ordered = is_ordered
        self._deadline_s = deadline_s
        self._submit = submit
        self._check_wait = check_wait
        self._most = most
        self._on_result = on_result
        self._on_end = on_end
        self._chunks: deque[Chunk] = deque()
        self._finished: deque[Chunk] = deque()
        self._values: deque[Any] = deque()
        self._news = asyncio.Event()
        news, finished = self._news, self._finished

        def tell(chunk: Chunk) -> None:
            if not is_ordered:
                finished.append(chunk)
            calls.post(news.set)

        self._feed = make_feed(tell, None if source is None else _popped(self._items))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            while not self._values:
                await self._take_chunk()
            value = self._values.popleft()
            if self._on_result is not None:
                self._on_result(1)
            return Chunk.opened(value)
        except BaseException:
            self._close()
            raise

    async def _take_chunk(self) -> None:
        await self._fill()
        if not self._chunks:
            raise StopAsyncIteration
        while not self._is_there():
            self._news.clear()
            if not self._is_there():
                self._check_wait()
                left_s = self._deadline_s - time.monotonic()
                try:
                    await asyncio.wait_for(self._news.wait(), None if left_s == math.inf else max(0.0, left_s))
                except TimeoutError:
                    if not self._is_there():
                        raise TimeoutError("the results of map() were not there in time") from None
        chunk = self._chunks[0] if self._is_ordered else self._finished.popleft()
        self._chunks.remove(chunk)
        self._values.extend(chunk.values)
        self._feed.learn(chunk)
        chunk.values = []
        await self._fill()

    def _is_there(self) -> bool:
        return self._chunks[0].is_done if self._is_ordered else bool(self._finished)

    async def _fill(self) -> None:
        until_s = time.monotonic() + FILL_S
        while len(self._chunks) < self._most and (
            not self._chunks or not self._is_there() or time.monotonic() < until_s
        ):
            most = self._feed.size
            if self._is_fed:
                most = await self._read(most)
                if not most:
                    return
            chunk = self._feed.next_chunk(most)
            if chunk is None:
                return
            self._chunks.append(chunk)
            self._submit(chunk.tasks[0])
            self._feed.made = None

    async def _read(self, size: int) -> int:
        """Read items of the source for the next chunk. Returns how many there are."""
        until_s = time.monotonic() + FILL_S
        count = self._feed.held
        while self._source is not None and count + len(self._items) < size:
            if self._items and time.monotonic() >= until_s:
                break
            try:
                self._items.append((await anext(self._source),))
            except StopAsyncIteration:
                self._source = None
        return count + len(self._items)

    async def aclose(self) -> None:
        """Cancel what no handler has begun, and read no more of the iterable. Idempotent."""
        self._close()

    def _close(self) -> None:
        self._feed.close()
        self._source = None
        self._items.clear()
        while self._chunks:
            for task in list(self._chunks.popleft().tasks):
                task.drop()
        self._values.clear()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
