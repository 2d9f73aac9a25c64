"""Faults around a pool's workers: starts that fail in ways of their own, requests that come too late, callbacks."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_ways import POOL_TOOLS, Way
from support import BOUND_S, FOREVER_MS, Gate, script, wait_until

from tr_mmap import PythonSession, SessionPool, WorkerDied
from tr_mmap.controller.results import value_of
from tr_mmap.pool.tasks import FutureTask
from tr_mmap.pool.worker import Worker

# Answers the pool's first request, which says that it is ready, and dies before any other.
USELESS = """
import os
from tr_mmap import Server
class Useless(Server):
    asked = 0
    def process_request(self):
        if self.asked:
            os._exit(3)
        self.asked += 1
        super().process_request()
Useless().run()
"""


def shares(pool: SessionPool) -> bool:
    """Whether the workers of this process read the same memory: not on every system."""
    return bool(pool._dispatcher.staff.workers[0].place_of_loans())


def test_workers_that_die_before_their_first_answer_count_as_ones_that_cannot_start(
    open_blocking: Callable[..., Way], tmp_path: Path
) -> None:
    way = open_blocking(1, script=script(tmp_path, USELESS))
    assert isinstance(way.ask("say x"), WorkerDied)
    assert way.stats().started <= 4  # not again and again for ever


def test_idle_workers_that_are_killed_again_and_again_are_replaced(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1)
    for kills in range(1, 5):
        wait_until(lambda: [each.state for each in way.stats().workers] == ["ready"])
        os.kill(way.stats().workers[0].pid or 0, signal.SIGKILL)
        wait_until(lambda: way.stats().died == kills)  # noqa: B023
    assert way.ask("say x") == "x"


def test_requests_that_kill_fresh_workers_fail_no_other_request(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1)
    bad = [way.submit("kill_me") for _ in range(3)]
    good = [way.submit("say", number) for number in range(5)]
    assert [getattr(way.outcome(each), "attempts", None) for each in bad] == [1, 1, 1]
    assert [way.result(each) for each in good] == [str(number) for number in range(5)]


def test_a_request_that_kills_fresh_workers_is_tried_as_often_as_allowed(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1, retries=3)
    bad, good = way.submit("kill_me"), way.submit("say x")
    assert way.outcome(bad).attempts == 4
    assert way.result(good) == "x"


def test_workers_that_are_killed_before_their_first_answer_are_replaced_beside_one_that_works(
    open_blocking: Callable[..., Way],
) -> None:
    way = open_blocking(2)
    works = int(way.ask("pid"))

    def others() -> list[int]:
        return [each.pid or 0 for each in way.stats().workers if each.state == "ready" and each.pid != works]

    for _ in range(4):
        wait_until(others)
        os.kill(others()[0], signal.SIGKILL)
        wait_until(lambda: not others())
    wait_until(others)


def test_any_error_of_a_start_is_that_of_the_requests_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(session: PythonSession[Any]) -> None:
        raise ZeroDivisionError("of the system")

    monkeypatch.setattr(PythonSession, "start", fail)
    with SessionPool(POOL_TOOLS, 2, quiet_mode=True) as pool:
        with pytest.raises(ZeroDivisionError, match="of the system"):
            pool.calculate("say x")
        monkeypatch.undo()

        def is_served() -> bool:
            with suppress(ZeroDivisionError):  # of a start that had begun before
                return bool(pool.calculate("say x") == "x")
            return False

        wait_until(is_served)


def test_a_new_worker_does_not_wait_until_the_dead_one_is_cleared_away(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, close = threading.Event(), PythonSession.close

    def close_late(session: PythonSession[Any]) -> None:
        let_go.wait(BOUND_S)
        close(session)

    with SessionPool(POOL_TOOLS, 1, quiet_mode=True) as pool:
        first = int(pool.calculate("pid"))
        monkeypatch.setattr(PythonSession, "close", close_late)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: pool.calculate("pid") != str(first))
        assert not let_go.is_set()
        let_go.set()


def test_a_request_that_comes_too_late_for_a_shutdown_is_refused() -> None:
    pool = SessionPool(POOL_TOOLS, 1, quiet_mode=True)
    pool.calculate("say x")
    dispatcher = pool._dispatcher
    late = FutureTask(dispatcher, value_of, "say x", (), "numpy", 1.0, 0, None)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        dispatcher.submit(late)  # by a thread that looked whether the pool is open just before
    assert not dispatcher.queue


@pytest.mark.parametrize("end", ["shutdown", "kill_workers"])
def test_threads_that_submit_during_the_end_get_an_outcome_or_a_refusal(end: str) -> None:
    pool = SessionPool(POOL_TOOLS, 1, quiet_mode=True)
    pool.calculate("say x")
    futures: list[Any] = []

    def submit() -> None:
        try:
            while True:
                futures.append(pool.submit("say x"))
        except RuntimeError:
            pass

    threads = [threading.Thread(target=submit) for _ in range(3)]
    for each in threads:
        each.start()
    wait_until(lambda: len(futures) > 20)
    getattr(pool, end)()
    for each in threads:
        each.join(BOUND_S)
    pool.shutdown()
    assert all(each.done() for each in futures)


def test_workers_that_ignore_sigterm_are_all_killed_after_the_same_second(tmp_path: Path) -> None:
    text = """
