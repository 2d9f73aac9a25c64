"""Threads in which a handle for asyncio does what may take long. Knows no stores.

A task may be cancelled while a thread works for it; the thread is not. So what nobody takes any more is given back, and
what must be done is done.
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
    """A few threads, started when they are first needed; in a forked child, other ones.

    Args:
        name: of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pid = os.getpid()
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, action: Callable[..., _T], /, *arguments: Any, **options: Any) -> _T:
        """What a function returns. A cancelled task does not stop it, unless no thread has begun with it."""
        if self._pool is None or self._pid != os.getpid():
            self._pid, self._pool = os.getpid(), ThreadPoolExecutor(_THREADS, self._name, be_polite)
        return await asyncio.wrap_future(self._pool.submit(action, *arguments, **options))

    def end(self) -> None:
        """Wait until they have done what they were given."""
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.shutdown()


async def do(action: Callable[[], _T]) -> _T:
    """What an action returns, done in a thread of its own: at once, and to its end, also if the task is cancelled."""
    return await asyncio.wrap_future(_begin(action))


async def obtain(make: Callable[[], _T], give_back: Callable[[_T], object]) -> _T:
    """As :func:`do`; but what is made is given back if the task is cancelled before it has it."""
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
    """Do it in a new thread. The future cannot be cancelled: it counts as running."""
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
