"""A worker's death is ordinary: it is replaced, what it had begun fails or is tried again, and nobody else notices."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pool_ways import POOL_TOOLS, Way
from support import Gate, script, wait_until

from tr_mmap import RemoteError, SessionPool, WorkerDied


def test_the_request_that_ran_fails_and_all_others_have_their_results(open_pool: Callable[..., Way]) -> None:
    way = open_pool(2)
    before = [way.submit("say", number) for number in range(50)]
    killer = way.submit("kill_me")
    after = [way.submit("say", number) for number in range(50)]
    error = way.outcome(killer)
    assert isinstance(error, WorkerDied)
    assert (error.attempts, error.exit_code) == (1, -signal.SIGKILL)
    assert "there is no answer to 'kill_me'" in str(error)
    assert "\n" not in str(error)
    assert [way.result(each) for each in [*before, *after]] == [str(number) for number in range(50)] * 2
    assert way.call("wait_until_ready")
    stats = way.stats()
    assert (stats.died, stats.failed, stats.retried, len(stats.workers)) == (1, 1, 0, 2)


def test_what_only_waited_in_its_ring_goes_to_another_worker_and_is_no_attempt(gate: Gate, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True, max_in_flight=10) as pool:
        running = pool.submit(gate.message)
        gate.wait_for_worker()
        waiting = [pool.submit("append", mark, number) for number in range(9)]
        wait_until(lambda: pool.stats().workers[0].in_flight == 10)
        os.kill(pool.stats().workers[0].pid or 0, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            running.result()
        assert [each.result() for each in waiting] == [str(number) for number in range(9)]
    assert mark.read_text().split() == [str(number) for number in range(9)]  # each handler once, and in order


def test_a_request_is_tried_again_as_often_as_allowed(open_blocking: Callable[..., Way], tmp_path: Path) -> None:
    way = open_blocking(1, retries=1)
    assert way.ask("kill_once", tmp_path / "once") == "survived"
    error = way.ask("kill_me")
    assert isinstance(error, WorkerDied)
    assert error.attempts == 2
    assert "after 2 attempts" in str(error)
    assert way.ask("say x") == "x"
    assert way.stats().retried == 2


def test_an_error_of_a_handler_is_not_tried_again(open_blocking: Callable[..., Way], tmp_path: Path) -> None:
    way = open_blocking(1, retries=5)
    assert isinstance(way.ask("fail why"), RemoteError)
    assert way.stats().retried == 0


def test_a_handler_that_hangs_is_ended_and_its_worker_replaced(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1, timeout_ms=200, max_in_flight=4)
    assert way.ask("say x") == "x"
    hanging = way.submit("hog")  # no signal but SIGKILL ends it
    behind = [way.submit("say", number) for number in range(10)]
    error = way.outcome(hanging)
    assert isinstance(error, WorkerDied)
    assert "longer than the 200 ms" in str(error)
    assert [way.result(each) for each in behind] == [str(number) for number in range(10)]
    assert way.stats().died == 1


@pytest.mark.parametrize("how", ["wait", "loop", "sleep"])
def test_the_error_of_a_handler_that_hangs_shows_the_line_where_it_was(
    open_blocking: Callable[..., Way], tmp_path: Path, how: str
) -> None:
    lines = {"wait": "threading.Event().wait()", "loop": "while True: pass", "sleep": "time.sleep(10_000)"}
    text = (
        "import threading, time\nfrom tr_mmap import Server\nserver = Server(framework='numpy')\n"
        f"@server.command('hang')\ndef hang():\n    {lines[how]}\nserver.run()\n"
    )
    way = open_blocking(1, script=script(tmp_path, text), timeout_ms=200)
    error = way.outcome(way.submit("hang"))
    assert isinstance(error, WorkerDied)
    for shown in (error.log_tail, str(error)):
        assert 'worker.py", line 6 in hang' in shown


def test_the_time_of_a_request_begins_when_its_handler_does(gate: Gate) -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True) as pool:
        long = pool.submit(gate.message)
        gate.wait_for_worker()
        short = pool.submit("say x", timeout_ms=50)
        pool.submit("say y", timeout_ms=None)
        time.sleep(0.2)  # longer than the second one may take, which has not begun
        gate.let_go("through")
        assert (long.result(), short.result()) == ("through", "x")
        assert pool.stats().died == 0


def test_a_stopped_worker_is_ended_too(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1, timeout_ms=300)
    pid = int(way.ask("pid"))
    os.kill(pid, signal.SIGSTOP)
    running = way.submit("sleep 100")  # which no handler ever begins
    assert isinstance(way.outcome(running), WorkerDied)
    assert way.ask("say x") == "x"


def test_an_idle_worker_that_dies_is_replaced(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1)
    pid = int(way.ask("pid"))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: [each.pid for each in way.stats().workers if each.state == "ready"] not in ([pid], []))
    assert int(way.ask("pid")) != pid


def test_a_worker_that_leaves_by_itself_is_replaced(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1)
    error = way.ask("leave 3")
    assert isinstance(error, WorkerDied)
    assert error.exit_code in (3, None)  # None if its process takes long to end
    assert way.ask("say x") == "x"


def test_a_poisonous_item_of_a_map_fails_and_the_rest_of_its_batch_does_not(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1, retries=1)
    items = [np.full(2, number) for number in range(40)]
    found = way.mapped("poison", items[:13], chunksize=13)
    assert [int(each[0]) for each in found] == list(range(13))
    with pytest.raises(WorkerDied) as caught:
        way.mapped("poison", items, chunksize=20, most=14)
    assert caught.value.attempts == 2
    assert [int(each[0]) for each in way.mapped("poison", items, chunksize=20, most=13)] == list(range(13))


def test_an_item_that_kills_or_hangs_fails_alone_although_nothing_is_tried_again(
    open_blocking: Callable[..., Way],
) -> None:
    way = open_blocking(1, timeout_ms=500)
    for command, items, good in (
        ("poison", [np.full(2, number) for number in range(7, 20)], 6),
        ("sleep", [0.0] * 6 + [1e6] + [0.0] * 3, 6),
    ):
        assert len(way.mapped(command, items, chunksize=10, most=good)) == good
        with pytest.raises(WorkerDied) as caught:
            way.mapped(command, items, chunksize=10, most=good + 1)
        assert caught.value.attempts == 1
    assert "longer than the 500 ms" in str(caught.value)  # its own time, not that of the batch


def test_items_that_take_longer_than_those_before_do_not_fail(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1, timeout_ms=500)
    times = [0.0] * 8 + [0.3] * 4
    assert way.mapped("sleep", times, chunksize=4, buffersize=1) == ["slept"] * 12


def test_a_running_request_may_be_cancelled_by_force(gate: Gate) -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True, retries=3) as pool:
        running = pool.submit(gate.message)
        gate.wait_for_worker()
        behind = pool.submit("say x")
        assert not running.cancel()
        assert running.cancel(kill_running=True)
        assert running.cancelled()
        assert behind.result() == "x"


def test_a_script_that_cannot_start_is_told_with_its_output_and_the_pool_does_not_hang(
    open_blocking: Callable[..., Way], tmp_path: Path
) -> None:
    way = open_blocking(2, script=script(tmp_path, "import no_such_module_at_all\n"))
    for _ in range(2):
        error = way.ask("say x")
        assert isinstance(error, WorkerDied)
        assert "no worker could be started" in str(error)
        assert "no_such_module_at_all" in error.log_tail
    with pytest.raises(WorkerDied):
        way.call("wait_until_ready")


def test_what_on_start_raises_is_told_too(open_blocking: Callable[..., Way], tmp_path: Path) -> None:
    load = "@server.on_start\ndef load():\n    raise OSError('no model')\n"
    text = f"from tr_mmap import Server\nserver = Server()\n{load}server.run()\n"
    way = open_blocking(1, script=script(tmp_path, text))
    error = way.ask("say x")
    assert isinstance(error, WorkerDied)
    assert "no model" in error.log_tail


def test_a_worker_that_is_never_ready_counts_as_one_that_cannot_start(
    open_blocking: Callable[..., Way], tmp_path: Path
) -> None:
    way = open_blocking(1, script=script(tmp_path, "import signal\nsignal.pause()\n"), start_timeout_ms=200)
    error = way.ask("say x")
    assert "was not ready after 0.2 s" in str(error)


def _kill_for(pool: SessionPool, kills: int, is_over: threading.Event, killed: list[float]) -> None:
    """Kill a worker at random, again and again, and see how long it takes until another one is there."""
    chosen = random.Random(19)
    while len(killed) < kills:
        ready = [each for each in pool.stats().workers if each.state == "ready" and each.pid]
        if len(ready) < 2:
            time.sleep(0.001)
            continue
        victim = chosen.choice(ready)
        began_s = time.monotonic()
        os.kill(victim.pid or 0, signal.SIGKILL)
        wait_until(lambda: victim.pid not in [each.pid for each in pool.stats().workers])  # noqa: B023
        wait_until(lambda: sum(each.state == "ready" for each in pool.stats().workers) >= 2)
        killed.append(time.monotonic() - began_s)
    is_over.set()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_kills_under_load_disturb_no_other_future_and_give_no_wrong_answer(
    is_full: bool, figures: Callable[[str], None]
) -> None:
    kills = 1000 if is_full else 4
    is_over, killed, answers, failed = threading.Event(), [], 0, 0
    began = psutil.Process().num_fds()
    with SessionPool(POOL_TOOLS, 2, quiet_mode=True) as pool:
        assert pool.wait_until_ready()
        killer = threading.Thread(target=_kill_for, args=(pool, kills, is_over, killed))
        killer.start()
        number = 0
        while not is_over.is_set():
            sent: list[Any] = []
            for _ in range(30):
                number += 1
                sent.append((number, pool.submit("twice", np.full(1 << 16, number))))
            for value, future in sent:
                try:
                    found = future.result()
                except WorkerDied:
                    failed += 1
                else:
                    answers += 1
                    assert np.array_equal(found, np.full(1 << 16, 2 * value))
                    del found
        killer.join()
        died = pool.stats().died
    assert failed <= kills  # a worker has one handler that runs, so a kill takes one request at most
    assert died == kills
    killed.sort()
    figures(
        f"{kills} kills, {answers} right answers, {failed} requests failed, replaced within "
        f"{killed[len(killed) // 2]:.2f} s (median), {killed[-1]:.2f} s (longest)"
    )
    assert psutil.Process().num_fds() <= began + 5