import signal, time
from tr_mmap import Server
server = Server()
@server.command("ignore")
def ignore(path: str):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(path, "w").close()
    time.sleep(1000)
server.run()
"""
    with SessionPool(script(tmp_path, text), 3, quiet_mode=True, max_in_flight=1) as pool:
        assert pool.wait_until_ready(FOREVER_MS)
        marks = [tmp_path / str(number) for number in range(3)]
        futures = [pool.submit("ignore", mark) for mark in marks]
        wait_until(lambda: all(mark.exists() for mark in marks))
        killed: list[tuple[float, float]] = []
        kill = Worker.kill
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                Worker, "kill", lambda worker, grace_s: killed.append((grace_s, kill(worker, grace_s) or 0.0))
            )
            pool.terminate_workers()
            pool.shutdown()
        assert all(isinstance(each.exception(), WorkerDied) for each in futures)
        assert sorted(grace_s for grace_s, _ in killed)[:2] == [0.0, 0.0]  # one second in all


def test_a_callback_that_asks_the_thread_to_end_does_not_end_the_pool(pool: SessionPool, gate: Gate) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    pool.submit(gate.message).add_done_callback(leave)
    gate.let_go("through")
    assert [pool.submit("say", number).result(BOUND_S) for number in range(9)] == [str(number) for number in range(9)]


def test_a_request_does_not_wait_for_the_worker_in_whose_memory_its_argument_lies(gate: Gate) -> None:
    with SessionPool(POOL_TOOLS, 2, quiet_mode=True) as pool:
        assert pool.wait_until_ready()
        array = pool.calculate("twice", np.ones(1 << 16))
        holding = pool.submit("hold", gate.path, array)  # goes where the array lies
        gate.wait_for_worker()
        assert pool.submit("twice", array).result(BOUND_S)[0] == 4
        gate.let_go("through")
        assert holding.result() == "through"


def test_nothing_refers_to_a_worker_that_is_gone(open_blocking: Callable[..., Way]) -> None:
    way: Any = open_blocking(1)
    pool: SessionPool = way.pool
    way.ask("twice", np.ones(1 << 16))
    worker: weakref.ref[Worker] = weakref.ref(pool._dispatcher.staff.workers[0])
    assert isinstance(way.ask("kill_me"), WorkerDied)
    assert way.ask("say x") == "x"
    wait_until(lambda: worker() is None)


def test_a_large_argument_is_copied_at_once(gate: Gate) -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True, max_in_flight=1, retries=1) as pool:
        pool.calculate("say x")
        if not shares(pool):
            pytest.skip("NOT TESTED: memory that all workers share")
        running = pool.submit(gate.message)
        gate.wait_for_worker()
        array = np.full(1 << 17, 3.0)
        gone = weakref.ref(array)
        waiting = pool.submit("twice", array)
        del array
        assert gone() is None  # although no worker has it
        gate.let_go("through")
        assert running.result() == "through"
        assert waiting.result()[-1] == 6.0


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "bool"])
def test_large_torch_arguments_keep_their_dtype_and_come_back_as_tensors(pool: SessionPool, dtype: str) -> None:
    import torch

    tensor = torch.ones(1 << 17).to(getattr(torch, dtype))
    for each in (tensor, tensor.reshape(256, -1), tensor.reshape(256, -1).T, tensor[1:]):
        result = pool.calculate("echo", each)
        assert isinstance(result, torch.Tensor)
        assert (result.dtype, result.shape) == (each.dtype, each.shape)
        assert torch.equal(result, each)


def test_a_large_argument_is_tried_again_with_the_same_content(tmp_path: Path) -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True, retries=1) as pool:
        pool.calculate("say x")
        result = pool.calculate("poison_once", tmp_path / "once", np.full(1 << 17, 5.0))
        assert result.tolist() == [5.0] * (1 << 17)
        assert pool.stats().retried == 1


def test_a_broadcast_tensor_is_copied_once_for_all_workers_and_those_that_come() -> None:
    large = np.full(1 << 17, 2.0)
    with SessionPool(POOL_TOOLS, 2, quiet_mode=True) as pool:
        assert pool.wait_until_ready(FOREVER_MS)
        sessions = [each.session for each in pool._dispatcher.staff.workers]
        is_shared, before = shares(pool), sum(each.stats().copied_nbytes for each in sessions)
        pool.broadcast(large, "weights")
        if is_shared:
            assert sum(each.stats().copied_nbytes for each in sessions) - before <= large.nbytes
        x = np.full(1 << 17, 3.0)
        assert {float(pool.submit("apply weights", x).result()[-1]) for _ in range(8)} == {6.0}
        pids = {each.pid for each in pool.stats().workers}
        for pid in pids:  # the memory goes with the last session
            os.kill(pid or 0, signal.SIGKILL)
        wait_until(lambda: not pids & {each.pid for each in pool.stats().workers})
        assert pool.wait_until_ready(FOREVER_MS)
        assert {float(pool.submit("apply weights", x).result()[-1]) for _ in range(8)} == {6.0}


@pytest.mark.parametrize(
    "wait",
    [
        lambda pool: pool.calculate("say x"),
        lambda pool: list(pool.map("say", "xyz")),
        lambda pool: list(pool.map("say", "xyz", ordered=False)),
    ],
)
def test_a_callback_that_would_wait_for_itself_is_told(pool: SessionPool, gate: Gate, wait: Callable[..., Any]) -> None:
    told: list[BaseException] = []

    def call(_: object) -> None:
        try:
            wait(pool)
        except RuntimeError as error:
            told.append(error)

    future = pool.submit(gate.message)
    future.add_done_callback(call)
    gate.let_go("through")
    assert pool.submit("say later").result(BOUND_S) == "later"
    wait_until(lambda: bool(told))
    assert "would wait for itself" in str(told[0])


def test_a_callback_may_end_the_pool_as_after_an_error(gate: Gate) -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True) as pool:
        assert pool.wait_until_ready(FOREVER_MS)
        left = threading.Event()
        future = pool.submit(gate.message)
        future.add_done_callback(lambda _: (pool.__exit__(ValueError, ValueError(), None), left.set()))
        gate.let_go("through")
        assert left.wait(BOUND_S)
    assert pool._dispatcher.has_ended.is_set()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_whatever_the_callers_functions_raise_does_not_end_the_pool(
    open_blocking: Callable[..., Way], tmp_path: Path, error: type[BaseException]
) -> None:
    class Odd:
        def __array__(self, *_: Any, **__: Any) -> Any:
            raise error

    def fail(*_: object) -> None:
        told.append(1)
        raise error

    text = """
from tr_mmap import Server
server = Server()
@server.command("work")
def work():
    server.progress(0.5, "half")
server.run()
"""
    told: list[int] = []
    way = open_blocking(1, script=script(tmp_path, text))
    assert way.ask("work", on_progress=fail) == "ok"
    assert told
    future = way.submit("work", np.ones(1), Odd())
    assert future.exception(BOUND_S) is not None
    assert way.ask("work") == "ok"
