"""Signal handlers that raise, or use the pool, at any step of ours: no request is lost, and the pool goes on."""

from __future__ import annotations

from interrupts import interrupted_at
from support import BOUND_S, wait_until

from tr_mmap import SessionPool


def test_no_step_of_a_submit_at_which_a_handler_raises_lets_the_pool_sleep_on(pool: SessionPool) -> None:
    step, is_interrupted = 1, True
    while is_interrupted:
        wait_until(lambda: pool._dispatcher._sleep_now.is_on)
        is_interrupted = interrupted_at(step, lambda: pool.submit("say x"))
        assert pool.submit("say", step).result(BOUND_S) == str(step), step
        step += 1
    assert step > 10
