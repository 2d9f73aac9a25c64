"""``tr_mmap.aio``: nothing blocks the loop, cancelling reaches the worker, and a session keeps to its loop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import FOREVER_MS, TOOLS, Gate, processes_of, script, wait_until

import tr_mmap
from tr_mmap import aio

Test = Callable[[aio.PythonSession], Coroutine[Any, Any, None]]


def with_session(test: Test, **options: Any) -> None:
    async def main() -> None:
        async with aio.PythonSession(TOOLS, "aio", quiet_mode=True, **options) as session:
            await test(session)

    asyncio.run(main())


@asynccontextmanager
async def watched_loop() -> AsyncIterator[list[float]]:
    """Collects how long the loop was held at a time, in seconds."""
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.thread_time()  # its own processor time: others may have the processor meanwhile
            await asyncio.sleep(0.001)
            gaps.append(time.thread_time() - before)

    ticking = asyncio.create_task(tick())
    yield gaps
    ticking.cancel()


def test_start_and_exit_do_not_hold_the_loop() -> None:
    async def main() -> None:
        async with watched_loop() as gaps:
            session = aio.PythonSession(TOOLS, "aio", quiet_mode=True)
            async with session:
                assert await session.calculate("say x") == "x"
                passes = len(gaps)
            assert passes > 3
            assert len(gaps) > passes  # the loop has run while the session ended

    asyncio.run(main())


def test_the_methods_have_the_names_and_the_results_of_the_blocking_session() -> None:
    async def test(session: aio.PythonSession) -> None:
        array = np.arange(6.0)
        assert (await session.calculate("echo", array) == array).all()
        assert await session.fetch_response("hello you") == "Hello You"
        await session.send_tensor(array, "kept")
        assert (await session.fetch_tensor("echo kept") == array).all()
        with pytest.raises(tr_mmap.UnexpectedResponse):
            await session.fetch_tensor("say x")
        session.drop_tensor("kept")
        with pytest.raises(tr_mmap.MissingTag):
            session.drop_tensor("kept")
        loan = session.empty(6, "float64")
        loan[:] = array
        assert (await session.calculate("echo", loan) == array).all()
        await session.send_request("say 1")
        await session.send_request("echo")
        assert await session.wait_for_response() == "1"
        with pytest.raises(tr_mmap.UnexpectedResponse):
            await session.wait_for_tensor()
        with pytest.raises(tr_mmap.ResponseTimeout):
            await session.wait_for_response(10)
        assert session.read_response() is None
        assert await session.wait_until_ready(FOREVER_MS)
        assert session.is_ready()
        assert session.is_alive()
        assert not session.is_busy()
        assert session.session_id() == "aio"
        assert Path(session.session_dir()).is_dir()
        assert session.stats().worker.pid == session.pid
        assert session.rejected == 0
        task = session.submit("say x")
        assert await task == "x"
        assert not await session.join(0)
        assert await session.please_exit(FOREVER_MS)
        with pytest.raises(tr_mmap.SessionNotStarted):
            await session.calculate("say x")

    with_session(test)


def test_a_large_tensor_and_a_full_budget_do_not_hold_the_loop() -> None:
    async def test(session: aio.PythonSession) -> None:
        large = np.ones(1 << 20)
        async with watched_loop():
            totals = await asyncio.gather(*(session.calculate("total", large) for _ in range(8)))
        assert totals == [str(1 << 20)] * 8

    with_session(test, budget_nbytes=20 << 20, at_budget="block")


def test_to_cancel_a_task_cancels_its_request(gate: Gate) -> None:
    async def test(session: aio.PythonSession) -> None:
        held = session.submit(gate.message)
        await asyncio.to_thread(gate.wait_for_worker)
        victims = [session.submit("note victim") for _ in range(50)]  # some wait for room
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for each in victims:
            each.cancel()
        assert {type(each) for each in await asyncio.gather(*victims, return_exceptions=True)} == {
            asyncio.CancelledError
        }
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await session.calculate("note late")
        gate.let_go("through")
        assert await held == "through"
        assert await session.calculate("noted") == ""

    with_session(test)


def test_a_task_that_is_cancelled_while_its_tensor_is_sent_leaves_no_request(gate: Gate) -> None:
    async def test(session: aio.PythonSession) -> None:
        first = session.submit(gate.message, timeout_ms=FOREVER_MS)
        while not session.is_busy():
            await asyncio.sleep(0)
        large = session.submit("total", np.ones(3_000_000))
        while not session._sending:
            await asyncio.sleep(0)
        large.cancel()
        await asyncio.wait([large])
        assert large.cancelled()
        assert len(session._session._open_futures()._awaited) == 1
        gate.let_go("done")
        assert await first == "done"

    with_session(test)


def test_a_start_that_is_cancelled_leaves_a_session_that_starts_again(gate: Gate) -> None:
    async def main() -> None:
        session = aio.PythonSession(TOOLS, "aio", quiet_mode=True)
        async with session:
            await session.terminate()
            await session.join()
            starting = asyncio.create_task(session.start())
            await asyncio.sleep(0)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert session._fd is None
        async with session:
            assert session._fd == session._session.fileno()
            assert await session.fetch_response("say again") == "again"

    asyncio.run(main())


def test_two_tasks_that_wait_take_two_responses() -> None:
    async def test(session: aio.PythonSession) -> None:
        for word in "ab":
            await session.send_request(f"say {word}")
        assert await asyncio.gather(session.wait_for_response(), session.wait_for_response()) == ["a", "b"]
        await session.send_request("say old")
        await session.close()
        await session.start()
        with pytest.raises(tr_mmap.ResponseTimeout):
            await session.wait_for_response(0)

    with_session(test)


def test_a_handler_that_stops_by_itself_cancels_no_task(workspace: Path, tmp_path: Path) -> None:
    stops = """\
