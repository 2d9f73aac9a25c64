"""``PythonSession.submit``: its futures are those of the standard library, whoever waits for them, in whatever way."""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import signal
import threading
import weakref
from concurrent.futures import ALL_COMPLETED, CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import BOUND_S, FOREVER_MS, TOOLS, Gate, forks, script, wait_until

from tr_mmap import (
    BadMessage,
    PythonSession,
    RequestCancelled,
    ResponseTimeout,
    SessionNotStarted,
    UnsupportedTensor,
    WorkerDied,
)


def test_nobody_needs_to_be_in_result(own: PythonSession) -> None:
    futures = {own.submit(f"say {number}"): str(number) for number in range(60)}
    assert {future.result() == futures[future] for future in as_completed(futures, BOUND_S)} == {True}
    done, rest = wait([own.submit("say x") for _ in range(40)], BOUND_S, ALL_COMPLETED)
    assert len(done) == 40
    assert not rest

    async def gathered() -> list[Any]:
        return await asyncio.gather(*(asyncio.wrap_future(own.submit(f"say {number}")) for number in range(40)))

    assert asyncio.run(gathered()) == [str(number) for number in range(40)]


def test_a_callback_is_called_once_with_nobody_waiting_and_may_use_the_session(own: PythonSession) -> None:
    results: list[str] = []

    def go_on(future: Future[Any]) -> None:
        results.append(future.result())
        if len(results) == 1:
            results.append(own.fetch_response("say second"))

    own.submit("say first").add_done_callback(go_on)
    wait_until(lambda: len(results) == 2)
    assert results == ["first", "second"]


def test_threads_that_submit_first_at_once_start_one_thread(workspace: Path) -> None:
    with PythonSession(TOOLS, "first", quiet_mode=True) as session:
        session.fetch_response("say on")
        before = len(os.listdir("/proc/self/task"))
        both = threading.Barrier(6)

        def submit() -> None:
            both.wait()
            session.submit("say on").result()

        with ThreadPoolExecutor(6) as pool:
            for each in [pool.submit(submit) for _ in range(6)]:
                each.result(BOUND_S)
        wait_until(lambda: len(os.listdir("/proc/self/task")) <= before + 1)  # those of the test end a moment later


def test_a_callback_that_fails_harms_no_other_future(own: PythonSession, gate: Gate) -> None:
    def fail(future: Future[Any]) -> None:
        raise ZeroDivisionError

    def leave(future: Future[Any]) -> None:
        raise SystemExit

    for callback in (fail, leave):
        future = own.submit(gate.message)
        future.add_done_callback(callback)  # before the answer: else it is called here, in this thread
        gate.let_go("x")
        wait([future], BOUND_S)
    assert [own.submit(f"say {number}").result() for number in range(20)] == [str(number) for number in range(20)]


