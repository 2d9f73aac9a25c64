"""Ways to use a pool: each is tried by the same tests. ``Blocking`` is the pool itself, ``Awaits`` that of asyncio."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from loop_thread import LoopThread
from support import FOREVER_MS, WORKERS

from tr_mmap import SessionPool, SessionPoolStats, aio

__all__ = ["POOL_TOOLS", "WAYS", "Way", "made"]

POOL_TOOLS = WORKERS / "pool_tools.py"


class Way(ABC):
    """One pool, and requests to it. A token is what ``submit`` returns."""

    @abstractmethod
    def __init__(self, script: Any, size: int, **options: Any) -> None: ...

    @abstractmethod
    def submit(self, command: Any, *arguments: Any, **options: Any) -> Any: ...

    @abstractmethod
    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method, and wait for it if it has to be awaited."""

    @abstractmethod
    def mapped(self, command: Any, *iterables: Any, most: int | None = None, **options: Any) -> list[Any]:
        """The results of a map; only the first ones if there is a number, and then the iterator is closed."""

    @abstractmethod
    def end(self) -> None: ...

    @abstractmethod
    def cancel(self, token: Any) -> bool: ...

    def ask(self, command: Any, *arguments: Any, **options: Any) -> Any:
        return self.outcome(self.submit(command, *arguments, **options))

    def outcome(self, token: Any) -> Any:
        """The result, or the error."""
        try:
            return self.result(token)
        except (Exception, CancelledError, asyncio.CancelledError) as error:
            return error

    @abstractmethod
    def result(self, token: Any) -> Any: ...

    def stats(self) -> SessionPoolStats:
        stats: SessionPoolStats = self.call("stats")
        return stats


class Blocking(Way):
    def __init__(self, script: Any, size: int, **options: Any) -> None:
        self.pool = SessionPool(script, size, quiet_mode=True, **options)
        self.pool.__enter__()

    def submit(self, command: Any, *arguments: Any, **options: Any) -> Any:
        return self.pool.submit(command, *arguments, **options)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.pool, name)(*arguments, **options)

    def mapped(self, command: Any, *iterables: Any, most: int | None = None, **options: Any) -> list[Any]:
        results = self.pool.map(command, *iterables, **options)
        if most is None:
            return list(results)
        with results:
            return [next(results) for _ in range(most)]

    def cancel(self, token: Any) -> bool:
        return bool(token.cancel())

    def result(self, token: Any) -> Any:
        return token.result(FOREVER_MS / 1000)

    def end(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class Awaits(Way):
    """``tr_mmap.aio``, in a loop that runs in a thread of its own."""

    def __init__(self, script: Any, size: int, **options: Any) -> None:
        self._loop = LoopThread()
        try:
            self.pool = aio.SessionPool(script, size, quiet_mode=True, **options)
            self._loop.run(self.pool.__aenter__())
        except BaseException:
            self._loop.end()
            raise

    def _in_loop(self, action: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return action()

        return self._loop.run(call())

    def submit(self, command: Any, *arguments: Any, **options: Any) -> Any:
        return self._in_loop(lambda: self.pool.submit(command, *arguments, **options))

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        method = getattr(self.pool, name)
        if asyncio.iscoroutinefunction(method):
            return self._loop.run(method(*arguments, **options))
        return self._in_loop(lambda: method(*arguments, **options))

    def mapped(self, command: Any, *iterables: Any, most: int | None = None, **options: Any) -> list[Any]:
        async def collect() -> list[Any]:
            async with self.pool.map(command, *iterables, **options) as results:
                if most is None:
                    return [each async for each in results]
                return [await anext(results) for _ in range(most)]

        found: list[Any] = self._loop.run(collect())
        return found

    def cancel(self, token: Any) -> bool:
        return bool(self._in_loop(token.cancel))

    def result(self, token: Any) -> Any:
        async def wait() -> Any:
            return await token

        return self._loop.run(wait())

    def end(self) -> None:
        try:
            self.call("shutdown", cancel_futures=True)
        finally:
            self._loop.end()


WAYS: dict[str, type[Way]] = {"blocking": Blocking, "asyncio": Awaits}


def made(way: str, size: int = 1, script: Any = POOL_TOOLS, **options: Any) -> Way:
    return WAYS[way](script, size, **options)