from tr_mmap import RequestCancelled, Server
server = Server()
@server.command("stop")
def stop(): raise RequestCancelled()
server.run()
"""

    async def main() -> None:
        async with aio.PythonSession(script(tmp_path, stops), "stops", quiet_mode=True) as session:
            with pytest.raises(tr_mmap.RequestCancelled):
                await session.calculate("stop")

    asyncio.run(main())


def test_a_start_that_is_cancelled_leaves_nothing(workspace: Path, tmp_path: Path) -> None:
    slow = script(tmp_path, "import time; time.sleep(1000)")

    async def main() -> None:
        session = aio.PythonSession(slow, "aio", quiet_mode=True, start_timeout_ms=500)
        starting = asyncio.create_task(session.__aenter__())
        await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises((asyncio.CancelledError, tr_mmap.ResponseTimeout)):
            await starting

    asyncio.run(main())
    wait_until(lambda: not processes_of(workspace))


def test_a_death_ends_every_await_and_the_session_starts_again(gate: Gate) -> None:
    async def test(session: aio.PythonSession) -> None:
        calls = [session.submit(gate.message), *(session.submit("say x") for _ in range(40))]
        await asyncio.to_thread(gate.wait_for_worker)
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        errors = await asyncio.gather(*calls, return_exceptions=True)
        # Those that waited for room when it died find no worker.
        assert {type(each) for each in errors} <= {tr_mmap.WorkerDied, tr_mmap.SessionNotStarted}
        assert type(errors[0]) is tr_mmap.WorkerDied
        await session.start()
        assert await asyncio.gather(*(session.calculate(f"say {each}") for each in range(40))) == [
            str(each) for each in range(40)
        ]

    with_session(test)


def test_another_loop_and_no_loop_are_refused() -> None:
    async def test(session: aio.PythonSession) -> None:
        def in_another_loop() -> None:
            with pytest.raises(RuntimeError, match="another"):
                asyncio.run(session.calculate("say x"))
            with pytest.raises(RuntimeError, match="no loop"):
                session.empty(3)

        await asyncio.to_thread(in_another_loop)
        assert await session.calculate("say x") == "x"

    with_session(test)


def test_a_session_that_has_ended_may_start_in_another_loop() -> None:
    session = aio.PythonSession(TOOLS, "aio", quiet_mode=True)

    async def use() -> str:
        async with session:
            text: str = await session.calculate("say x")
            return text

    assert [asyncio.run(use()), asyncio.run(use())] == ["x", "x"]


def test_handlers_errors_and_bad_input_are_those_of_the_blocking_session() -> None:
    async def test(session: aio.PythonSession) -> None:
        for message, error in [
            ("fail oops", tr_mmap.RemoteError),
            ("nonsense", tr_mmap.UnknownCommand),
            ("", tr_mmap.BadMessage),
        ]:
            with pytest.raises(error):
                await session.calculate(message)
        with pytest.raises(tr_mmap.UnsupportedTensor):
            await session.calculate("echo", np.array([object()]))
        with pytest.raises(tr_mmap.BadMessage):
            await session.calculate("say x", timeout_ms=-1)
        assert await session.calculate("say x") == "x"

    with_session(test)
    with pytest.raises(tr_mmap.BadMessage):
        aio.PythonSession(TOOLS, "bad/name")


def test_torch_tensors_cross_an_asyncio_session() -> None:
    import torch

    async def test(session: aio.PythonSession) -> None:
        sent = torch.arange(6, dtype=torch.bfloat16)
        assert torch.equal(await session.calculate("echo", sent), sent)

    with_session(test, framework="torch")
