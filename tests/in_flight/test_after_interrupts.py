"""After an exception, a destructor or a signal handler in the middle of a step, no request and no future is lost."""

from __future__ import annotations

import concurrent.futures
import gc
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from interrupts import PACKAGE, interrupted_at
from support import BOUND_S, FOREVER_MS, TOOLS, Gate, wait_until

from tr_mmap import PythonSession, ResponseTimeout

MOST = 58  # steps to try: each leaves a request in flight
THREADING = (threading.__file__, concurrent.futures._base.__file__)


@pytest.fixture
def own(workspace: Path) -> Iterator[PythonSession]:
    """A session of the test's own, with much room."""
    with PythonSession(TOOLS, "own", quiet_mode=True, max_in_flight=62) as session:
        yield session


def test_a_destructor_in_the_middle_of_a_send_may_send_too(own: PythonSession) -> None:
    """The collector may run wherever the compiled code makes an object of its."""
    sent: list[Any] = []

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            sent.append(own.submit("say destructor"))

    x = np.full(64, 2.0)
    own.calculate("echo", x)
    before = gc.get_threshold()
    gc.collect()
    try:
        for more in range(20):
            Garbage()
            gc.set_threshold(gc.get_count()[0] + more)
            assert own.calculate("echo", x).tolist() == x.tolist()
            gc.set_threshold(*before)
            gc.collect()
    finally:
        gc.set_threshold(*before)
    assert [each.result(BOUND_S) for each in sent] == ["destructor"] * 20


def test_a_request_that_nobody_waits_for_counts_until_its_answer_however_many_come_after_it(
    workspace: Path, gate: Gate
) -> None:
    with PythonSession(Path(TOOLS).with_name("many_tools.py"), "counts", quiet_mode=True, args=["2"]) as session:
        dispatcher: Any = session._dispatcher
        future = session.submit(gate.message, timeout_ms=FOREVER_MS)
        gate.wait_for_worker()
        (pending,) = dispatcher.in_flight.values()
        dispatcher.abandon(pending)  # as when its time is over
        for number in range(70):
            assert session.fetch_response(f"echo {number}") == str(number)
        assert list(dispatcher.in_flight.values()) == [pending]
        gate.let_go("done")
        assert future.result(BOUND_S) == "done"


def test_an_answer_that_nobody_has_asked_for_holds_nobody(own: PythonSession) -> None:
    own.fileno()  # the test is the loop
    future = own.submit("say on")
    wait_until(lambda: own._dispatcher.resources.worker.channel.has_message())  # type: ignore[union-attr]
    dispatcher: Any = own._dispatcher
    dispatcher.in_flight.clear()
    own.process_responses()
    assert not own._dispatcher.resources.worker.channel.has_message()  # type: ignore[union-attr]
    del future


@pytest.mark.parametrize("use", ["add_done_callback", "cancelled", "running", "cancel"])
def test_no_step_at_which_a_handler_raises_leaves_the_lock_of_a_future_taken(
    own: PythonSession, gate: Gate, use: str
) -> None:
    first = own.submit(gate.message, timeout_ms=FOREVER_MS)
    gate.wait_for_worker()
    step, is_interrupted = 1, True
    while is_interrupted and step < MOST:
        future = own.submit("say on", timeout_ms=FOREVER_MS)
        arguments = [print] if use == "add_done_callback" else []
        is_interrupted = interrupted_at(step, partial(getattr(future, use), *arguments), (PACKAGE, *THREADING))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(future._condition.acquire, blocking=False).result(BOUND_S), step
            pool.submit(future._condition.release).result(BOUND_S)
        future.cancel()
        step += 1
    gate.let_go("done")
    assert first.result(BOUND_S) == "done"


def test_no_step_at_which_a_handler_raises_loses_a_future_whose_time_is_over(own: PythonSession, gate: Gate) -> None:
    own.fileno()  # the test is the loop
    first = own.submit(gate.message, timeout_ms=FOREVER_MS)
    gate.wait_for_worker()
    step, is_interrupted, futures = 1, True, []
    while is_interrupted and step < MOST:
        future = own.submit("say late", timeout_ms=0)
        is_interrupted = interrupted_at(step, own.process_responses)
        own.process_responses()
        assert future.done(), step
        futures.append(future)
        step += 1
    assert step > 20
    gate.let_go("done")
    while not first.done():
        own.process_responses()
    for future in futures:
        with pytest.raises(ResponseTimeout):
            future.result(0)


def test_no_step_at_which_a_handler_raises_loses_a_cancel(own: PythonSession, gate: Gate) -> None:
    first = own.submit(gate.message, timeout_ms=FOREVER_MS)
    gate.wait_for_worker()
    step, is_interrupted = 1, True
    while is_interrupted and step < MOST:
        future = own.submit("say late", timeout_ms=FOREVER_MS)
        is_interrupted = interrupted_at(step, future.cancel)
        assert future.cancel(), step
        assert future.cancelled(), step
        step += 1
    gate.let_go("done")
    assert first.result(BOUND_S) == "done"


def test_a_kill_that_is_interrupted_is_finished_by_the_next_cancel(own: PythonSession, tmp_path: Path) -> None:
    for step in range(10, 26):  # around the steps at which the future notes that it is cancelled
        gate = Gate(tmp_path)
        future = own.submit(gate.message, timeout_ms=FOREVER_MS)
        gate.wait_for_worker()
        interrupted_at(step, partial(future.cancel, kill_running=True))
        assert future.cancel(kill_running=True), step
        assert future.cancelled(), step
        gate.close()
        assert own.fetch_response("say on", FOREVER_MS) == "on"


def test_an_exit_that_is_interrupted_keeps_no_later_request_from_being_sent(own: PythonSession) -> None:
    dispatcher: Any = own._dispatcher
    step = 1
    worker = psutil.Process(own.pid)
    worker.suspend()
    while step < 25:
        interrupted_at(step, lambda: own.please_exit(0, ensure=False))
        assert not dispatcher._exits, step
        assert dispatcher._counters.blocked == 0, step
        step += 1
    worker.resume()


def test_a_signal_handler_gets_its_answer_while_another_thread_deals_with_one(own: PythonSession) -> None:
    big = np.ones(20_000_000, np.float32)
    answers: list[str] = []

    def ask(*_: object) -> None:
        answers.append(own.fetch_response("say handler", FOREVER_MS))

    previous = signal.signal(signal.SIGALRM, ask)
    try:
        for _ in range(5):
            bad = own.submit("missing")  # the session's thread deals with its answer, an error
            signal.setitimer(signal.ITIMER_REAL, 0.005)
            assert own.submit("total", big, timeout_ms=FOREVER_MS).result(BOUND_S) == "20000000"
            assert bad.exception(BOUND_S) is not None
            wait_until(lambda: signal.getitimer(signal.ITIMER_REAL)[0] == 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert answers == ["handler"] * 5
