"""Signal handlers that raise, or use the pool, at any step of ours: no request is lost, and the pool goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from interrupts import handled_at, interrupted_at
from pool_ways import POOL_TOOLS
from support import BOUND_S, Gate, wait_until

from tr_mmap import RemoteError, SessionPool
from tr_mmap.pool.mapping import MapResults


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
