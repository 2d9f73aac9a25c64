"""Threads share a session and each gets its own answers; sessions run side by side."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from support import FOREVER_MS, TOOLS

from tr_mmap import PythonSession

A = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_threads_sharing_a_session_get_their_own_answers(mapped: PythonSession) -> None:
    def work(thread: int) -> None:
        for number in range(40):
            value = thread * 1000 + number
            array = np.full(500 + thread, value)
            assert np.array_equal(mapped.calculate("echo", array), array)
            assert mapped.fetch_response(f"hello {value}") == f"Hello {value}"
            mapped.send_tensor(array, f"thread{thread}")
            assert np.array_equal(mapped.fetch_tensor(f"echo thread{thread}"), array)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, thread) for thread in range(6)]:
            done.result()


def test_a_thread_may_wait_for_the_answer_to_anothers_request(mapped: PythonSession) -> None:
    answers: list[str] = []
    waiter = threading.Thread(target=lambda: answers.extend(mapped.wait_for_response(FOREVER_MS) for _ in range(50)))
    waiter.start()
    for number in range(50):
        mapped.send_request(f"hello {number}")
    waiter.join()
    assert answers == [f"Hello {number}" for number in range(50)]


def test_sessions_run_side_by_side(workspace: Path) -> None:
    with (
        PythonSession(TOOLS, "one", quiet_mode=True) as one,
        PythonSession(TOOLS, "two", quiet_mode=True) as two,
        PythonSession("default", "three", quiet_mode=True, channel="files") as three,
    ):
        sessions = (one, two, three)
        for number, session in enumerate(sessions):
            session.send_tensor(np.full(10, number), "same")
        for session in sessions:
            session.send_request("echo same")
        for number, session in reversed(list(enumerate(sessions))):
            assert np.array_equal(session.wait_for_tensor(), np.full(10, number))
        assert len({one.fetch_response("pid"), two.fetch_response("pid")}) == 2
        assert len({each.session_dir() for each in sessions}) == 3
        two.please_exit()
        assert one.fetch_response("hello one") == "Hello One"
        assert three.fetch_response("hello three") == "Hello Three"
