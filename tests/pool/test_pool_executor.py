"""``SessionPool`` keeps what ``concurrent.futures`` promises of an executor."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import time
import weakref
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, as_completed, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_ways import POOL_TOOLS
from support import BOUND_S, TOOLS, Gate, wait_until

from tr_mmap import BadMessage, ScriptNotFound, SessionPool, WorkerDied


def test_it_is_an_executor_whose_futures_are_the_standard_librarys(pool: SessionPool) -> None:
    assert isinstance(pool, Executor)
    futures = {pool.submit("say", number): str(number) for number in range(60)}
    assert all(isinstance(each, Future) for each in futures)
    assert {future.result() == futures[future] for future in as_completed(futures, BOUND_S)} == {True}
    done, rest = wait([pool.submit("say", number) for number in range(40)], BOUND_S)
    assert (len(done), len(rest)) == (40, 0)
    done, _ = wait([pool.submit("say x")], BOUND_S, FIRST_COMPLETED)
    assert done.pop().exception() is None


def test_a_loop_runs_commands_in_it(pool: SessionPool) -> None:
    async def ask() -> list[Any]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, "twice", np.full(2, number)) for number in range(20)))

    assert [int(each[0]) for each in asyncio.run(ask())] == [2 * number for number in range(20)]


def test_calculate_is_submit_and_result(pool: SessionPool) -> None:
    assert pool.calculate("twice", np.arange(3)).tolist() == [0, 2, 4]


def test_a_callback_runs_once_may_submit_and_cannot_wait_for_itself(pool: SessionPool, gate: Gate) -> None:
    said: list[Any] = []

    def go_on(future: Future[Any]) -> None:
        said.append(future.result())
        pool.submit("say second").add_done_callback(lambda other: said.append(other.result()))
        try:
            pool.submit("say third").result()
        except RuntimeError as error:
            said.append(str(error)[:30])

    pool.submit(gate.message).add_done_callback(go_on)
    gate.let_go("first")
    wait_until(lambda: len(said) == 3)
    assert said == ["first", "a callback in the pool's own t", "second"]


def test_a_callback_that_fails_harms_nobody(pool: SessionPool) -> None:
    def fail(future: Future[Any]) -> None:
        raise ZeroDivisionError

    pool.submit("say x").add_done_callback(fail)
    assert [pool.submit("say", number).result() for number in range(20)] == [str(number) for number in range(20)]


def test_the_time_of_result_ends_the_wait_and_not_the_request(pool: SessionPool, gate: Gate) -> None:
    future = pool.submit(gate.message)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    gate.wait_for_worker()
    assert future.running()
    assert not future.cancel()
    gate.let_go("through")
    assert future.result() == "through"
    assert not future.running()


def test_map_raises_when_its_time_is_over(pool: SessionPool, gate: Gate) -> None:
    results = pool.map("gate", [gate.path], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    gate.let_go("")
    assert list(results) == []


def test_a_map_that_is_dropped_or_closed_cancels_what_was_not_begun(gate: Gate, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True) as pool:
        running = pool.submit(gate.message)
        gate.wait_for_worker()
        results = pool.map("append", [mark] * 20, range(20))
        dropped = pool.map("append", [mark] * 20, range(20))
        results.close()
        gone = weakref.ref(dropped)
        del dropped
        assert gone() is None  # at once, without the garbage collector
        gate.let_go("through")
        assert running.result() == "through"
        assert pool.calculate("say x") == "x"
    assert not mark.exists()


def test_a_future_that_is_dropped_takes_its_result_with_it(pool: SessionPool) -> None:
    gc.collect()
    gc.disable()  # no cycle is to be found by it
    try:
        futures = [pool.submit("twice", np.ones(100_000)) for _ in range(4)]
        gone = [weakref.ref(each.result()) for each in futures]
        pool.calculate("say x")  # the dispatcher has nothing more to do with them
        del futures
        assert [each() for each in gone] == [None] * 4
        future = pool.submit("fail why")
        error = weakref.ref(future)
        assert future.exception() is not None
        pool.calculate("say x")
        del future
        assert error() is None
    finally:
        gc.enable()


def test_results_are_not_kept_by_a_map(pool: SessionPool) -> None:
    results = pool.map("twice", [np.ones(100_000) for _ in range(10)])
    first = weakref.ref(next(results))
    wait_until(lambda: gc.collect() is not None and first() is None)
    assert len(list(results)) == 9


def test_after_shutdown_nothing_is_taken() -> None:
    pool = SessionPool(TOOLS, 1, quiet_mode=True)
    assert pool.submit("say x").result() == "x"
    pool.shutdown()
    pool.shutdown()
    for call in (lambda: pool.submit("say x"), lambda: pool.map("say", [1]), lambda: pool.resize(2)):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.broadcast(np.ones(1), "x")
    assert "shut down" in repr(pool)


def test_a_pool_that_was_not_used_starts_nothing() -> None:
    pool = SessionPool(TOOLS, 1)
    before = threading.active_count()
    pool.shutdown()
    assert threading.active_count() == before
    assert pool.stats().started == 0
    with SessionPool(TOOLS, 1, quiet_mode=True):
        pass  # its workers may be starting still


def test_shutdown_waits_for_what_was_submitted(tmp_path: Path) -> None:
    with SessionPool(POOL_TOOLS, 2, quiet_mode=True) as pool:
        futures = [pool.submit("say", number) for number in range(50)]
    assert [each.result(0) for each in futures] == [str(number) for number in range(50)]


def test_shutdown_without_wait_returns_at_once_and_all_is_done(gate: Gate) -> None:
    pool = SessionPool(POOL_TOOLS, 1, quiet_mode=True)
    futures = [pool.submit(gate.message), *(pool.submit("say", number) for number in range(5))]
    gate.wait_for_worker()
    pool.shutdown(wait=False)
    assert not futures[-1].done()
    gate.let_go("through")
    assert [each.result(BOUND_S) for each in futures] == ["through", "0", "1", "2", "3", "4"]
    pool.shutdown()


def test_shutdown_may_cancel_what_no_handler_has(gate: Gate, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pool = SessionPool(POOL_TOOLS, 1, quiet_mode=True)
    running = pool.submit(gate.message)
    gate.wait_for_worker()
    waiting = [pool.submit("append", mark, number) for number in range(10)]
    pool.shutdown(wait=False, cancel_futures=True)
    done, _ = wait(waiting, BOUND_S)
    assert all(each.cancelled() for each in done)
    assert len(done) == 10
    gate.let_go("through")
    assert running.result(BOUND_S) == "through"
    pool.shutdown()
    assert not mark.exists()


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_workers_are_ended_now(method: str, gate: Gate) -> None:
    pool = SessionPool(POOL_TOOLS, 1, quiet_mode=True, retries=5)
    running = pool.submit(gate.message)
    gate.wait_for_worker()
    waiting = [pool.submit("say", number) for number in range(10)]
    getattr(pool, method)()
    with pytest.raises(WorkerDied) as caught:
        running.result(BOUND_S)
    assert caught.value.attempts == 1
    done, _ = wait(waiting, BOUND_S)
    assert all(each.cancelled() for each in done)
    with pytest.raises(RuntimeError):
        pool.submit("say x")
    pool.shutdown()
    assert pool.stats().workers == ()


def test_a_block_that_raises_ends_the_pool_soon_whatever_runs(gate: Gate) -> None:
    with pytest.raises(ZeroDivisionError), SessionPool(POOL_TOOLS, 1, quiet_mode=True) as pool:  # noqa: PT012
        running = pool.submit(gate.message)
        gate.wait_for_worker()
        waiting = pool.submit("say x")
        began_s = time.monotonic()
        raise ZeroDivisionError
    assert time.monotonic() - began_s < BOUND_S
    with pytest.raises(WorkerDied):
        running.result(0)
    with pytest.raises(CancelledError):
        waiting.result(0)


def test_threads_share_a_pool(pool: SessionPool) -> None:
    wrong: list[object] = []

    def ask(name: int) -> None:
        for number in range(50):
            if pool.calculate("say", f"{name}.{number}") != f"{name}.{number}":
                wrong.append((name, number))

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_a_pool_is_neither_copied_nor_pickled(pool: SessionPool) -> None:
    for action in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            action(pool)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_workers": 0}, "max_workers"),
        ({"max_workers": "2"}, "max_workers"),
        ({"max_workers": True}, "max_workers"),
        ({"retries": -1}, "retries"),
        ({"max_tasks_per_child": 0}, "max_tasks_per_child"),
        ({"timeout_ms": -5}, "timeout_ms"),
        ({"max_in_flight": 63}, "max_in_flight"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"reload": 1}, "reload"),
        ({"session_id": "x"}, "session_id"),
        ({"at_limit": "fail"}, "at_limit"),
        ({"channel": "pigeon"}, "channel"),
        ({"framework": "jax"}, "framework"),
    ],
)
def test_an_option_that_is_not_valid_is_one_clear_line(options: dict[str, Any], name: str) -> None:
    with pytest.raises(BadMessage) as caught:
        SessionPool(TOOLS, **options)
    assert caught.value.detail == name
    assert "\n" not in str(caught.value)


def test_a_script_that_is_not_there_and_an_unknown_option_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ScriptNotFound):
        SessionPool(tmp_path / "none.py")
    unknown: dict[str, Any] = {"colour": "red"}
    with pytest.raises(TypeError, match="colour"):
        SessionPool(TOOLS, **unknown)
    with pytest.raises(BadMessage, match="needs an iterable"):
        SessionPool(TOOLS).map("say")


def test_a_future_that_the_program_gives_a_result_is_dropped_and_the_others_go_on(gate: Gate) -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True, max_in_flight=1) as own:
        running = own.submit(gate.message)
        gate.wait_for_worker()
        given, failed, later = (own.submit("say", number) for number in range(3))
        given.set_result("mine")
        failed.set_exception(KeyError("mine"))
        gate.let_go("through")
        assert (running.result(BOUND_S), given.result(), later.result(BOUND_S)) == ("through", "mine", "2")
        with pytest.raises(KeyError):
            failed.result()
        assert own.stats().done == 2
