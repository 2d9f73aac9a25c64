"""Ways to have many requests of one session in flight: each is tried by the same tests.

A way submits a request and gives a token; later it tells the outcome of that token: the result, or the error's name.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from abc import ABC, abstractmethod
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import support
from loop_thread import LoopThread
from support import FOREVER_MS, TOOLS

import tr_mmap
from tr_mmap import PythonSession, aio
from tr_mmap.controller.request_future import RequestFuture

__all__ = ["IN_PYTHON", "LINES", "Awaits", "Futures", "Lines", "Way"]


class Way(ABC):
    """One session, and requests to it.

    Attributes:
        cancelled: the outcome of a request that was cancelled.
    """

    cancelled = "CancelledError"

    @abstractmethod
    def __init__(self, **options: Any) -> None: ...

    @abstractmethod
    def submit(self, message: str, *tensors: Any, timeout_ms: float | None = FOREVER_MS) -> Any:
        """Send a request, or have it sent when there is room for it. Returns its token."""

    @abstractmethod
    def pid(self) -> int: ...

    @abstractmethod
    def restart(self) -> None: ...

    @abstractmethod
    def end(self) -> None: ...

    def flush(self) -> None:  # noqa: B027 - most do at once what they are asked
        """Wait until what was asked of the way so far was done."""

    @abstractmethod
    def close(self) -> None:
        """Close the session, and go on."""

    @abstractmethod
    def in_flight(self) -> int:
        """How many requests were sent and not answered."""

    def cancel(self, token: Any, *, kill_running: bool = False) -> bool:
        """Cancel a request. Returns whether it is cancelled."""
        assert not kill_running
        return bool(token.cancel())

    def is_done(self, token: Any) -> bool:
        """Whether there is an outcome."""
        return bool(token.done())

    def outcome(self, token: Any) -> Any:
        """The result, or the name of the error."""
        try:
            return token.result(FOREVER_MS / 1000)
        except (Exception, CancelledError) as error:
            return type(error).__name__

    def ask(self, message: str, *tensors: Any) -> Any:
        return self.outcome(self.submit(message, *tensors))


def _count(session: PythonSession) -> int:
    assert session._dispatcher is not None
    return len(session._dispatcher.in_flight)


class Futures(Way):
    def __init__(self, **options: Any) -> None:
        self.session: PythonSession = PythonSession(TOOLS, "many", quiet_mode=True, **options)
        self.session.__enter__()

    def submit(self, message: str, *tensors: Any, timeout_ms: float | None = FOREVER_MS) -> Future[Any]:
        try:
            return self._submit(message, *tensors, timeout_ms=timeout_ms)
        except (tr_mmap.Busy, tr_mmap.ResponseTimeout) as error:  # it was not sent
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _submit(self, message: str, *tensors: Any, timeout_ms: float | None) -> Future[Any]:
        return self.session.submit(message, *tensors, timeout_ms=timeout_ms)

    def in_flight(self) -> int:
        return _count(self.session)

    def cancel(self, token: Future[Any], *, kill_running: bool = False) -> bool:
        return token.cancel(kill_running=kill_running) if isinstance(token, RequestFuture) else token.cancel()

    def pid(self) -> int:
        return self.session.pid or 0

    def restart(self) -> None:
        self.session.start()
        assert self.session.wait_until_ready(FOREVER_MS)

    def close(self) -> None:
        self.session.close()

    end = close


class Awaits(Way):
    """``tr_mmap.aio``, in a loop that runs in a thread of its own."""

    def __init__(self, **options: Any) -> None:
        self.loop = LoopThread()
        self.session = aio.PythonSession(TOOLS, "many", quiet_mode=True, **options)
        try:
            self.loop.run(self.session.__aenter__())
        except BaseException:
            self.loop.end()
            raise

    def submit(self, message: str, *tensors: Any, timeout_ms: float | None = FOREVER_MS) -> Future[Any]:
        call = self.session.calculate(message, *tensors, timeout_ms=timeout_ms)
        return self.loop.start(call)

    def flush(self) -> None:
        for _ in range(3):  # a task that is cancelled runs in the loop's next pass
            self.loop.run(asyncio.sleep(0))

    def in_flight(self) -> int:
        return _count(self.session._session)

    def pid(self) -> int:
        return self.session.pid or 0

    def restart(self) -> None:
        self.loop.run(self.session.start())
        assert self.loop.run(self.session.wait_until_ready(FOREVER_MS))

    def close(self) -> None:
        self.loop.run(self.session.close())

    def end(self) -> None:
        try:
            self.close()
        finally:
            self.loop.end()


class Lines(Way):
    """A C++ program that does what it is told by lines; ``session_by_lines.cpp`` says which.

    Args:
        program: its path.
    """

    cancelled = "RequestCancelled"

    def __init__(self, program: Path, **options: Any) -> None:
        words = [f"{name}={value}" for name, value in options.items() if name in ("max_in_flight", "budget_nbytes")]
        words += [name for name in ("auth",) if options.get(name)]
        words += [str(options[name]) for name in ("at_limit", "at_budget") if name in options]
        self._ids = itertools.count(1)
        self.process = subprocess.Popen(
            [program, "program", "lines", TOOLS, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**support.environment(), "TR_PYTHON": sys.executable},
        )
        assert self._answer() == "ready"

    def _tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def _ask(self, *words: object) -> str:
        self._tell(*words)
        return self._answer()

    def submit(self, message: str, *tensors: Any, timeout_ms: float | None = FOREVER_MS) -> int:
        token = next(self._ids)
        time_ms = -1 if timeout_ms is None else timeout_ms
        if tensors:
            values = tensors[0]
            step = 0 if len(values) < 2 else values[1] - values[0]
            kind = "T" if message == "echo" else "X"
            self._tell(kind, token, time_ms, len(values), float(values[0]), float(step), message)
        else:
            self._tell("S", token, time_ms, message)
        return token

    def in_flight(self) -> int:
        return int(self._ask("F 0"))

    def cancel(self, token: int, *, kill_running: bool = False) -> bool:
        return self._ask("Q" if kill_running else "K", token) == "1"

    def is_done(self, token: int) -> bool:
        return self._ask("D", token) == "1"

    def outcome(self, token: int) -> Any:
        kind, _, rest = self._ask("G", token).partition(" ")
        if kind == "tensor":
            count, value = rest.split()
            return np.full(int(count), float(value))
        return rest

    def pid(self) -> int:
        return int(self._ask("P 0"))

    def restart(self) -> None:
        assert self._ask("R 0") == "1"

    def close(self) -> None:
        assert self._ask("C 0") == "closed"

    def end(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


IN_PYTHON: dict[str, type[Way]] = {"futures": Futures, "asyncio": Awaits}
LINES = "C++"
