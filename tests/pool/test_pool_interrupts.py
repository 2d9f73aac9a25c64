"""Signal handlers that raise, or use the pool, at any step of ours: no request is lost, and the pool goes on."""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupts import handled_at, interrupted_at
from pool_ways import POOL_TOOLS
from support import BOUND_S, FOREVER_MS, Gate, wait_until

from tr_mmap import MissingTag, RemoteError, SessionPool
from tr_mmap.pool.dispatcher import Dispatcher
from tr_mmap.pool.mapping import MapResults
from tr_mmap.pool.staff import Staff


def test_no_step_of_a_submit_at_which_a_handler_raises_lets_the_pool_sleep_on(pool: SessionPool) -> None:
    step, is_interrupted = 1, True
    while is_interrupted:
        wait_until(lambda: pool._dispatcher._sleep_now.is_on)
        is_interrupted = interrupted_at(step, lambda: pool.submit("say x"))
        assert pool.submit("say", step).result(BOUND_S) == str(step), step
        step += 1
    assert step > 10


def interrupt() -> None:
    raise KeyboardInterrupt


def all_of(results: MapResults, found: list[str]) -> None:
    """Take all results, whatever interrupts come."""
    while True:
        try:
            found.append(next(results))
        except KeyboardInterrupt:
            pass
        except StopIteration:
            return


@pytest.mark.parametrize("is_ordered", [True, False])
def test_no_step_of_a_map_at_which_an_interrupt_comes_loses_or_repeats_a_result(
    pool: SessionPool, is_ordered: bool
) -> None:
    step, is_interrupted, refused = 1, True, 0
    while is_interrupted:
        results = pool.map("say", range(7), chunksize=2, buffersize=2, ordered=is_ordered, progress=lambda *_: None)
        found: list[str] = []
        try:
            is_interrupted = handled_at(step, lambda: all_of(results, found), interrupt)  # noqa: B023
        except RuntimeError:  # it was interrupted while it read the iterable
            refused += 1
        else:
            assert (found if is_ordered else sorted(found)) == list("0123456"), step
        step += 3 if is_ordered else 4
    assert step > 100
    assert refused


def test_no_step_at_which_an_interrupt_comes_hides_the_error_of_an_item(pool: SessionPool) -> None:
    step, is_interrupted, seen = 1, True, 0
    while is_interrupted:
        results = pool.map("odd", (np.full(1, number) for number in (1, 4, 1)), chunksize=1, buffersize=1)
        found: list[str] = []
        with pytest.raises((RemoteError, RuntimeError)) as caught:
            handled_at(step, lambda: all_of(results, found), interrupt)  # noqa: B023
        seen += caught.type is RemoteError
        assert found == ["1"] or caught.type is RuntimeError
        is_interrupted = step < 300
        step += 3
    assert seen > 50


def test_no_step_of_a_close_at_which_an_interrupt_comes_keeps_requests_from_being_cancelled(
    gate: Gate, tmp_path: Path
) -> None:
    step, is_interrupted, mark = 1, True, tmp_path / "mark"
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True) as pool:
        running = pool.submit(gate.message)
        gate.wait_for_worker()
        while is_interrupted:
            results = pool.map("append", [mark] * 4, range(4), chunksize=1)
            try:
                is_interrupted = handled_at(step, results.close, interrupt)
            except KeyboardInterrupt:
                results.close()
            step += 1
        assert step > 10
        gate.let_go("through")
        assert (running.result(BOUND_S), pool.calculate("say x")) == ("through", "x")
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what was not made to its end
@pytest.mark.parametrize("act", ["raises", "submits"])
def test_no_step_of_a_first_submit_at_which_a_handler_comes_breaks_the_pool(act: str) -> None:
    """No process is started here: the pool's threads are what is begun in these steps."""
    step, is_interrupted = 1, True
    while is_interrupted:
        staff = Staff(lambda: None, "x", 1, math.inf, 1.0, False)  # type: ignore[arg-type,return-value] # starts none
        staff.size = 0
        dispatcher = Dispatcher(staff, None)

        def start() -> None:
            staff.start()  # noqa: B023
            dispatcher.start()  # noqa: B023

        try:
            is_interrupted = handled_at(step, start, interrupt if act == "raises" else start)
        except KeyboardInterrupt:
            start()
        called = threading.Event()
        dispatcher.post(called.set)
        assert called.wait(BOUND_S), step
        for jobs in (staff._starter, staff._janitor):
            done = threading.Event()
            staff._do(jobs, done.set)
            assert done.wait(BOUND_S), step
        dispatcher.shut(is_cancelling=True, grace_s=0.0)
        assert dispatcher.has_ended.wait(BOUND_S), step
        step += 2
    assert step > 30


@pytest.mark.parametrize("step", [10, 40, 90])
def test_a_signal_handler_submits_during_the_programs_first_submit(workspace: Path, step: int) -> None:
    pool, futures = SessionPool(POOL_TOOLS, 1, quiet_mode=True), list[Any]()

    def submit() -> None:
        futures.append(pool.submit("say x"))

    try:
        assert handled_at(step, submit, submit)
        assert [each.result(BOUND_S) for each in futures] == ["x", "x"]
    finally:
        pool.shutdown()


def test_a_signal_handler_broadcasts_in_the_middle_of_a_broadcast(pool: SessionPool) -> None:
    step = 1
    while handled_at(
        step,
        lambda: pool.broadcast(np.full(2, 2.0), "outer"),
        lambda: pool.broadcast(np.full(2, 3.0), "inner"),
    ):
        both = [pool.submit("apply", tag, np.ones(2)) for tag in ("outer", "inner") for _ in range(2)]
        assert [each.result(BOUND_S)[0] for each in both] == [2.0, 2.0, 3.0, 3.0], step
        for tag in ("outer", "inner"):
            pool.drop_tensor(tag)
        step += 13
    pool.drop_tensor("outer")
    assert step > 50


def test_a_drop_that_is_interrupted_is_finished_by_the_next_one(pool: SessionPool) -> None:
    step, is_interrupted = 1, True
    while is_interrupted:
        pool.broadcast(np.ones(2), "dropped")
        try:
            is_interrupted = handled_at(step, lambda: pool.drop_tensor("dropped"), interrupt)
        except KeyboardInterrupt:
            with suppress(MissingTag):
                pool.drop_tensor("dropped")
        assert not any("dropped" in each.tags for each in pool._dispatcher.staff.workers), step
        with pytest.raises(MissingTag):
            pool.drop_tensor("dropped")
        step += 5
    assert step > 20


def test_a_kill_that_is_interrupted_is_finished_by_the_next_cancel(tmp_path: Path) -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True) as pool:
        assert pool.wait_until_ready(FOREVER_MS)
        for step in range(3, 33, 5):
            gate = Gate(tmp_path)
            running = pool.submit(gate.message)
            gate.wait_for_worker()
            with suppress(KeyboardInterrupt):
                handled_at(step, lambda: running.cancel(kill_running=True), interrupt)  # noqa: B023
            assert running.cancel(kill_running=True), step
            assert pool.submit("say", step).result(BOUND_S) == str(step)
            gate.close()
        assert pool.stats().died == 6
