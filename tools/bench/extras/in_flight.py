"""Many requests of one session in flight: beside one at a time, and beside asyncio over a pool of processes.

A way that has many in flight is given as the time of a batch by the number of its requests. One request at a time is
given so too, and as the time of each call, as an await is. Where there is a compiler, both are measured from C++, too.
Every answer is checked.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AsyncExitStack, closing
from multiprocessing import get_context
from typing import Any, Final

from tr_mmap import PythonSession, aio

from ..peers.cpp import CppClient, compiler
from ..stats import summarise

__all__ = ["run"]

_DEPTH: Final = 32  # requests in flight, as many as a session has by default
_MANY: Final = 4  # sessions, or processes of a pool


def greet(message: str) -> str:
    """What the worker that ships answers, for a pool's processes."""
    return f"Hello {message.split()[1].title()}"


def _messages(count: int) -> list[str]:
    return [f"hello {number}" for number in range(count)]


def _check(messages: Sequence[str], answers: Sequence[str]) -> None:
    if [greet(each) for each in messages] != list(answers):
        raise RuntimeError("an answer is wrong")


def _submit_all(session: PythonSession[Any], messages: Sequence[str]) -> list[str]:
    """Keeps 32 requests in flight, and takes the results in the order of the requests."""
    waiting: deque[Future[Any]] = deque()
    answers: list[str] = []
    for message in messages:
        if len(waiting) == _DEPTH:
            answers.append(waiting.popleft().result())
        waiting.append(session.submit(message))
    return answers + [each.result() for each in waiting]


class _Bench:
    """What is compared, and its samples: nanoseconds for each request."""

    def __init__(self, session: PythonSession[Any], sessions: list[aio.PythonSession], messages: list[str]) -> None:
        self._session = session
        self._sessions = sessions
        self._messages = messages
        self.samples: dict[str, list[int]] = {}

    def blocking(self) -> None:
        answers, clock, samples = [], time.perf_counter_ns, self.samples.setdefault("blocking", [])
        first = clock()
        for message in self._messages:
            began = clock()
            answers.append(self._session.fetch_response(message))
            samples.append(clock() - began)
        self._add("one_by_one", first, len(answers))
        _check(self._messages, answers)

    def submitted(self) -> None:
        began = time.perf_counter_ns()
        answers = _submit_all(self._session, self._messages)
        self._add("submit", began, len(answers))
        _check(self._messages, answers)

    async def awaited(self) -> None:
        answers, clock, samples = [], time.perf_counter_ns, self.samples.setdefault("await", [])
        session = self._sessions[0]
        for message in self._messages:
            began = clock()
            answers.append(await session.calculate(message))
            samples.append(clock() - began)
        _check(self._messages, answers)

    async def gathered(self, name: str, messages: list[str], ask: Callable[[int, str], Awaitable[str]]) -> None:
        """Await one request for each message, all at once."""
        began = time.perf_counter_ns()
        answers = await asyncio.gather(*(ask(number, message) for number, message in enumerate(messages)))
        self._add(name, began, len(answers))
        _check(messages, answers)

    def from_cpp(self, client: CppClient) -> None:
        for name, depth in (("cpp_one_by_one", 1), ("cpp_submit", _DEPTH)):
            count = len(self._messages)
            self.samples.setdefault(name, []).append(int(client.ask(f"texts {count} {depth}")) // count)

    def of_sessions(self, count: int) -> Callable[[int, str], Awaitable[str]]:
        sessions = self._sessions[:count]
        return lambda number, message: sessions[number % count].calculate(message)

    def _add(self, name: str, began_ns: int, count: int) -> None:
        self.samples.setdefault(name, []).append((time.perf_counter_ns() - began_ns) // count)


def _of_pool(pool: ProcessPoolExecutor) -> Callable[[int, str], Awaitable[str]]:
    loop = asyncio.get_running_loop()
    return lambda _, message: loop.run_in_executor(pool, greet, message)


async def _measure(quick: bool, say: Callable[[str], None], pools: dict[str, ProcessPoolExecutor]) -> dict[str, Any]:
    rounds, each, many = (3, 300, 1000) if quick else (15, 1000, 10_000)
    name = f"bench-{os.getpid()}-flight"
    async with AsyncExitStack() as stack:
        session = stack.enter_context(PythonSession("default", name, quiet_mode=True))
        sessions = [
            await stack.enter_async_context(aio.PythonSession("default", f"{name}-{number}", quiet_mode=True))
            for number in range(_MANY)
        ]
        client = stack.enter_context(closing(CppClient("default", f"{name}-cpp"))) if compiler() else None
        bench = _Bench(session, sessions, _messages(each))
        say("in flight: texts, one at a time, 32 at a time, and awaited")
        for _ in range(rounds):
            bench.blocking()
            bench.submitted()
            await bench.awaited()
            if client is not None:
                bench.from_cpp(client)
        say(f"in flight: {many:,} awaits at once, and through a pool of processes")
        ways = {
            "gather": bench.of_sessions(1),
            "gather_many": bench.of_sessions(_MANY),
            **{key: _of_pool(pool) for key, pool in pools.items()},
        }
        for key, ask in ways.items():
            await bench.gathered(f"warm {key}", _messages(_DEPTH * _MANY), ask)
        for _ in range(2 if quick else 5):
            for key, ask in ways.items():
                await bench.gathered(key, _messages(many), ask)
    found = {key: summarise(samples).to_json() for key, samples in bench.samples.items() if not key.startswith("warm")}
    return {**found, "depth": _DEPTH, "many": _MANY, "awaits": many}


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context) as one, ProcessPoolExecutor(_MANY, context) as several:
        return asyncio.run(_measure(quick, say, {"pool": one, "pool_many": several}))
