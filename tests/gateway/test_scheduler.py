"""The scheduler, with jobs that are plain functions: each ends exactly once, whatever happens to it meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import BOUND_S

from tr_mmap.errors import WorkerDied
from tr_mmap.gateway.boxes import Boxes, BoxKey
from tr_mmap.gateway.errors import CircuitOpen, Overloaded, QuotaExceeded
from tr_mmap.gateway.models import Lent
from tr_mmap.gateway.runs import SandboxRun
from tr_mmap.gateway.scheduler import Job, Scheduler
from tr_mmap.gateway.sections import SchedulerConfig
from tr_mmap.sandbox import (
    Algorithm,
    AlgorithmError,
    DeadlineExceeded,
    LimitExceeded,
    Limits,
    RunCancelled,
    Sandbox,
    SandboxBroken,
)

NO_AGEING = 1e9


class Work:
    """What a job does: it waits for its gate, fails so many times, and then ends as it should."""

    def __init__(self, result: Any = None, *, broken: int = 0, is_open: bool = True) -> None:
        self.gate = threading.Event()
        self.began = threading.Event()
        if is_open:
            self.gate.set()
        self.result = result
        self.broken = broken
        self.calls = 0
        self.is_ended = False

    def run(self) -> Any:
        self.calls += 1
        self.began.set()
        assert self.gate.wait(BOUND_S)
        if self.is_ended:
            raise RunCancelled("ended", request_id="")
        if self.calls <= self.broken:
            raise SandboxBroken("of its own")
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def end(self) -> None:
        self.is_ended = True
        self.gate.set()


def job(work: Work, *, kind: str = "python", subject: str = "ada", seconds: float = BOUND_S, **more: Any) -> Job:
    return Job(
        request_id="the same",
        kind=kind,
        name=more.pop("name", ""),
        subject=subject,
        run=work.run,
        end=more.pop("end", work.end),
        priority=more.pop("priority", 0),
        deadline_s=time.monotonic() + seconds,
        **more,
    )


def config(**options: Any) -> SchedulerConfig:
    return SchedulerConfig(**{"max_workers": 1, "ageing_s": NO_AGEING, **options})


def run(main: Callable[[Scheduler, list[Job]], Coroutine[Any, Any, None]], **options: Any) -> None:
    """A loop with a scheduler, which is closed at its end, and the jobs that it has told of."""

    async def all_of_it() -> None:
        told: list[Job] = []
        scheduler = Scheduler(config(**options), lambda job, _: told.append(job))
        try:
            await main(scheduler, told)
        finally:
            await scheduler.drain(0.0)
            await scheduler.close()
        assert len(told) == len(set(map(id, told)))  # each once
        for lane in scheduler.status()["queues"].values():
            assert (lane["waiting"], lane["running"]) == (0, 0)
        assert not scheduler._by_subject
        assert not scheduler._jobs
        assert scheduler._waiting_nbytes == 0

    asyncio.run(all_of_it())


async def begun(work: Work) -> None:
    assert await asyncio.to_thread(work.began.wait, BOUND_S)


async def outcome(future: asyncio.Future[Any]) -> Any:
    """Its result, or its error."""
    await asyncio.wait([future], timeout=BOUND_S)
    assert future.done()
    return future.exception() or future.result()


# -- all at random ---------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    kind: str
    subject: str
    priority: int
    is_idempotent: bool
    broken: int
    fails: bool
    is_held: bool
    seconds: float
    is_cancelled: bool
    step: float = field(default=0.0)


PLANS = st.builds(
    Plan,
    kind=st.sampled_from(["python", "wasm"]),
    subject=st.sampled_from(["ada", "eve"]),
    priority=st.integers(-5, 5),
    is_idempotent=st.booleans(),
    broken=st.integers(0, 4),
    fails=st.booleans(),
    is_held=st.booleans(),
    seconds=st.sampled_from([0.0005, 0.01, BOUND_S, BOUND_S, BOUND_S]),
    is_cancelled=st.booleans(),
)


@given(plans=st.lists(PLANS, max_size=30), workers=st.integers(1, 3))
@settings(max_examples=60)
def test_each_job_ends_exactly_once(plans: list[Plan], workers: int) -> None:
    async def main(scheduler: Scheduler, told: list[Job]) -> None:
        accepted: list[tuple[Plan, Work, Job]] = []
        for plan in plans:
            failure = AlgorithmError("its own", type="ValueError") if plan.fails else "done"
            work = Work(failure, broken=plan.broken, is_open=not plan.is_held)
            made = job(
                work,
                kind=plan.kind,
                subject=plan.subject,
                priority=plan.priority,
                seconds=plan.seconds,
                is_idempotent=plan.is_idempotent,
                nbytes=1000,
            )
            try:
                scheduler.submit(made)
            except (Overloaded, QuotaExceeded, DeadlineExceeded):
                continue
            accepted.append((plan, work, made))
            if plan.priority % 2:
                await asyncio.sleep(0)
        for plan, _, made in accepted:
            if plan.is_cancelled:
                is_there = made.state in ("queued", "running")
                assert scheduler.cancel(made) is is_there
        for _, work, _ in accepted:
            work.gate.set()
        ends = [await outcome(made.future) for _, _, made in accepted]
        assert Counter(map(id, told)) == Counter(id(made) for _, _, made in accepted)
        totals: Counter[str] = Counter()
        for lane in scheduler.status()["queues"].values():
            totals.update({name: lane[f"{name}_total"] for name in ("success", "failed", "cancelled")})
        assert totals == Counter(made.state for _, _, made in accepted)
        for (plan, work, made), end in zip(accepted, ends, strict=True):
            if made.state == "cancelled":
                assert plan.is_cancelled
                assert isinstance(end, RunCancelled)
            elif isinstance(end, DeadlineExceeded):
                assert plan.seconds < BOUND_S
                assert work.calls == 0
            elif isinstance(end, SandboxBroken):
                assert plan.broken >= work.calls
                assert work.calls == 3 or not plan.is_idempotent or plan.seconds < BOUND_S
            elif plan.fails:
                assert isinstance(end, AlgorithmError)
            else:
                assert (end, work.calls) == ("done", plan.broken + 1)
            assert work.calls <= (3 if plan.is_idempotent else 1)

    run(main, max_workers=workers, queue_size=8, max_per_token=10)


@given(priorities=st.lists(st.integers(-100, 100), min_size=1, max_size=20), data=st.data())
@settings(max_examples=40)
def test_jobs_begin_in_the_order_of_their_priorities(priorities: list[int], data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.integers(0, len(priorities) - 1)))
    order: list[int] = []

    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        first = Work(is_open=False)
        scheduler.submit(job(first))
        await begun(first)
        jobs = []
        for number, priority in enumerate(priorities):
            work = Work()
            work.run = lambda number=number: order.append(number)  # type: ignore[method-assign,misc]
            jobs.append(job(work, priority=priority))
            scheduler.submit(jobs[-1])
        for number in gone:
            assert scheduler.cancel(jobs[number])
            assert jobs[number].state == "cancelled"  # at once
        first.gate.set()
        for each in jobs:
            await outcome(each.future)

    run(main)
    left = [number for number in range(len(priorities)) if number not in gone]
    assert order == sorted(left, key=lambda number: (-priorities[number], number))


# -- each of them ----------------------------------------------------------------------------------------------------


def test_a_deadline_comes_while_a_job_waits() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        first, late = Work(is_open=False), Work()
        scheduler.submit(job(first))
        error = await outcome(scheduler.submit(job(late, seconds=0.01)))
        assert isinstance(error, DeadlineExceeded)
        assert "before the run's turn" in str(error)
        assert late.calls == 0
        first.gate.set()

    run(main)


def test_a_cancelled_run_that_its_worker_s_end_has_noticed_is_cancelled_and_not_retried() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        work = Work(is_open=False)
        work.result = WorkerDied("killed", exit_code=-9, log_tail="")
        work.end = work.gate.set  # type: ignore[method-assign]
        made = job(work)
        future = scheduler.submit(made)
        await begun(work)
        assert scheduler.cancel(made)
        assert isinstance(await outcome(future), RunCancelled)
        assert (work.calls, made.state) == (1, "cancelled")
        assert not scheduler.cancel(made)

    run(main)


def test_what_a_worker_s_end_has_stopped_is_tried_again_as_often_as_configured() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        works = [Work("done", broken=2), Work("done", broken=3), Work("done", broken=1)]
        jobs = [job(works[0]), job(works[1]), job(works[2], is_idempotent=False)]
        ends = [await outcome(scheduler.submit(each)) for each in jobs]
        assert ends[0] == "done"
        assert isinstance(ends[1], SandboxBroken)
        assert isinstance(ends[2], SandboxBroken)
        assert [each.calls for each in works] == [3, 3, 1]
        assert scheduler.status()["queues"]["python"]["retried_total"] == 4

    run(main, retries=2)


def test_a_run_that_is_cancelled_between_two_tries_is_not_begun_again() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        work = Work("done", broken=1)
        made = job(work)
        future = scheduler.submit(made)
        while not work.calls:
            await asyncio.sleep(0)
        assert scheduler.cancel(made)
        assert isinstance(await outcome(future), RunCancelled)
        assert (work.calls, made.state) == (1, "cancelled")
        assert scheduler.status()["queues"]["python"]["running"] == 0

    run(main, retries=2)


def test_a_full_queue_and_a_quota_refuse_and_give_way_again() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        works = [Work(is_open=False) for _ in range(4)]
        jobs = [job(each) for each in works]
        futures = [scheduler.submit(each) for each in jobs[:2]]  # one goes on, one waits
        with pytest.raises(QuotaExceeded, match=r"of the subject .*\[scheduler\] max_per_token lets all its tokens"):
            scheduler.submit(job(Work()))
        futures.append(scheduler.submit(job(Work(), subject="eve")))
        with pytest.raises(Overloaded, match=r"\[scheduler\] queue_size") as full:
            scheduler.submit(job(Work(), subject="eve"))
        assert full.value.retry_after_s > 0
        assert scheduler.cancel(jobs[1])
        futures.append(scheduler.submit(jobs[2]))
        for each in works:
            each.gate.set()
        for future in futures:
            await outcome(future)

    run(main, queue_size=2, max_per_token=2)


def test_what_waits_is_bounded_in_bytes_too() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        first = Work(is_open=False)
        scheduler.submit(job(first, nbytes=5 << 20))  # it goes on at once, and does not wait
        waiting = job(Work(), nbytes=5 << 20)
        scheduler.submit(waiting)  # one waits in any case
        with pytest.raises(Overloaded, match=r"\[scheduler\] queue_mb, 1 MiB"):
            scheduler.submit(job(Work(), nbytes=1))
        scheduler.cancel(waiting)
        last = scheduler.submit(job(Work("done"), nbytes=1))
        first.gate.set()
        assert await outcome(last) == "done"

    run(main, queue_mb=1)


def test_a_breaker_opens_for_what_cannot_work_and_a_success_closes_it() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        limit = LimitExceeded("too much", limit="memory_nbytes", value=1)
        for _number in range(2):
            await outcome(scheduler.submit(job(Work(AlgorithmError("x", type="ValueError")), name="wrong-inputs")))
            await outcome(scheduler.submit(job(Work(limit), name="bad")))
        assert scheduler.status()["open_breakers"] == ["bad"]
        with pytest.raises(CircuitOpen) as refused:
            scheduler.submit(job(Work(), name="bad"))
        assert 0 < refused.value.retry_after_s <= 0.2
        trial = Work("done", is_open=False)
        future = None
        while future is None:  # its time passes
            try:
                future = scheduler.submit(job(trial, name="bad"))
            except CircuitOpen as error:
                await asyncio.sleep(error.retry_after_s)
        with pytest.raises(CircuitOpen):
            scheduler.submit(job(Work(), name="bad"))
        trial.gate.set()
        assert await outcome(future) == "done"
        assert scheduler.status()["open_breakers"] == []
        assert await outcome(scheduler.submit(job(Work(1), name="bad"))) == 1

    run(main, breaker_failures=2, breaker_s=0.2)


def test_failures_of_one_subject_s_runs_open_no_breaker_for_others() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        limit = LimitExceeded("too much", limit="memory_nbytes", value=1)
        await outcome(scheduler.submit(job(Work(limit), name="shared", subject="eve")))
        with pytest.raises(CircuitOpen):
            scheduler.submit(job(Work(), name="shared", subject="eve"))
        assert scheduler.status()["open_breakers"] == ["shared"]
        assert await outcome(scheduler.submit(job(Work(1), name="shared", subject="ada"))) == 1
        scheduler.forget("shared")
        assert await outcome(scheduler.submit(job(Work(2), name="shared", subject="eve"))) == 2

    run(main, breaker_failures=1, breaker_s=60)


def test_no_priority_keeps_another_subject_waiting_for_more_than_one_run() -> None:
    order: list[str] = []

    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        first = Work(is_open=False)
        scheduler.submit(job(first, subject="eve"))
        await begun(first)
        jobs = [job(Work(), subject="eve", priority=100) for _number in range(20)]
        jobs.append(job(Work(), subject="ada", priority=-100))
        for each in jobs:
            each.on_change = lambda job: order.append(job.subject) if job.state == "running" else None
            scheduler.submit(each)
        first.gate.set()
        for each in jobs:
            await outcome(each.future)

    run(main)
    assert order == ["eve", "ada", *["eve"] * 19]


def test_what_a_former_version_does_is_not_counted_for_the_next() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        old = Work(LimitExceeded("x", limit="wall_ms", value=1), is_open=False)
        future = scheduler.submit(job(old, name="a"))
        await begun(old)
        scheduler.forget("a")
        old.gate.set()
        await outcome(future)
        assert scheduler.status()["open_breakers"] == []
        assert not scheduler._breakers  # nothing of unregistered ones is left

    run(main, breaker_failures=1)


def test_a_drain_lets_go_on_what_is_there_and_refuses_the_rest() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        first, second = Work("first", is_open=False), Work("second")
        futures = [scheduler.submit(job(first)), scheduler.submit(job(second))]
        drained = asyncio.ensure_future(scheduler.drain(BOUND_S))
        await begun(first)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            scheduler.submit(job(Work()))
        first.gate.set()
        await drained
        assert [await outcome(each) for each in futures] == ["first", "second"]

    run(main)


def test_a_drain_ends_what_does_not_end_in_time() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        works = [Work(is_open=False), Work(is_open=False)]
        futures = [scheduler.submit(job(each)) for each in works]
        await begun(works[0])
        await scheduler.drain(0.01)
        for each in futures:
            assert isinstance(await outcome(each), RunCancelled)
        assert works[1].calls == 0

    run(main)


def test_who_is_told_and_fails_stops_no_other_job() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        loop = asyncio.get_running_loop()
        faults: list[Any] = []
        loop.set_exception_handler(lambda _, context: faults.append(context["exception"]))

        def fail(changed: Job) -> None:
            if changed.state == "success":
                raise ZeroDivisionError

        made = job(Work(1))
        made.on_change = fail
        scheduler.submit(made)
        assert await outcome(scheduler.submit(job(Work(2)))) == 2
        assert [type(each) for each in faults] == [ZeroDivisionError]

    run(main)


def test_one_kind_takes_no_other_kind_s_threads() -> None:
    async def main(scheduler: Scheduler, _: list[Job]) -> None:
        held = [Work(is_open=False) for _ in range(20)]
        for number, each in enumerate(held):
            scheduler.submit(job(each, kind=f"kind {number}"))
        assert await outcome(scheduler.submit(job(Work("done"), kind="another"))) == "done"
        for each in held:
            each.gate.set()

    run(main)


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_the_deadline_of_one_that_waits_comes_by_the_clock_however_late_the_loop_is() -> None:
    async def main(scheduler: Scheduler, told: list[Job]) -> None:
        loop = asyncio.get_running_loop()
        held, late = Work(is_open=False), Work()
        scheduler.submit(job(held))
        waiting = job(late, seconds=1.0)
        future = scheduler.submit(waiting)

        def keep_busy() -> None:
            time.sleep(0.1)  # blocks the loop, as a large body that it parses would
            if not future.done():
                loop.call_soon(keep_busy)

        loop.call_soon(keep_busy)
        error = await outcome(future)
        assert isinstance(error, DeadlineExceeded)
        assert 0 < error.value <= 1.0  # what the request has said
        assert waiting.deadline_s <= waiting.ended_s < waiting.deadline_s + 0.8
        held.gate.set()

    run(main)


def test_a_deadline_ends_the_answer_though_the_run_s_thread_goes_on() -> None:
    async def main(scheduler: Scheduler, told: list[Job]) -> None:
        ended: list[float] = []
        held = Work(is_open=False)
        stuck = job(held, seconds=0.05, end=lambda: None, on_end=lambda: ended.append(time.monotonic()))
        error = await outcome(scheduler.submit(stuck))
        assert isinstance(error, DeadlineExceeded)
        assert (error.limit, stuck.state, told) == ("deadline_s", "failed", [stuck])
        assert 0 < error.value <= 0.05
        assert stuck.deadline_s <= stuck.ended_s
        assert scheduler.status()["queues"]["python"]["running"] == 1  # its thread is not free
        assert not ended  # and what it uses stays
        following = scheduler.submit(job(Work("next")))
        await asyncio.sleep(0)
        assert not following.done()
        held.gate.set()
        assert await outcome(following) == "next"
        assert len(ended) == 1
        assert scheduler.status()["queues"]["python"]["failed_total"] == 1

    run(main)


def test_a_cancelled_run_has_its_answer_though_its_thread_goes_on() -> None:
    async def main(scheduler: Scheduler, told: list[Job]) -> None:
        held = Work(is_open=False)
        stuck = job(held, end=lambda: None)
        future = scheduler.submit(stuck)
        await begun(held)
        assert scheduler.cancel(stuck)
        assert isinstance(await outcome(future), RunCancelled)
        assert (stuck.state, told) == ("cancelled", [stuck])
        assert not scheduler.cancel(stuck)
        held.gate.set()

    run(main)


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_the_answer_waits_for_no_sandbox_that_is_being_made(is_cancelled: bool) -> None:
    making, gate = threading.Event(), threading.Event()

    def make(_: BoxKey) -> Sandbox:
        making.set()
        assert gate.wait(BOUND_S)
        raise SandboxBroken("late")

    async def main(scheduler: Scheduler, told: list[Job]) -> None:
        deadline_s = time.monotonic() + (BOUND_S if is_cancelled else 0.05)
        lent = Lent(BoxKey("contained", Limits()), Algorithm("code", b"output = 1", None), {})
        of_sandbox = SandboxRun(Boxes(make, 1), lambda: nullcontext(lent), {}, deadline_s, "list")
        waiting = Job("r", "python", "", "ada", of_sandbox.do, of_sandbox.end, 0, deadline_s, steps=of_sandbox.steps)
        future = scheduler.submit(waiting)
        assert await asyncio.to_thread(making.wait, BOUND_S)
        if is_cancelled:
            scheduler.cancel(waiting)
        assert isinstance(await outcome(future), RunCancelled if is_cancelled else DeadlineExceeded)
        gate.set()

    run(main)


def test_a_deadline_says_how_long_the_request_was_there_whoever_has_noticed_it() -> None:
    async def main(scheduler: Scheduler, told: list[Job]) -> None:
        late = Work(DeadlineExceeded("late", limit="deadline_s", value=time.monotonic()))
        error = await outcome(scheduler.submit(job(late)))
        assert isinstance(error, DeadlineExceeded)
        assert 0 <= error.value < BOUND_S

    run(main)
