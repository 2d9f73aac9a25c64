"""Tasks, and the sandboxes that runs are in, without HTTP: what is kept, what is let go, what comes at a bad moment."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from support import BOUND_S, check_open_files, open_files, wait_until

from tr_mmap.gateway.boxes import Boxes, BoxKey
from tr_mmap.gateway.errors import AlreadyDone, NotFound, Overloaded
from tr_mmap.gateway.models import Lent
from tr_mmap.gateway.payloads import Done
from tr_mmap.gateway.runs import SandboxRun
from tr_mmap.gateway.scheduler import Job, Scheduler
from tr_mmap.gateway.sections import SchedulerConfig
from tr_mmap.gateway.tasks import Task, Tasks
from tr_mmap.gateway.tokens import Principal
from tr_mmap.sandbox import Algorithm, Limits, RunCancelled, Sandbox, SandboxBroken

# -- tasks -----------------------------------------------------------------------------------------------------------


def principal(subject: str = "ada", *scopes: str) -> Principal:
    return Principal(subject, frozenset(scopes), "t", 0.0)


def job(run: Callable[[], Any], subject: str = "ada") -> Job:
    return Job("r", "python", "", subject, run, lambda: None, 0, time.monotonic() + BOUND_S)


def done(nbytes: int) -> Done:
    return Done(msgspec.Raw(b'"' + bytes(nbytes).replace(b"\0", b"x") + b'"'), "", 0.0)


def run(main: Callable[[Tasks], Coroutine[Any, Any, None]], *, most: int = 100, most_nbytes: int = 1 << 20) -> None:
    async def all_of_it() -> None:
        scheduler = Scheduler(SchedulerConfig(max_workers=1), lambda *_: None)
        tasks = Tasks(scheduler, most, most_nbytes, 1000.0)
        try:
            await main(tasks)
        finally:
            await scheduler.drain(BOUND_S)
            await scheduler.close()

    asyncio.run(all_of_it())


async def ended(task: Task) -> Task:
    while not task.is_ended:
        await asyncio.wait_for(task.changed.wait(), BOUND_S)
    return task


def test_a_follower_gets_the_last_event_though_the_task_ends_while_it_reads_another() -> None:
    async def main(tasks: Tasks) -> None:
        gate = threading.Event()
        task = tasks.start(job(lambda: gate.wait(BOUND_S) and done(1)), None)
        seen = []
        async for info in tasks.events(task):
            assert info is not None
            seen.append(info.status)
            gate.set()
            await ended(task)
        assert seen == ["running", "success"]

    run(main)


def test_a_task_that_has_ended_keeps_its_result_and_not_its_inputs() -> None:
    class Inputs:
        def give(self) -> Done:
            return done(1)

        def fail(self) -> Done:
            raise SandboxBroken("x")

    async def main(tasks: Tasks) -> None:
        for name in ("give", "fail"):
            inputs = Inputs()
            gone = weakref.ref(inputs)
            task = await ended(tasks.start(job(getattr(inputs, name)), None))
            del inputs
            await asyncio.sleep(0)
            gc.collect()
            assert gone() is None
            with pytest.raises(AlreadyDone):
                tasks.cancel(task)

    run(main)


def test_results_that_are_kept_are_bounded_in_bytes_and_nobody_drops_another_subject_s() -> None:
    async def main(tasks: Tasks) -> None:
        small = await ended(tasks.start(job(lambda: done(10), "eve"), None))
        large = [await ended(tasks.start(job(lambda: done(300_000)), None)) for _ in range(5)]
        for task in large[:2]:
            with pytest.raises(NotFound):
                tasks.get(task.id, principal())
        for task in large[2:]:
            assert tasks.get(task.id, principal()) is task
        assert tasks.get(small.id, principal("eve")) is small

    run(main)


def test_a_result_beyond_all_bounds_is_kept_until_the_next() -> None:
    async def main(tasks: Tasks) -> None:
        first = await ended(tasks.start(job(lambda: done(2 << 20)), None))
        assert tasks.get(first.id, principal()) is first
        await ended(tasks.start(job(lambda: done(1)), None))
        with pytest.raises(NotFound):
            tasks.get(first.id, principal())

    run(main)


def test_tasks_are_bounded_in_number_and_those_that_go_on_are_not_forgotten() -> None:
    async def main(tasks: Tasks) -> None:
        gate = threading.Event()
        going = [tasks.start(job(lambda: gate.wait(BOUND_S) and done(1)), None) for _ in range(2)]
        with pytest.raises(Overloaded, match=r"\[scheduler\] max_tasks"):
            tasks.start(job(lambda: done(1)), None)
        gate.set()
        for task in going:
            await ended(task)
        newest = await ended(tasks.start(job(lambda: done(1)), None))
        assert tasks.counts() == {"success": 2}
        assert tasks.get(newest.id, principal()) is newest

    run(main, most=2)


# -- sandboxes -------------------------------------------------------------------------------------------------------


def key(wall_ms: float = 60_000.0) -> BoxKey:
    return BoxKey("contained", Limits(wall_ms=wall_ms, cpu_ms=60_000.0))


def make(key: BoxKey) -> Sandbox:
    return Sandbox(key.kind, limits=key.limits, preload=())


def code(text: str) -> Algorithm:
    return Algorithm("code", text.encode(), None)


def a_run(boxes: Boxes, text: str, seconds: float = BOUND_S) -> SandboxRun:
    lent = Lent(key(), code(text), {})
    return SandboxRun(boxes, lambda: nullcontext(lent), {}, time.monotonic() + seconds, "list")


def test_a_run_is_ended_whenever_that_comes_before_its_sandbox_is_there() -> None:
    is_asked, may_go_on = threading.Event(), threading.Event()

    def make_slowly(key: BoxKey) -> Sandbox:
        is_asked.set()
        assert may_go_on.wait(BOUND_S)
        return make(key)

    boxes = Boxes(make_slowly, 4)
    try:
        with ThreadPoolExecutor() as threads:
            spinning = a_run(boxes, "while True: pass")
            ends = threads.submit(spinning.do)
            assert is_asked.wait(BOUND_S)
            spinning.end()
            may_go_on.set()
            assert isinstance(ends.exception(BOUND_S), RunCancelled)
            before = a_run(boxes, "while True: pass")
            before.end()
            assert isinstance(threads.submit(before.do).exception(BOUND_S), RunCancelled)
    finally:
        boxes.close()


def test_the_check_of_a_run_comes_when_it_can_be_cancelled_already() -> None:
    with Sandbox(preload=()) as box:
        known = []
        with pytest.raises(RunCancelled):
            box.run(code("while True: pass"), request_id="a", check=lambda: known.append(box.cancel("a")))
        assert known == [True]
        assert box.run(code("output = 1"), request_id="a").outputs == {"output": 1}


def test_a_sandbox_that_was_killed_is_replaced() -> None:
    boxes = Boxes(make, 4)
    try:
        assert bytes(a_run(boxes, "output = 1").do().result) == b"1"
        ((_, box),) = boxes.open_boxes()
        own = psutil.Process()
        (zygote,) = [each for each in own.children() if "tr_mmap.sandbox._zygote" in " ".join(each.cmdline())]
        zygote.send_signal(signal.SIGKILL)
        wait_until(lambda: box.health().state == "broken")
        assert bytes(a_run(boxes, "output = 2").do().result) == b"2"
        ((_, other),) = boxes.open_boxes()
        assert other is not box
        assert box.health().state == "closed"
    finally:
        boxes.close()


def test_few_sandboxes_are_kept_and_none_that_is_in_use_is_closed() -> None:
    before = open_files()
    boxes = Boxes(make, 2)
    keys = [key(1000.0 + number) for number in range(5)]
    with boxes.using(keys[0]) as first:
        for each in keys[1:]:
            with boxes.using(each) as box:
                assert box.execute("output = 1").outputs == {"output": 1}
        assert first.execute("output = 2").outputs == {"output": 2}
        assert [each for each, _ in boxes.open_boxes()] == [keys[0], keys[4]]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: _use(boxes, keys[number % 3]), range(8)))
    assert len(boxes.open_boxes()) <= 2
    boxes.close()
    boxes.close()
    with pytest.raises(SandboxBroken, match="gateway"), boxes.using(keys[0]):
        pass
    check_open_files(before)


def _use(boxes: Boxes, key: BoxKey) -> None:
    with boxes.using(key) as box:
        assert box.execute("output = 3").outputs == {"output": 3}


def test_a_sandbox_that_is_made_while_all_are_closed_is_closed_too() -> None:
    before = open_files()
    is_asked, may_go_on = threading.Event(), threading.Event()

    def make_slowly(key: BoxKey) -> Sandbox:
        is_asked.set()
        assert may_go_on.wait(BOUND_S)
        return make(key)

    boxes = Boxes(make_slowly, 4)
    with ThreadPoolExecutor() as threads:
        used = threads.submit(_use, boxes, key())
        assert is_asked.wait(BOUND_S)
        boxes.close()
        may_go_on.set()
        assert isinstance(used.exception(BOUND_S), SandboxBroken)
    assert boxes.open_boxes() == []
    check_open_files(before)


def test_a_sandbox_that_cannot_be_made_leaves_no_place_and_the_next_may_be() -> None:
    fails = [True]

    def make_perhaps(key: BoxKey) -> Sandbox:
        if fails:
            raise SandboxBroken("not now")
        return make(key)

    boxes = Boxes(make_perhaps, 4)
    try:
        with pytest.raises(SandboxBroken), boxes.using(key()):
            pass
        assert boxes.open_boxes() == []
        fails.clear()
        _use(boxes, key())
    finally:
        boxes.close()


def test_large_results_of_runs_are_copied_out_before_their_sandbox_may_go() -> None:
    boxes = Boxes(make, 4)
    lent = Lent(key(), code("output = inputs['x'] * 2"), {"x": np.arange(100_000.0)})
    run = SandboxRun(boxes, lambda: nullcontext(lent), {}, time.monotonic() + BOUND_S, "binary")
    ended = run.do()
    boxes.close()
    raw = b"".join(ended.pieces)
    said = msgspec.json.decode(ended.result)
    result = np.frombuffer(raw[said["offset"] : said["offset"] + said["nbytes"]])
    assert np.array_equal(result, np.arange(100_000.0) * 2)
