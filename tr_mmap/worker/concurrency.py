"""Several requests of a worker at once: its threads, and the loop of its ``async def`` handlers. Sends no response.

The main thread takes requests and hands each to a thread that is free, or to the loop, which begins all at once.
Whatever ends the worker in one of these threads, ``sys.exit()`` in a handler say, ends it in the main thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from .context import RequestContext, current

__all__ = ["Concurrency", "HandlerLoop"]

_SLICE_S: Final = 0.1  # how often to look for a signal while handlers run and no request is taken
_ABANDON_S: Final = 0.5  # for handlers to notice that the worker ends without them


class HandlerLoop:
    """The event loop of ``async def`` handlers, in a thread that begins with the first of them.

    Args:
        on_end: called with the exception that has ended the loop; or with None, in a child that a handler has forked,
            which came back to the loop.
    """

    def __init__(self, on_end: Callable[[BaseException | None], None]) -> None:
        self._on_end = on_end
        self._is_child = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()

    def get(self) -> asyncio.AbstractEventLoop:
        """The loop; it runs."""
        with self._starting:  # handlers in several threads may be the first to call one
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(loop,), name="tr_mmap-loop", daemon=True)
                self._thread.start()
                self._loop = loop
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        except BaseException as error:  # sys.exit() in a task that a handler has made, say
            self._on_end(error)
        if self._is_child:
            self._on_end(None)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop, and wait for what it returns or raises."""
        future = asyncio.run_coroutine_threadsafe(_caught(coroutine), self.get())
        try:
            result, error = future.result()
        except BaseException:  # of a signal's handler
            future.cancel()
            raise
        if error is not None:
            raise error
        return result

    def forked_in_child(self) -> None:
        """In a forked child: if the loop's thread has forked, let the loop end after this step."""
        if self._loop is not None and self._thread is threading.current_thread():
            self._is_child = True
            self._loop.stop()

    def close(self) -> None:
        """End the loop, if its handlers let it."""
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(_ABANDON_S)


async def _caught(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """What a coroutine returns or raises: an exception that leaves a task may end the loop."""
    try:
        return await coroutine, None
    except BaseException as error:
        return None, error


class Concurrency:
    """The requests that are handled at once.

    Args:
        threads: how many threads call plain handlers; None for the main thread alone.
        loop: of the ``async def`` handlers.
        handle: answers a request; it runs in a thread.
        handle_in_loop: answers a request whose handler is a coroutine.
        wake: ends the main thread's wait for a request, because a handler has ended the worker.

    Attributes:
        error: what a handler has raised to end the worker; None if nothing.
    """

    def __init__(
        self,
        threads: int | None,
        loop: HandlerLoop,
        handle: Callable[[RequestContext], None],
        handle_in_loop: Callable[[RequestContext], Coroutine[Any, Any, None]],
        wake: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._handle = handle
        self._handle_in_loop = handle_in_loop
        self._wake = wake
        self._running: set[RequestContext] = set()
        self._tasks: dict[RequestContext, asyncio.Task[None]] = {}  # those of them that the loop runs
        self._kept: set[asyncio.Task[None]] = set()  # the loop itself keeps no task
        self._changed = threading.Condition()
        self._free = threads or 0  # threads without a request; below zero, how many requests wait for one
        self._has_threads = threads is not None
        self._queue: queue.SimpleQueue[RequestContext] = queue.SimpleQueue()
        self.error: BaseException | None = None
        for number in range(self._free):
            threading.Thread(target=self._serve, name=f"tr_mmap-handler-{number}", daemon=True).start()

    # -- the main thread -----------------------------------------------------------------------------------------------

    def wait_for_thread(self, stop: Callable[[], bool]) -> None:
        """Wait until a thread is free, so that a request waits in the ring, where it can be cancelled."""
        if self._has_threads:
            self._wait(lambda: self._free > 0, stop)

    def wait_for_all(self, stop: Callable[[], bool]) -> None:
        """Wait until all requests that were taken are answered."""
        self._wait(lambda: not self._running, stop)

    def _wait(self, until: Callable[[], bool], stop: Callable[[], bool]) -> None:
        while True:
            with self._changed:
                if until() or self.error is not None or stop():
                    return
                self._changed.wait(_SLICE_S)
            self.look_for_cancels()

    def start(self, context: RequestContext, *, is_coroutine: bool) -> None:
        """Have a request handled: by the loop if it is a coroutine's, else by a thread, or here if there are none."""
        self._running.add(context)
        if is_coroutine:
            self._loop.get().call_soon_threadsafe(self._start_task, context)
        elif self._has_threads:
            with self._changed:
                self._free -= 1
            self._queue.put(context)
        else:
            try:
                self._run(context)
            finally:
                self._leave(context)

    def look_for_cancels(self) -> bool:
        """Cancel the tasks of requests that the controller has cancelled. Returns False.

        The others note that they are cancelled, before a later request's cancellation takes the place of theirs.
        """
        for context in list(self._running):
            if not context.is_cancelled():
                continue
            task = self._tasks.pop(context, None)  # so that it is cancelled once: it may await in a finally
            if task is not None:
                self._loop.get().call_soon_threadsafe(task.cancel)
        return False

    def abandon(self) -> None:
        """Let the handlers know that the worker ends without waiting for them, and wait a little."""
        for context in list(self._running):
            context.is_abandoned = True
        self.look_for_cancels()
        deadline_s = time.monotonic() + _ABANDON_S
        with self._changed:
            while self._running and (left_s := deadline_s - time.monotonic()) > 0:
                self._changed.wait(left_s)

    # -- the handlers' threads -----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            context = self._queue.get()
            try:
                self._run(context)
            except BaseException as error:  # in the main thread it would end the worker
                self.end(error)
            finally:
                self._leave(context, is_thread=True)
            del context

    def _run(self, context: RequestContext) -> None:
        contextvars.copy_context().run(self._run_in_context, context)

    def _run_in_context(self, context: RequestContext) -> None:
        current.set(context)
        self._handle(context)

    def _start_task(self, context: RequestContext) -> None:
        task = asyncio.get_running_loop().create_task(self._run_task(context))
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    async def _run_task(self, context: RequestContext) -> None:
        current.set(context)
        task = asyncio.current_task()
        try:
            assert task is not None
            self._tasks[context] = task  # from here on, because a task that is cancelled before it begins never does
            await self._handle_in_loop(context)
        except BaseException as error:
            self.end(error)
        finally:
            self._tasks.pop(context, None)
            self._leave(context)

    def end(self, error: BaseException) -> None:
        """Let the main thread raise this error."""
        if self.error is None:
            self.error = error
        self._wake()

    def _leave(self, context: RequestContext, *, is_thread: bool = False) -> None:
        with self._changed:
            self._running.discard(context)
            if is_thread:
                self._free += 1
            self._changed.notify_all()
