"""A thread that waits for another thread's request does not wait for a session that is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import FOREVER_MS

from tr_mmap import PythonSession, ResponseTimeout, SessionNotStarted, WorkerDied

ENDS: list[Callable[[PythonSession], Any]] = [PythonSession.close, PythonSession.please_exit]
WAITS: list[Callable[[PythonSession, float], Any]] = [PythonSession.wait_for_response, PythonSession.wait_for_tensor]


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


def test_a_worker_that_ends_leaves_the_session_to_be_started_again_and_the_wait_to_its_time() -> None:
    session = PythonSession(quiet_mode=True)
    session.start()
    assert session.wait_until_ready()
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(session.wait_for_response, 1500.0)
        session.terminate()
        with pytest.raises(WorkerDied):
            session.fetch_response("hello")
        with pytest.raises((ResponseTimeout, SessionNotStarted)):
            waiter.result(20)
    session.start()
    assert session.wait_until_ready()
    assert session.fetch_response("hello again") == "Hello Again"
    session.please_exit()
