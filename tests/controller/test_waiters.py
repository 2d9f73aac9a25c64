"""A thread that waits for another thread's request does not wait for a session that is over."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import BOUND_S, FOREVER_MS, TOOLS, Gate, wait_until

from tr_mmap import PythonSession, SessionNotStarted, WorkerDied

ENDS: list[Callable[[PythonSession], Any]] = [PythonSession.close, PythonSession.please_exit]
WAITS: list[Callable[[PythonSession, float], Any]] = [PythonSession.wait_for_response, PythonSession.wait_for_tensor]


@pytest.mark.parametrize("channel", ["mapped", "files", "legacy"])
def test_a_wait_for_a_named_tensor_beside_a_dying_worker_learns_how_it_died(channel: str, gate: Gate) -> None:
    session = PythonSession(TOOLS, "named", quiet_mode=True, channel=channel)
    session.start()
    assert session.wait_until_ready(FOREVER_MS)
    with ThreadPoolExecutor(5) as pool:
        asker = pool.submit(session.calculate, gate.message, timeout_ms=FOREVER_MS)
        gate.wait_for_worker()
        takers = [pool.submit(session.recv_tensor, f"t{number}", FOREVER_MS) for number in range(4)]
        wait_until(lambda: all(each.running() for each in takers))
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        for each in [asker, *takers]:
            with pytest.raises(WorkerDied):
                each.result(BOUND_S)
    session.close()


@pytest.mark.each_value
@pytest.mark.parametrize("channel", ["mapped", "files"])
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_session_ends_the_wait_for_a_request(
    channel: str, wait: Callable[[PythonSession, float], Any], end: Callable[[PythonSession], Any]
) -> None:
    session = PythonSession(quiet_mode=True, channel=channel)
    session.start()
    assert session.wait_until_ready()
    began = threading.Event()

    def waiting() -> Any:
        began.set()
        return wait(session, FOREVER_MS)

    with ThreadPoolExecutor(2) as pool:
        waiters = [pool.submit(waiting) for _ in range(2)]
        assert began.wait(10)
        end(session)
        for waiter in waiters:
            with pytest.raises(SessionNotStarted):
                waiter.result(20)


def test_a_request_still_reaches_a_thread_that_waits_for_one(mapped: PythonSession) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(mapped.wait_for_response, FOREVER_MS)
        mapped.send_request("hello waiter")
        assert waiter.result(20) == "Hello Waiter"


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_an_answer_reaches_its_taker_while_another_thread_makes_a_long_request(channel: str, tmp_path: Path) -> None:
    first, second = Gate(tmp_path), Gate(tmp_path)
    with (
        PythonSession(TOOLS, "taker", quiet_mode=True, channel=channel) as session,
        ThreadPoolExecutor(2) as pool,
    ):
        turn: Any = session._dispatcher._consuming  # type: ignore[union-attr] # it is started
        session.send_request(first.message)
        other = pool.submit(session.fetch_response, second.message, FOREVER_MS)
        wait_until(lambda: turn.owner)  # it waits for the first answer
        taker = pool.submit(session.wait_for_response, FOREVER_MS)
        wait_until(lambda: turn.queue)
        first.let_go("one")
        try:
            assert taker.result(BOUND_S) == "one"
        finally:
            second.let_go("two")
        assert other.result(BOUND_S) == "two"


@pytest.mark.each_value
@pytest.mark.parametrize("channel", ["mapped", "files"])
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("how", ["terminate", "kill", "exit"])
def test_the_end_of_a_worker_ends_the_wait_for_a_request(
    how: str, wait: Callable[[PythonSession, float], Any], channel: str
) -> None:
    session = PythonSession(TOOLS, "ended", quiet_mode=True, channel=channel)
    session.start()
    assert session.wait_until_ready(30_000)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(wait, session, FOREVER_MS)
        if how == "terminate":
            session.terminate()
        else:
            assert session.pid is not None
            os.kill(session.pid, signal.SIGKILL if how == "kill" else signal.SIGTERM)
        with pytest.raises(WorkerDied):
            waiter.result(20)
    with pytest.raises((WorkerDied, SessionNotStarted)):
        session.fetch_response("hello")
    session.start()  # the session is there to be started again
    assert session.wait_until_ready(30_000)
    assert session.fetch_response("hello again") == "Hello Again"
    session.please_exit()


@pytest.mark.parametrize("end", [PythonSession.close, PythonSession.terminate])
def test_the_end_of_a_session_ends_the_wait_for_an_answer(end: Callable[[PythonSession], Any], gate: Gate) -> None:
    session = PythonSession(TOOLS, "ended", quiet_mode=True)
    session.start()
    assert session.wait_until_ready(30_000)
    with ThreadPoolExecutor(2) as pool:
        waiters = [pool.submit(session.fetch_response, gate.message, FOREVER_MS) for _ in range(2)]
        gate.wait_for_worker()
        end(session)
        for waiter in waiters:
            with pytest.raises((SessionNotStarted, WorkerDied)):
                waiter.result(20)
    session.close()


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_every_thread_that_waits_beside_a_dying_worker_learns_how_it_died(channel: str, gate: Gate) -> None:
    session = PythonSession(TOOLS, "dying", quiet_mode=True, channel=channel)
    session.start()
    assert session.wait_until_ready(FOREVER_MS)
    with ThreadPoolExecutor(6) as pool:
        waiters = [pool.submit(session.fetch_response, gate.message, None)]
        gate.wait_for_worker()
        waiters += [pool.submit(session.fetch_response, "hello", None) for _ in range(2)]
        sender = pool.submit(session.send_request, "hello", None)
        if channel == "mapped":
            sender.result(BOUND_S)  # it waits for no answer
        else:
            waiters += [sender]
        waiters += [pool.submit(session.wait_until_ready, None), pool.submit(session.wait_for_response, None)]
        turn: Any = session._dispatcher._consuming  # type: ignore[union-attr]
        wait_until(lambda: len(turn.queue) == 3)
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        for waiter in waiters:
            with pytest.raises(WorkerDied) as caught:
                waiter.result(BOUND_S)
            assert caught.value.exit_code == -signal.SIGKILL
    with pytest.raises(SessionNotStarted):  # this one has waited for no worker
        session.fetch_response("hello")
    session.close()
