"""Requests have ids, priorities and deadlines, and can be cancelled; an executor says what it is and needs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from support import wait_until

from tr_mmap.sandbox import (
    Algorithm,
    ComputeRequest,
    DeadlineExceeded,
    Executor,
    LimitExceeded,
    Limits,
    RunCancelled,
    Sandbox,
    SandboxBroken,
)
from tr_mmap.sandbox.running import Run
from tr_mmap.sandbox.waiting import WaitingRuns

eventually = partial(wait_until, bound_s=20)


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(limits=Limits(wall_ms=60_000, cpu_ms=60_000), max_workers=1) as box:
        yield box


def is_busy(box: Sandbox) -> Callable[[], bool]:
    return lambda: bool(box._executor._runs._runs)  # type: ignore[attr-defined]


# -- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [False, True])
def test_a_run_that_goes_on_is_cancelled_by_its_id(box: Sandbox, reuse: bool) -> None:
    spin = box.register("spin", "while True: output = 0", reuse=reuse)
    future = box.submit(spin, request_id="mine")
    eventually(is_busy(box))
    assert not box.cancel("another")
    assert box.cancel("mine")
    with pytest.raises(RunCancelled, match="mine") as caught:
        future.result(20)
    assert caught.value.request_id == "mine"
    assert isinstance(caught.value, concurrent.futures.CancelledError)
    assert not box.cancel("mine")
    assert box.execute("output = 1").outputs == {"output": 1}


def test_a_run_of_another_thread_is_cancelled(box: Sandbox) -> None:
    spin = box.register("spin", "while True: output = 0")
    found: list[BaseException] = []

    def run() -> None:
        try:
            box.run(spin, request_id="mine")
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    eventually(is_busy(box))
    assert box.cancel("mine")
    thread.join(20)
    assert [type(each) for each in found] == [RunCancelled]


def test_a_run_that_waits_is_cancelled_and_never_begins(box: Sandbox) -> None:
    first = box.submit(box.register("spin", "while True: output = 0"), request_id="first")
    second = box.submit(box.register("one", "output = 1"), request_id="second")
    eventually(is_busy(box))
    assert box.cancel("second")
    assert second.cancelled()
    assert box.cancel("first")
    assert isinstance(first.exception(20), RunCancelled)


def test_a_cancel_that_comes_before_the_executor_has_the_request_is_not_lost(box: Sandbox) -> None:
    spin = box.register("spin", "while True: output = 0")
    for number in range(20):
        future = box.submit(spin, request_id=str(number))
        assert box.cancel(str(number))
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(20)


def test_a_request_that_was_cancelled_before_it_came_to_the_executor_does_not_begin(box: Sandbox) -> None:
    one = box.register("one", "output = 1")
    with pytest.raises(RunCancelled):
        box._executor.execute(ComputeRequest(one, {}, is_cancelled=True))


def test_a_run_that_ended_while_it_was_cancelled_is_cancelled() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = Run(ComputeRequest(Algorithm("one", b"", None), {}, id="mine"))

    def be_cancelled() -> None:
        run.enter(process)
        run.cancel()
        run.leave()

    with process, pytest.raises(RunCancelled, match="mine"):
        be_cancelled()
    assert process.returncode == -signal.SIGKILL
    run.cancel()  # nothing is left to end


def test_two_runs_of_one_id_are_refused(box: Sandbox) -> None:
    spin = box.register("spin", "while True: output = 0")
    future = box.submit(spin, request_id="mine")
    eventually(is_busy(box))
    with pytest.raises(ValueError, match="'mine'"):
        box.run(spin, request_id="mine")
    with pytest.raises(ValueError, match="'mine'"):
        box.submit(spin, request_id="mine")
    assert box.cancel("mine")  # the first, still
    with pytest.raises(RunCancelled):
        future.result(20)


def test_a_task_that_is_cancelled_ends_its_run(box: Sandbox) -> None:
    spin = box.register("spin", "while True: output = 0")

    async def main() -> None:
        task = asyncio.create_task(box.aio.run(spin))
        while not is_busy(box)():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert box.submit("spin", deadline_s=time.monotonic() + 0.5).exception(20)  # the one thread is free again


def test_a_task_that_is_cancelled_holds_up_no_other(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    others_went_on = threading.Event()
    found: list[bool] = []
    cancel = box._cancel

    def cancel_slowly(request: ComputeRequest) -> bool:
        found.append(others_went_on.wait(20))
        return cancel(request)

    monkeypatch.setattr(box, "_cancel", cancel_slowly)
    spin = box.register("spin", "while True: output = 0")

    async def main() -> None:
        task = asyncio.create_task(box.aio.run(spin))
        while not is_busy(box)():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        others_went_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert found == [True]


# -- deadlines --------------------------------------------------------------------------------------------------------


def test_a_deadline_ends_a_run_and_one_that_has_not_begun(box: Sandbox) -> None:
    spin = box.register("spin", "while True: output = 0")
    end_s = time.monotonic() + 0.5
    futures = [box.submit(spin, deadline_s=end_s), box.submit(spin, deadline_s=end_s)]
    for future, when in zip(futures, ("while it ran", "before its turn"), strict=True):
        with pytest.raises(DeadlineExceeded, match=when) as caught:
            future.result(20)
        assert isinstance(caught.value, TimeoutError | LimitExceeded)
        assert (caught.value.limit, caught.value.value) == ("deadline_s", end_s)
        assert pickle.loads(pickle.dumps(caught.value)).limit == "deadline_s"
    with pytest.raises(DeadlineExceeded):
        box.run(spin, deadline_s=time.monotonic() - 1)
    assert box.run(box.register("one", "output = 1"), deadline_s=time.monotonic() + 100).outputs == {"output": 1}


def test_a_deadline_ends_a_run_that_waits_while_no_thread_is_free(box: Sandbox) -> None:
    spin, one = box.register("spin", "while True: output = 0"), box.register("one", "output = 1")
    first = box.submit(spin, request_id="first")
    eventually(is_busy(box))
    last = box.submit(one)
    late = [box.submit(one, deadline_s=time.monotonic() + seconds) for seconds in (0.4, 0.2, -1)]
    for future in late:
        with pytest.raises(DeadlineExceeded, match="before its turn"):
            future.result(20)
    assert first.running()
    assert not last.done()
    assert len(box._requests) == 2
    box.cancel("first")
    assert last.result(20).outputs == {"output": 1}


def test_runs_that_are_submitted_at_once_have_a_thread_each() -> None:
    """One thread that was idle is not counted for all of them."""
    barrier = threading.Barrier(4)
    waiting = WaitingRuns[int](4)
    try:
        waiting.submit(lambda: 0, 0, None).result(20)
        eventually(lambda: waiting._idle == 1)
        futures = [waiting.submit(lambda: barrier.wait(20), 0, None) for _ in range(4)]
        assert sorted(each.result(30) for each in futures) == [0, 1, 2, 3]
    finally:
        barrier.abort()
        waiting.close()


@pytest.mark.parametrize("count", [0, -1])
def test_no_workers_at_all_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"max_workers={count}"):
        Sandbox(max_workers=count)


def test_of_runs_that_wait_the_one_of_the_highest_priority_is_first(box: Sandbox) -> None:
    order: list[int] = []
    one = box.register("one", "output = 1")
    first = box.submit(box.register("spin", "while True: output = 0"), request_id="first")
    eventually(is_busy(box))
    waiting = []
    for priority in (0, 5, -1, 5):
        future = box.submit(one, priority=priority)
        future.add_done_callback(lambda _, priority=priority: order.append(priority))
        waiting.append(future)
    box.cancel("first")
    concurrent.futures.wait([first, *waiting], 60)
    assert order == [5, 5, 0, -1]


# -- call -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "arguments", "result"),
    [("none", (), 7), ("both", (1, 2), [1, 2]), ("names", (3,), {"a": 3, "b": None}), ("nothing", ({},), None)],
)
def test_a_function_gets_its_arguments_and_its_result_returns_as_it_is(
    box: Sandbox, function: str, arguments: tuple[object, ...], result: object
) -> None:
    code = (
        "def none(): return 7\ndef both(a, b): return [a, b]\n"
        "def names(a): return {'a': a, 'b': None}\ndef nothing(a): pass"
    )
    algorithm = box.register("many", code)
    assert box.call(algorithm, function, *arguments) == result
    assert asyncio.run(box.aio.call("many", function, *arguments)) == result


def test_arguments_may_be_tensors_and_the_whole_response_can_be_had(box: Sandbox) -> None:
    algorithm = box.register("add", "def add(a, b):\n    print('adding')\n    return a + b")
    response = box.run(algorithm, arguments=[np.ones(3), 2])
    assert response.outputs["output"].tolist() == [3, 3, 3]
    assert response.stdout == "adding\n"


# -- what a sandbox says of itself ------------------------------------------------------------------------------------


def test_an_executor_is_one(box: Sandbox) -> None:
    executor: Executor = box._executor
    assert executor.name == "contained"
    assert executor.version == box.version == f"tr_mmap {__import__('tr_mmap').__version__}"


def test_health_is_that_of_now() -> None:
    box = Sandbox()
    assert box.health().is_ready
    assert box.health().layers == box.layers
    box._executor._host._zygote.kill()  # type: ignore[attr-defined]
    box._executor._host._zygote.wait()  # type: ignore[attr-defined]
    assert (box.health().state, box.health().is_ready) == ("broken", False)
    assert "new sandbox" in box.health().detail
    box.close()
    assert box.health().state == "closed"


def test_requirements_follow_the_limits(box: Sandbox) -> None:
    box.set_limits(memory_nbytes=100 << 20, output_nbytes=10 << 20, cpu_cores=1, disk_nbytes=1 << 20)
    found = box.requirements()
    assert 110 << 20 <= found.memory_nbytes <= 200 << 20
    assert (found.cpu_cores, found.disk_nbytes, found.processes) == (1, 1 << 20, 1)


def test_a_closed_sandbox_says_what_to_do() -> None:
    box = Sandbox()
    one = box.register("one", "output = 1")
    box.close()
    for run in (box.run, box.submit):
        with pytest.raises(SandboxBroken, match="make a new one"):
            run(one)
    assert not box._requests