def test_blocking_calls_and_futures_share_a_session(own: PythonSession) -> None:
    failures: list[object] = []

    def block(name: int) -> None:
        for number in range(50):
            text = f"{name}.{number}"
            if own.fetch_response(f"say {text}") != text:
                failures.append(text)

    threads = [threading.Thread(target=block, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for round_ in range(20):
        futures = [own.submit("echo", np.full(100, number + round_)) for number in range(8)]
        for number, future in enumerate(futures):
            assert np.array_equal(future.result(), np.full(100, number + round_))
    for thread in threads:
        thread.join()
    assert not failures


def test_public_requests_and_futures_do_not_take_each_others_results(own: PythonSession) -> None:
    own.send_request("say public")
    future = own.submit("say private")
    own.send_request("say public too")
    assert [own.wait_for_response(FOREVER_MS), own.wait_for_response(FOREVER_MS)] == ["public", "public too"]
    assert future.result() == "private"


def test_the_time_of_result_ends_the_wait_and_not_the_request(own: PythonSession, gate: Gate) -> None:
    future = own.submit(gate.message)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    gate.let_go("through")
    assert future.result() == "through"
    assert future.exception() is None


def test_a_request_that_runs_cannot_be_cancelled_and_one_that_waits_can(own: PythonSession, gate: Gate) -> None:
    running = own.submit(gate.message)
    gate.wait_for_worker()
    waiting = own.submit("say x")
    assert running.running()
    assert not waiting.running()
    assert not running.cancel()
    assert waiting.cancel()
    assert waiting.cancel()
    gate.let_go("through")
    assert running.result() == "through"
    assert not running.cancel()
    assert not running.running()
    with pytest.raises(CancelledError):
        waiting.result()
    assert list(as_completed([waiting, running])) in ([waiting, running], [running, waiting])


STOPS = """\
from tr_mmap import RequestCancelled, Server
server = Server()
@server.command("stop")
def stop(path: str):
    open(path).read()
    raise RequestCancelled()
server.run()
"""


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_handler_that_stops_cancels_only_what_nobody_wants(
    workspace: Path, tmp_path: Path, gate: Gate, is_cancelled: bool
) -> None:
    with PythonSession(script(tmp_path, STOPS), "stops", quiet_mode=True) as session:
        future = session.submit(f"stop {gate.path}")
        gate.wait_for_worker()
        if is_cancelled:
            assert not future.cancel()
        gate.let_go("")
        with pytest.raises(CancelledError if is_cancelled else RequestCancelled):
            future.result(BOUND_S)
        assert future.cancelled() == is_cancelled


def test_bad_input_is_said_at_once_and_leaves_nothing(own: PythonSession) -> None:
    with pytest.raises(BadMessage):
        own.submit("")
    with pytest.raises(UnsupportedTensor):
        own.submit("echo", np.array([object()]))
    with pytest.raises(BadMessage):
        own.submit("say x", timeout_ms=-1)
    assert own.submit("say x").result() == "x"
    assert not own.is_busy()


def test_a_future_keeps_its_session_until_it_is_done(gate: Gate) -> None:
    session = PythonSession(TOOLS, "dropped", quiet_mode=True)
    session.start()
    future = session.submit(gate.message, timeout_ms=FOREVER_MS)
    dropped = weakref.ref(session)
    del session
    gc.collect()
    gate.let_go("through")
    assert future.result() == "through"
    gc.collect()
    wait_until(lambda: dropped() is None)


def test_a_session_without_start_has_no_futures() -> None:
    session: PythonSession = PythonSession(TOOLS, "unstarted")
    for action in (lambda: session.submit("say x"), session.fileno, session.process_responses):
        with pytest.raises(SessionNotStarted):
            action()


@forks
def test_a_forked_child_gets_an_error_and_the_parent_its_results(own: PythonSession, gate: Gate) -> None:
    future = own.submit(gate.message)
    gate.wait_for_worker()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            future.result(5)
        except SessionNotStarted:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.let_go("through")
    assert future.result() == "through"
    assert own.submit("say x").result() == "x"


def test_a_signal_handler_may_submit_and_wait_in_the_middle_of_a_wait(own: PythonSession, gate: Gate) -> None:
    results: list[str] = []

    def handle(*_: object) -> None:
        results.append(own.submit("say handler").result())

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        outer = own.submit(gate.message)
        gate.wait_for_worker()
        inner = own.submit("say inner")
        os.kill(os.getpid(), signal.SIGUSR1) if gate.let_go("through") is None else None
        assert (outer.result(), inner.result()) == ("through", "inner")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert results == ["handler"]


def test_another_loop_sleeps_on_the_descriptor(own: PythonSession) -> None:
    loop = selectors.DefaultSelector()
    fd = own.fileno()
    assert own.fileno() == fd
    loop.register(fd, selectors.EVENT_READ)
    futures = [own.submit(f"say {number}") for number in range(30)]
    while not all(future.done() for future in futures):
        left_s = own.process_responses()
        if not all(future.done() for future in futures):
            assert loop.select(left_s)
    assert [future.result() for future in futures] == [str(number) for number in range(30)]
    slow = own.submit("gate /dev/null", timeout_ms=None)
    while not slow.done():  # the descriptor may have been ready for an answer that was taken already
        assert loop.select(BOUND_S)
        own.process_responses()
    wait_until(lambda: own.process_responses() is None and not loop.select(0))


def test_the_descriptor_tells_of_a_death_and_of_the_next_workers_answers(own: PythonSession, gate: Gate) -> None:
    loop = selectors.DefaultSelector()
    loop.register(own.fileno(), selectors.EVENT_READ)
    future = own.submit(gate.message)
    gate.wait_for_worker()
    assert own.pid is not None
    os.kill(own.pid, signal.SIGKILL)
    while not future.done():
        assert loop.select(BOUND_S)
        own.process_responses()
    with pytest.raises(WorkerDied):
        future.result()
    own.start()
    future = own.submit("say x")
    while not future.done():
        assert loop.select(BOUND_S)
        own.process_responses()
    assert future.result() == "x"


def test_in_another_loop_too_a_request_whose_time_is_over_fails(own: PythonSession, gate: Gate) -> None:
    loop = selectors.DefaultSelector()
    loop.register(own.fileno(), selectors.EVENT_READ)
    future = own.submit(gate.message, timeout_ms=30)
    while not future.done():
        left_s = own.process_responses()
        if not future.done():
            loop.select(left_s)
    with pytest.raises(ResponseTimeout):
        future.result()
    gate.let_go("late")


@pytest.mark.parametrize("limit", [0, 63, -1, True, "8", None])
def test_a_limit_that_cannot_be_is_refused(limit: Any) -> None:
    with pytest.raises(BadMessage) as caught:
        PythonSession(TOOLS, max_in_flight=limit)
    assert caught.value.detail == "max_in_flight"
    with pytest.raises(BadMessage) as caught:
        PythonSession(TOOLS, at_limit="wait")  # type: ignore[arg-type] # which is tried here
    assert caught.value.detail == "at_limit"
