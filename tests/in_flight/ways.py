"""Ways to have many requests of one session in flight: each is tried by the same tests.

A way submits a request and gives a token; later it tells the outcome of that token: the result, or the error's name.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any

from support import FOREVER_MS, TOOLS

from tr_mmap import PythonSession, aio

__all__ = ["WAYS", "Way"]


class Way(ABC):
    """One session, and requests to it."""

    @abstractmethod
    def __init__(self, **options: Any) -> None: ...

    @abstractmethod
    def submit(self, message: str, *tensors: Any, timeout_ms: float | None = FOREVER_MS) -> Future[Any]:
        """Send a request, or have it sent when there is room for it."""

    @abstractmethod
    def pid(self) -> int: ...

    @abstractmethod
    def restart(self) -> None: ...

    @abstractmethod
    def end(self) -> None: ...

    def flush(self) -> None:  # noqa: B027 - most do at once what they are asked
        """Wait until what was asked of the way so far was done."""

    def in_flight(self) -> int:
        """How many requests are."""
        session = getattr(self.session, "_session", self.session)  # type: ignore[attr-defined] # both have one
        return len(session._dispatcher.in_flight)

    def outcome(self, future: Future[Any]) -> Any:
        """The result, or the name of the error."""
        try:
            return future.result(FOREVER_MS / 1000)
        except (Exception, CancelledError) as error:
            return type(error).__name__

    def ask(self, message: str, *tensors: Any) -> Any:
        return self.outcome(self.submit(message, *tensors))


class Futures(Way):
    def __init__(self, **options: Any) -> None:
        self.session: PythonSession = PythonSession(TOOLS, "many", quiet_mode=True, **options)
        self.session.__enter__()

    def submit(self, message: str, *tensors: Any, timeout_ms: float | None = FOREVER_MS) -> Future[Any]:
        return self.session.submit(message, *tensors, timeout_ms=timeout_ms)

    def pid(self) -> int:
        return self.session.pid or 0

    def restart(self) -> None:
        self.session.start()
        assert self.session.wait_until_ready(FOREVER_MS)

    def end(self) -> None:
        self.session.close()


class Awaits(Way):
    """``tr_mmap.aio``, in a loop that runs in a thread of its own."""

    def __init__(self, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.session = aio.PythonSession(TOOLS, "many", quiet_mode=True, **options)
        try:
            self.run(self.session.__aenter__)
        except BaseException:
            self._end_loop()
            raise

    def run(self, action: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run_coroutine_threadsafe(action(), self.loop).result(FOREVER_MS / 1000)

    def submit(self, message: str, *tensors: Any, timeout_ms: float | None = FOREVER_MS) -> Future[Any]:
        call = self.session.calculate(message, *tensors, timeout_ms=timeout_ms)
        return asyncio.run_coroutine_threadsafe(call, self.loop)

    def flush(self) -> None:
        for _ in range(3):  # a task that is cancelled runs in the loop's next pass
            self.run(lambda: asyncio.sleep(0))

    def pid(self) -> int:
        return self.session.pid or 0

    def restart(self) -> None:
        self.run(self.session.start)
        assert self.run(lambda: self.session.wait_until_ready(FOREVER_MS))

    def end(self) -> None:
        try:
            self.run(self.session.close)
        finally:
            self._end_loop()

    def _end_loop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


WAYS: dict[str, type[Way]] = {"futures": Futures, "asyncio": Awaits}
