"""Runs as steps: what an event loop does itself, what it leaves to another thread, and what a kept process has."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
from support import wait_until

from tr_mmap.sandbox import AlgorithmError, LimitExceeded, Limits, RunCancelled, Sandbox
from tr_mmap.sandbox.steps import SLOW, InLoop, Later, Slow, Steps, Turns, Wait, finish

DOUBLE = "def process(inputs):\n    return {'output': inputs['x'] * 2}\n"


def kinds_of(steps: Steps[Any]) -> tuple[list[type], Any]:
    """The kinds of all steps, which are gone through in this thread, and the result."""
    seen: list[type] = []

    def watched() -> Steps[Any]:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            seen.append(type(step))
            yield step

    return seen, finish(watched())


def in_loop(use: Callable[[Turns], Any]) -> Any:
    """What a coroutine gives that gets the turns of its loop."""

    async def main() -> Any:
        with ThreadPoolExecutor(2) as threads:
            return await use(Turns(asyncio.get_running_loop(), threads))

    return asyncio.run(main())


async def end_of(turns: Turns, steps: Steps[Any]) -> Any:
    """The result of steps that a loop goes through."""
    future = asyncio.get_running_loop().create_future()

    def on_end(result: Any, error: BaseException | None) -> None:
        if error is None:
            future.set_result((result, threading.get_ident()))
        else:
            future.set_exception(error)

    InLoop(turns, steps, on_end).begin()
    result, thread = await future
    assert thread == threading.get_ident()
    return result


def test_an_interruption_of_a_wait_reaches_the_steps_which_clean_up() -> None:
    seen = []
    reader, writer = os.pipe()

    def steps() -> Steps[None]:
        try:
            os.kill(os.getpid(), signal.SIGALRM)
            yield Wait((reader,), 60_000)
        except InterruptedError:
            seen.append("cleaned up")
            raise

    def interrupt(*_: object) -> None:
        raise InterruptedError

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(InterruptedError):
            finish(steps())
    finally:
        signal.signal(signal.SIGALRM, former)
        os.close(reader)
        os.close(writer)
    assert seen == ["cleaned up"]


def test_a_loop_waits_itself_and_leaves_slow_steps_to_another_thread() -> None:
    threads = []
    reader, writer = os.pipe()

    def steps() -> Steps[str]:
        threads.append(threading.get_ident())
        yield Wait((reader,), 60_000)
        threads.append(threading.get_ident())
        os.read(reader, 1)
        yield Wait((reader,), 1)  # in vain
        threads.append(threading.get_ident())
        yield SLOW
        threads.append(threading.get_ident())
        os.write(writer, b"x")
        yield Wait((reader,), 60_000)
        return "done"

    async def use(turns: Turns) -> Any:
        asyncio.get_running_loop().call_later(0.01, os.write, writer, b"x")
        return await end_of(turns, steps())

    try:
        assert in_loop(use) == "done"
    finally:
        os.close(reader)
        os.close(writer)
    here = threading.get_ident()
    assert threads[:3] == [here] * 3
    assert threads[3] != here


def test_what_steps_raise_is_told_as_what_they_return() -> None:
    def steps() -> Steps[None]:
        raise ZeroDivisionError
        yield SLOW

    def slow_steps() -> Steps[None]:
        yield SLOW
        raise ZeroDivisionError

    for each in (steps, slow_steps):
        with pytest.raises(ZeroDivisionError):
            in_loop(lambda turns, each=each: end_of(turns, each()))


def test_a_run_in_a_kept_process_has_no_slow_step() -> None:
    with Sandbox() as box:
        kept, fresh = box.register("kept", DOUBLE, reuse=True), box.register("fresh", DOUBLE)
        x = np.arange(9)
        first, _ = kinds_of(box.steps(kept, {"x": x}))
        assert Slow in first  # it has to be made
        for n in (9, 200):
            kinds, response = kinds_of(box.steps(kept, {"x": np.arange(n)}))
            assert Slow not in kinds
            assert (response.outputs["output"] == 2 * np.arange(n)).all()
        large = np.ones(1 << 20)
        kinds, response = kinds_of(box.steps(kept, {"x": large}))
        assert Slow in kinds  # it is copied
        assert response.outputs["output"].sum() == 2 << 20
        del response
        kinds, _ = kinds_of(box.steps(fresh, {"x": x}))
        assert kinds[0] is Slow


def test_the_end_of_a_kept_process_whose_run_exceeds_a_limit_is_left_to_another_thread() -> None:
    with Sandbox(limits=Limits(wall_ms=300)) as box:
        code = "def process(inputs):\n    while inputs['endless']: pass\n    return 1 / inputs['x']\n"
        algorithm = box.register("fails", code, reuse=True)
        raises, exceeds = {"endless": 0, "x": 0}, {"endless": 1, "x": 1}
        for inputs, error, last in ((raises, AlgorithmError, Later), (exceeds, LimitExceeded, Slow)):
            box.run(algorithm, {"endless": 0, "x": 1})
            steps, kinds = box.steps(algorithm, inputs), []
            with pytest.raises(error):
                finish(_noting(steps, kinds))
            assert kinds[-1] is last  # an exception ends none


def _noting(steps: Steps[Any], kinds: list[type]) -> Steps[Any]:
    for each in steps:
        kinds.append(type(each))
        yield each


def _status_of_kept(box: Sandbox) -> list[str]:
    kept = box._executor._host._kept.values()  # type: ignore[attr-defined]
    return [psutil.Process(process.pid).status() for all_ in kept for process in all_]


def test_a_kept_process_goes_on_to_its_next_run_and_stands_still_behind_the_last() -> None:
    with Sandbox() as box:
        algorithm = box.register("process", "import os\ndef process(inputs):\n    return os.getpid()\n", reuse=True)

        async def use(turns: Turns) -> list[int]:
            loop, pids = asyncio.get_running_loop(), []
            over = loop.create_future()

            def on_end(result: Any, error: BaseException | None) -> None:
                if error is not None:
                    over.set_exception(error)
                    return
                pids.append(result.outputs["output"])
                if len(pids) < 20:
                    InLoop(turns, box.steps(algorithm, {}), on_end).begin()
                else:
                    over.set_result(None)

            InLoop(turns, box.steps(algorithm, {}), on_end).begin()
            await over
            return pids

        pids = in_loop(use)
        assert len(set(pids)) == 1
        wait_until(lambda: _status_of_kept(box) == [psutil.STATUS_STOPPED])
        box.run(algorithm)
        wait_until(lambda: _status_of_kept(box) == [psutil.STATUS_STOPPED])


def test_a_run_that_is_cancelled_while_a_loop_waits_for_it_ends() -> None:
    with Sandbox() as box:
        algorithm = box.register("process", "def process(inputs):\n    while inputs['endless']: pass\n", reuse=True)
        box.run(algorithm, {"endless": False})

        async def use(turns: Turns) -> None:
            task = asyncio.ensure_future(end_of(turns, box.steps(algorithm, {"endless": True}, request_id="x")))
            await asyncio.to_thread(wait_until, lambda: "x" in box._executor._runs._runs)  # type: ignore[attr-defined]
            assert await asyncio.to_thread(box.cancel, "x")
            with pytest.raises(RunCancelled):
                await task

        in_loop(use)
        assert box.run(algorithm, {"endless": False}).outputs == {"output": None}


def test_steps_that_nobody_goes_through_to_the_end_leave_no_process() -> None:
    with Sandbox() as box:
        algorithm = box.register("process", "def process(inputs):\n    while inputs['endless']: pass\n", reuse=True)
        box.run(algorithm, {"endless": False})
        (pid,) = [process.pid for all_ in box._executor._host._kept.values() for process in all_]  # type: ignore[attr-defined]
        steps = box.steps(algorithm, {"endless": True})
        assert isinstance(next(steps), Wait)
        steps.close()
        wait_until(lambda: not psutil.pid_exists(pid))
        assert box.run(algorithm, {"endless": False}).outputs == {"output": None}


def test_what_a_run_prints_is_its_own_though_the_file_is_that_of_the_run_before() -> None:
    with Sandbox() as box:
        code = "import os\ndef process(inputs):\n    print(inputs['text'], end='', flush=True)\n    os.write(1, b'!')\n"
        algorithm = box.register("process", code, reuse=True)
        for text in ("a" * 1000, "bc", "", "d" * 50):
            assert box.run(algorithm, {"text": text}).stdout == text + "!"
        quiet = box.register("quiet", "def process(inputs):\n    print('x') if inputs['loud'] else None\n", reuse=True)
        assert [box.run(quiet, {"loud": each}).stdout for each in (True, False, True)] == ["x\n", "", "x\n"]


def test_a_kept_process_reads_each_run_s_inputs_wherever_they_lie() -> None:
    with Sandbox(limits=Limits(memory_nbytes=1 << 30)) as box:
        algorithm = box.register("process", "def process(inputs):\n    return float(inputs['x'].sum())\n", reuse=True)
        lent = box.empty(1000)
        lent[:] = 3
        for x in (np.ones(3), np.ones(100_000), lent, np.ones(5), lent, np.ones(1 << 20), np.zeros(0), np.ones(2)):
            assert box.run(algorithm, {"x": x}).outputs["output"] == x.sum()
