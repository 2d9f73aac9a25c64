"""Threads share a session and each gets its own answers; sessions run side by side."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import BOUND_S, FOREVER_MS, TOOLS, Gate, wait_until

from tr_mmap import PythonSession, ResponseTimeout, SessionNotStarted, WorkerDied

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


TAKE: dict[str, tuple[str, Callable[[PythonSession], Any]]] = {
    "text": ("say {}", lambda session: session.wait_for_response(FOREVER_MS)),
    "now": ("say {}", lambda session: (wait_until(session.new_response), session.read_response())[1]),
    "tensor": ("echo t{}", lambda session: str(int(session.wait_for_tensor(FOREVER_MS)[0]))),
}


@pytest.mark.parametrize("take", TAKE)
def test_a_thread_takes_the_answers_to_its_own_requests_first(mapped: PythonSession, take: str) -> None:
    message, taken = TAKE[take]
    for number in range(4):
        mapped.send_tensor(np.full(3, number), f"t{number}")
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for number, thread in enumerate([first, second, first, second]):
            thread.submit(mapped.send_request, message.format(number)).result()
        answers = [thread.submit(taken, mapped).result() for thread in (second, first, second, first)]
    assert answers == ["1", "0", "3", "2"]
    assert not mapped.new_response()


def test_a_thread_that_has_asked_for_nothing_takes_the_oldest_answer(mapped: PythonSession) -> None:
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(mapped.send_request, "say a").result()
        second.submit(mapped.send_request, "say b").result()
        mapped.send_request("say c")
        assert mapped.wait_for_response(FOREVER_MS) == "c"
        assert mapped.wait_for_response(FOREVER_MS) == "a"
        assert first.submit(mapped.wait_for_response, FOREVER_MS).result() == "b"


def test_a_thread_does_not_inherit_the_requests_of_one_that_has_ended(mapped: PythonSession) -> None:
    def run(action: Callable[[], object]) -> None:
        thread = threading.Thread(target=action)
        thread.start()
        thread.join()

    answers: list[str] = []
    run(lambda: mapped.send_request("say old"))
    for _ in range(5):  # at least one of them gets the number of the one that has ended
        run(lambda: (mapped.send_request("say new"), answers.append(mapped.wait_for_response(FOREVER_MS))))
    assert answers == ["new"] * 5
    assert mapped.wait_for_response(FOREVER_MS) == "old"


def test_an_answer_is_there_in_time_although_another_request_is_under_way(mapped: PythonSession, gate: Gate) -> None:
    mapped.send_request("say mine")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(mapped.fetch_response, gate.message, FOREVER_MS)
        gate.wait_for_worker()
        assert mapped.wait_for_response(50) == "mine"
        gate.let_go("other")
        assert other.result() == "other"


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


@pytest.mark.each_value
@pytest.mark.parametrize("channel", ["mapped", "files"])
@pytest.mark.parametrize("is_forgotten", [False, True], ids=["restarted", "found dead by another"])
def test_a_request_lost_with_its_worker_fails_once_and_takes_no_other_threads_answer(
    channel: str, is_forgotten: bool
) -> None:
    with PythonSession(TOOLS, "lost", quiet_mode=True, channel=channel) as session, ThreadPoolExecutor(1) as other:
        assert session.pid is not None
        os.kill(session.pid, signal.SIGSTOP)
        session.send_request("hello mine")
        os.kill(session.pid, signal.SIGKILL)
        assert session.join(10_000)
        if is_forgotten:
            with pytest.raises(WorkerDied):
                other.submit(session.send_request, "hello not sent").result(BOUND_S)
            assert session.new_response()
        else:
            session.start()
            other.submit(session.send_request, "hello other").result(BOUND_S)
        with pytest.raises(WorkerDied):
            session.wait_for_response(FOREVER_MS)
        if is_forgotten:
            assert not session.new_response()
            session.start()
            other.submit(session.send_request, "hello other").result(BOUND_S)
        assert other.submit(session.wait_for_response).result(BOUND_S) == "Hello Other"
        assert session.fetch_response("hello again") == "Hello Again"
        assert session.read_response() is None


def test_a_thread_that_starts_the_next_worker_asks_anew_in_place_of_what_it_has_lost(gate: Gate) -> None:
    with PythonSession(TOOLS, "anew", quiet_mode=True) as session:
        session.send_request(gate.message)
        with pytest.raises(ResponseTimeout):
            session.wait_for_response(20)
        session.terminate()
        session.start()
        session.send_request("say anew")
        assert session.wait_for_response(FOREVER_MS) == "anew"
        assert not session.new_response()


def test_a_lost_request_is_found_by_a_poll_too_and_the_end_of_the_session_ends_it() -> None:
    with PythonSession(TOOLS, "lost", quiet_mode=True) as session:
        session.send_request("die 3 so long")
        assert session.join(10_000)
        session.start()
        assert session.new_response()
        with pytest.raises(WorkerDied) as caught:
            session.read_response()
        assert caught.value.exit_code == 3
        assert not session.new_response()
        session.send_request("die 4 so long")
        assert session.join(10_000)
        session.start()
        session.close()
        assert not session.new_response()
        with pytest.raises(SessionNotStarted):
            session.wait_for_response(20)
