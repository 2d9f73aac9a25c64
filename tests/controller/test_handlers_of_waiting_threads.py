"""A signal handler may use the session while its own thread waits for another thread's request."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from alarms import LoneHandler, once
from support import BOUND_S, FOREVER_MS, TOOLS, Gate, wait_until

from tr_mmap import PythonSession, SessionBusy, SessionNotStarted, WorkerDied

A = np.arange(4.0)
CALLS: dict[str, tuple[Callable[[PythonSession, str], Any], Callable[[str], Any]]] = {
    "fetch_response": (lambda session, text: session.fetch_response(f"say {text}", FOREVER_MS), str),
    "calculate": (
        lambda session, _: session.calculate("echo", A, timeout_ms=FOREVER_MS).tolist(),
        lambda _: A.tolist(),
    ),
    "send_request": (
        lambda session, text: (session.send_request(f"say {text}"), session.wait_for_response(FOREVER_MS))[1],
        str,
    ),
    "wait_until_ok": (lambda session, _: session.wait_until_ok(FOREVER_MS), lambda _: True),
}
ENDS: dict[str, Callable[[PythonSession], Any]] = {
    "please_exit": lambda session: session.please_exit(50),
    "close": PythonSession.close,
    "terminate": PythonSession.terminate,
}


@pytest.fixture(params=["mapped", "files"])
def busy(request: pytest.FixtureRequest, gate: Gate) -> Iterator[PythonSession]:
    """A session whose worker is in the middle of another thread's request, until the gate lets go."""
    session = PythonSession(TOOLS, "queue", quiet_mode=True, channel=request.param)
    session.start()
    assert session.wait_until_ready(FOREVER_MS)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(session.fetch_response, gate.message, FOREVER_MS)
        gate.wait_for_worker()
        yield session
        if session.is_alive():
            assert other.result(BOUND_S) == "other"
    session.close()


@pytest.fixture
def when_queued(busy: PythonSession) -> Iterator[LoneHandler]:
    """Runs an action in a signal handler of the main thread once that thread waits for its turn."""
    with once(lambda: queue_of(busy).queue) as arm:
        yield arm


def queue_of(session: PythonSession) -> Any:
    return session._dispatcher._consuming  # type: ignore[union-attr]


@pytest.mark.each_value
@pytest.mark.parametrize("inner", CALLS)
@pytest.mark.parametrize("outer", CALLS)
def test_its_request_goes_first(
    busy: PythonSession, when_queued: LoneHandler, gate: Gate, outer: str, inner: str
) -> None:
    turn, inside = queue_of(busy), []

    def let_go() -> None:
        wait_until(lambda: len(turn.queue) >= 2)  # the handler waits too
        gate.let_go("other")

    helper = threading.Thread(target=let_go)
    helper.start()
    when_queued(lambda: inside.append(CALLS[inner][0](busy, "inner")))
    assert CALLS[outer][0](busy, "outer") == CALLS[outer][1]("outer")
    helper.join()
    assert inside == [CALLS[inner][1]("inner")]
    assert busy.fetch_response("say next", FOREVER_MS) == "next"
    assert not turn.queue
    assert not busy.new_response()


@pytest.mark.each_value
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("outer", CALLS)
def test_it_may_end_the_session(busy: PythonSession, when_queued: LoneHandler, outer: str, end: str) -> None:
    when_queued(lambda: ENDS[end](busy))
    with pytest.raises((SessionNotStarted, WorkerDied)):
        CALLS[outer][0](busy, "outer")
    assert not busy.is_alive()


def test_its_request_does_not_wait_for_threads_behind_its_own(
    busy: PythonSession, when_queued: LoneHandler, gate: Gate
) -> None:
    turn, inside = queue_of(busy), []
    with ThreadPoolExecutor(1) as pool:
        later = []

        def act() -> None:
            later.append(pool.submit(busy.fetch_response, "say later", FOREVER_MS))
            wait_until(lambda: len(turn.queue) == 2)
            gate.let_go("other")
            inside.append(busy.fetch_response("say inner", FOREVER_MS))

        when_queued(act)
        assert busy.fetch_response("say outer", FOREVER_MS) == "outer"
        assert inside == ["inner"]
        assert later[0].result(BOUND_S) == "later"


def test_a_close_that_the_thread_with_the_request_waits_for_ends(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tr_mmap.controller.dispatcher.TURN_WAIT_S", 0.1)
    session = PythonSession(TOOLS, "joined", quiet_mode=True)
    session.start()
    assert session.wait_until_ready(FOREVER_MS)
    errors = []

    def close_elsewhere(*_: object) -> None:
        with ThreadPoolExecutor(1) as pool:
            errors.append(pool.submit(session.close).exception(BOUND_S))

    previous = signal.signal(signal.SIGALRM, close_elsewhere)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises((SessionNotStarted, WorkerDied)):
            session.fetch_response(gate.message, FOREVER_MS)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert [type(each) for each in errors] == [SessionBusy]
    assert not session.is_alive()
    with session:  # which ends the close first
        assert session.fetch_response("say again", FOREVER_MS) == "again"
