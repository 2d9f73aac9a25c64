"""Threads share a session and each gets its own answers; sessions run side by side."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


def test_a_tag_that_is_sent_again_as_soon_as_a_request_is_sent_does_not_harm_it(mapped: PythonSession) -> None:
    for tag in ("early", "late"):
        mapped.send_tensor(np.full(1000, 1.0), tag)
    assert mapped.fetch_response("say announced") == "announced"
    worker: Any = mapped._dispatcher.resources.worker  # type: ignore[union-attr]
    fast_path, pid = worker.fast_path, mapped.pid
    assert pid is not None
    if fast_path is None:
        pytest.skip("only the extension has a fast path")

    class OvertakenFastPath:
        """The fast path; another thread sends the tags again at the very moment at which it has sent the request."""

        def __getattr__(self, name: str) -> Any:
            return getattr(fast_path, name)

        def send(self, *arguments: Any) -> Any:
            is_sent = fast_path.send(*arguments)
            with ThreadPoolExecutor(1) as pool:
                for number in range(3):
                    pool.submit(mapped.send_tensor, np.full(1000, 50.0 + number), "early").result()
                pool.submit(mapped.drop_tensor, "late").result()
                pool.submit(mapped.send_tensor, np.full(1000, 60.0), "other").result()
            return is_sent

    os.kill(pid, signal.SIGSTOP)  # so it reads the tensors after that
    worker.fast_path = OvertakenFastPath()
    try:
        mapped.send_request("echo early late")
    finally:
        worker.fast_path = fast_path
        os.kill(pid, signal.SIGCONT)
    early, late = mapped.wait_for_tensor(FOREVER_MS)
    assert early[0] == late[0] == 1
    assert mapped.fetch_tensor("echo early")[0] == 52
    for tag in ("early", "other"):
        mapped.drop_tensor(tag)


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
