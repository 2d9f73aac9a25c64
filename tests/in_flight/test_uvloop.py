"""``tr_mmap.aio`` under uvloop keeps the promises that it keeps under asyncio's own loop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from support import TOOLS, Gate

import tr_mmap
from tr_mmap import aio

uvloop = pytest.importorskip("uvloop")


def with_session(test: Callable[[aio.PythonSession], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main() -> None:
        async with aio.PythonSession(TOOLS, "uv", quiet_mode=True, **options) as session:
            await test(session)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("options", [{}, {"auth": True}, {"max_in_flight": 2}], ids=["plain", "auth", "two"])
def test_each_await_gets_its_own_answer(options: dict[str, Any]) -> None:
    async def test(session: aio.PythonSession) -> None:
        async def ask(number: int) -> bool:
            if number % 3:
                return bool(await session.calculate(f"say {number}") == str(number))
            array = np.full(1 + number, float(number))
            return bool((await session.calculate("echo", array) == array).all())

        assert all(await asyncio.gather(*(ask(number) for number in range(300))))
        assert await session.calculate("total", np.ones(1 << 20)) == str(1 << 20)  # copied by a thread

    with_session(test, **options)


def test_cancelling_a_timeout_and_a_death_end_awaits(gate: Gate) -> None:
    async def test(session: aio.PythonSession) -> None:
        held = session.submit(gate.message, timeout_ms=None)
        await asyncio.to_thread(gate.wait_for_worker)
        victim = session.submit("note victim")
        await asyncio.sleep(0)
        victim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await victim
        with pytest.raises(tr_mmap.ResponseTimeout):
            await session.calculate("note late", timeout_ms=20)
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        with pytest.raises(tr_mmap.WorkerDied):
            await held
        await session.start()
        assert await session.calculate("noted") == ""

    with_session(test)
