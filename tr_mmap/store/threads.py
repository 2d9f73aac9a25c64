"""Threads for the slow work of an asyncio handle. Knows no stores.

A task may be cancelled while a thread works for it; the thread goes on. So a result that nobody waits for any more is
given back, and work that must be finished is finished.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from .turns import be_polite

__all__ = ["Threads", "do", "obtain"]

_T = TypeVar("_T")
_THREADS: Final = 4


class Threads:
    """A few threads, started when they are first needed. A forked child starts its own.

    Args:
        name: of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pid = os.getpid()
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, action: Callable[..., _T], /, *arguments: Any, **options: Any) -> _T:
        """Call a function in a thread. If the task is cancelled, a call that has begun goes on to its end."""
        if self._pool is None or self._pid != os.getpid():
            self._pid, self._pool = os.getpid(), ThreadPoolExecutor(_THREADS, self._name, be_polite)
        return await asyncio.wrap_future(self._pool.submit(action, *arguments, **options))

    def end(self) -> None:
        """Wait until the threads have finished all calls."""
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.shutdown()


async def do(action: Callable[[], _T]) -> _T:
    """Call a function at once, in a thread of its own. It runs to its end also if the task is cancelled."""
    return await asyncio.wrap_future(_begin(action))


async def obtain(make: Callable[[], _T], give_back: Callable[[_T], object]) -> _T:
    """As :func:`do`; if the task is cancelled before it gets the result, ``give_back`` is called with the result."""
    making = _begin(make)
    try:
        return await asyncio.wrap_future(making)
    except BaseException:

        def when_made(made: Future[_T]) -> None:
            if made.exception() is None:
                _begin(lambda: give_back(made.result()))  # not here: this may be the loop's thread

        making.add_done_callback(when_made)
        raise


def _begin(action: Callable[[], _T]) -> Future[_T]:
    """Call a function in a new thread. The future cannot be cancelled, because it counts as running."""
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        be_polite()
        try:
            result = action()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=work, name="tr_store_once").start()
    return future
