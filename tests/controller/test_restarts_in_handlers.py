"""A signal handler may end or replace the worker in the middle of a request: that request ends, the session lives."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from alarms import LoneHandler, once
from support import TOOLS, Gate, wait_until

from tr_mmap import PythonSession, WorkerDied

BOUND_MS = 60_000


@pytest.fixture(params=[{}, {"channel": "files"}, {"auth": True}], ids=["mapped", "files", "signed"])
def fresh(request: pytest.FixtureRequest) -> Iterator[PythonSession]:
    with PythonSession(TOOLS, "fresh", quiet_mode=True, **request.param) as session:
        yield session


@pytest.fixture
def when_busy(fresh: PythonSession) -> Iterator[LoneHandler]:
    """Runs an action in a signal handler of the main thread once the worker is at work."""
    with once(fresh.is_busy) as arm:
        yield arm


@pytest.mark.each_value
@pytest.mark.parametrize("call", ["calculate", "fetch", "send"])
def test_a_handler_that_restarts_the_worker_ends_the_request_and_no_other(
    fresh: PythonSession, when_busy: LoneHandler, gate: Gate, call: str
) -> None:
    inner = []

    def restart() -> None:
        fresh.terminate()
        fresh.start()
        fresh.wait_until_ready(BOUND_MS)
        inner.append(fresh.fetch_response("hello inner", BOUND_MS))

    when_busy(restart)
    if call == "send":
        fresh.send_request(gate.message)
    ask = {
        "calculate": lambda: fresh.calculate(gate.message, timeout_ms=BOUND_MS),
        "fetch": lambda: fresh.fetch_response(gate.message, BOUND_MS),
        "send": lambda: fresh.wait_for_response(BOUND_MS),
    }[call]
    with pytest.raises(WorkerDied):
        ask()
    assert inner == ["Hello Inner"]
    assert fresh.fetch_response("hello outer", BOUND_MS) == "Hello Outer"
    assert fresh.calculate("echo", np.arange(3)).tolist() == [0, 1, 2]


def test_whoever_waits_for_the_status_of_a_killed_worker_is_told_of_its_death(fresh: PythonSession) -> None:
    for wait in (fresh.wait_until_ready, fresh.wait_until_ok):
        fresh.fetch_response("hello you")
        os.kill(fresh.pid, signal.SIGKILL)
        wait_until(lambda: not fresh.is_alive())
        wait_until(lambda: fresh._open().resources.worker.is_over())
        with pytest.raises(WorkerDied):
            wait(BOUND_MS)
        fresh.start()
        fresh.wait_until_ready(BOUND_MS)
