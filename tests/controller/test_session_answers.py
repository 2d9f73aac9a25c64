"""A session's answers: in order, taken once, never another's, and in the framework of the question."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import bits
from support import BOUND_S, FOREVER_MS, Gate, wait_until

from tr_mmap import PythonSession, RemoteError, ResponseTimeout, UnexpectedResponse, UnknownCommand
from tr_mmap.controller import stats

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(6, 12, dtype=np.float32).reshape(2, 3)


def test_a_response_is_taken_once_and_asking_again_waits_for_the_next(session: PythonSession) -> None:
    session.send_request("hello one")
    assert session.wait_for_response() == "Hello One"
    assert not session.new_response()
    assert session.read_response() is None
    with pytest.raises(ResponseTimeout) as caught:
        session.wait_for_response(20)
    assert caught.value.timeout_ms == 20
    session.send_request("hello two")
    assert session.wait_for_response() == "Hello Two"


def test_looking_for_a_response_neither_waits_nor_takes(mapped: PythonSession, gate: Gate) -> None:
    assert mapped.read_response() is None
    mapped.send_request(gate.message)
    gate.wait_for_worker()
    assert not mapped.new_response()
    assert mapped.read_response() is None
    assert mapped.is_busy()
    assert not mapped.is_ready()
    gate.let_go("done")
    assert mapped.wait_until_ok()
    assert mapped.new_response()
    assert mapped.new_response()
    assert mapped.read_response() == "done"
    assert mapped.read_response() is None
    assert mapped.is_ready()
    assert not mapped.is_busy()


def test_requests_without_waiting_are_answered_in_order(session: PythonSession) -> None:
    count = 5
    for number in range(count):
        session.send_request(f"hello {number}")
    assert [session.wait_for_response() for _ in range(count)] == [f"Hello {number}" for number in range(count)]
    with pytest.raises(ResponseTimeout):
        session.wait_for_response(1)


def test_results_of_requests_without_waiting_are_kept_until_they_are_taken(mapped: PythonSession) -> None:
    for number in range(20):
        mapped.send_tensor(np.full(1000, number), "number")
        mapped.send_request("echo number")
    for number in range(20):
        assert np.array_equal(mapped.wait_for_tensor(), np.full(1000, number))


def test_texts_tensors_and_errors_keep_their_order_in_the_queue(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    mapped.send_request("hello first")
    mapped.send_request("fail second")
    mapped.send_request("echo a")
    mapped.send_request("unheard_of")
    mapped.send_request("hello last")
    assert mapped.wait_for_response() == "Hello First"
    with pytest.raises(RemoteError, match="second"):
        mapped.wait_for_response()
    assert bits(mapped.wait_for_tensor()) == bits(A)
    with pytest.raises(UnknownCommand):
        mapped.wait_for_tensor()
    assert mapped.wait_for_response() == "Hello Last"


def test_an_answer_that_is_not_there_in_time_can_be_waited_for_again(session: PythonSession, gate: Gate) -> None:
    session.send_request(gate.message)
    gate.wait_for_worker()
    for _ in range(3):
        with pytest.raises(ResponseTimeout) as caught:
            session.wait_for_response(5)
        assert caught.value.command == "gate"
    gate.let_go("late, and still wanted")
    assert session.wait_for_response() == "late, and still wanted"


def test_a_late_answer_is_never_taken_for_the_next_one(session: PythonSession, gate: Gate) -> None:
    with pytest.raises(ResponseTimeout):
        session.fetch_response(gate.message, 5)
    gate.wait_for_worker()
    with pytest.raises(ResponseTimeout):  # the worker is still at it
        session.fetch_response("hello too early", 5)
    gate.let_go("late")
    assert session.fetch_response("hello next") == "Hello Next"
    with pytest.raises(ResponseTimeout):
        session.wait_for_response(1)


def test_a_late_answer_is_never_taken_for_that_of_a_later_send_request(mapped: PythonSession, gate: Gate) -> None:
    with pytest.raises(ResponseTimeout):
        mapped.calculate(gate.message, timeout_ms=5)
    gate.wait_for_worker()
    gate.let_go("late")
    mapped.send_request("hello next")
    assert mapped.wait_for_response() == "Hello Next"
    with pytest.raises(ResponseTimeout):
        mapped.wait_for_response(1)


def test_a_late_answer_to_a_call_that_gave_up_is_never_taken(session: PythonSession, gate: Gate) -> None:
    with pytest.raises(ResponseTimeout):
        session.fetch_response(gate.message, 5)
    gate.wait_for_worker()
    gate.let_go("late")
    assert session.wait_until_ready()
    assert session.read_response() is None
    with pytest.raises(ResponseTimeout):
        session.wait_for_response(100)  # long enough for the answer to be there
    assert not session.new_response()
    assert session.read_response() is None


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_what_a_signal_handler_raises_ends_the_wait_and_leaves_no_answer_for_the_next(
    mapped: PythonSession, gate: Gate, kind: type[BaseException]
) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise kind

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        main = threading.get_ident()
        thread = threading.Thread(target=lambda: (gate.wait_for_worker(), signal.pthread_kill(main, signal.SIGUSR1)))
        thread.start()
        with pytest.raises(kind):
            mapped.fetch_response(gate.message, 3000)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, previous)
        gate.let_go("late")
    assert mapped.fetch_response("hello next") == "Hello Next"


def test_a_tensor_lent_to_a_call_that_timed_out_is_not_overwritten_under_the_worker(
    mapped: PythonSession, gate: Gate
) -> None:
    mapped.send_tensor(np.full(100_000, 1), "lent")
    mapped.send_request("keep lent unharmed")
    assert mapped.wait_for_response() == "kept"
    with pytest.raises(ResponseTimeout):
        mapped.fetch_response(gate.message, 5)
    gate.wait_for_worker()
    for number in range(10):
        mapped.send_tensor(np.full(100_000, number), "lent")
    gate.let_go("")
    assert np.array_equal(mapped.fetch_tensor("kept unharmed"), np.full(100_000, 1))
    mapped.fetch_response("forget unharmed")


def test_waiting_until_ok_says_how_the_request_went(mapped: PythonSession, gate: Gate) -> None:
    mapped.send_request("hello well")
    assert mapped.wait_until_ok()
    assert mapped.wait_for_response() == "Hello Well"
    mapped.send_request("fail badly")
    assert not mapped.wait_until_ok()
    with pytest.raises(RemoteError):
        mapped.wait_for_response()
    mapped.send_request(gate.message)
    gate.wait_for_worker()
    try:
        assert not mapped.wait_until_ok(5)
        assert not mapped.wait_until_ready(5)
    finally:
        gate.let_go("now")
    assert mapped.wait_for_response() == "now"


def test_several_tensors_arrive_in_order(session: PythonSession) -> None:
    parts = [np.full(number + 1, number) for number in range(5)]
    answers = session.calculate("echo", *parts)
    assert isinstance(answers, list)
    assert [bits(each) for each in answers] == [bits(each) for each in parts]


def test_tensors_and_text_of_one_request_make_one_response(session: PythonSession) -> None:
    session.send_tensor(A, "a")
    first, second = session.fetch_tensor("both a")
    assert bits(first) == bits(A)
    assert bits(second) == bits(A + 1)
    assert session.fetch_response("both a") == "two tensors"
    with pytest.raises(ResponseTimeout):
        session.wait_for_tensor(1)


def test_an_answer_without_a_tensor_says_its_text(mapped: PythonSession) -> None:
    with pytest.raises(UnexpectedResponse) as caught:
        mapped.fetch_tensor("hello you")
    assert caught.value.result == "Hello You"
    assert "Hello You" in str(caught.value)


def test_a_tensor_answer_read_as_text_is_taken_all_the_same(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    assert isinstance(mapped.fetch_response("echo a"), str)
    with pytest.raises(ResponseTimeout):
        mapped.wait_for_tensor(1)


# -- calculate -------------------------------------------------------------------------------------------------------


def test_calculate_answers_in_the_framework_of_its_first_tensor(mapped: PythonSession) -> None:
    one = mapped.calculate("echo", A)
    assert isinstance(one, np.ndarray)
    assert bits(one) == bits(A)
    other = mapped.calculate("echo", torch.from_numpy(A.copy()))
    assert isinstance(other, torch.Tensor)
    assert bits(other) == bits(A)
    mixed = mapped.calculate("echo", torch.from_numpy(A.copy()), B)
    assert all(isinstance(each, torch.Tensor) for each in mixed)
    mixed = mapped.calculate("echo", A, torch.from_numpy(B.copy()))
    assert all(isinstance(each, np.ndarray) for each in mixed)


def test_calculate_without_tensors_gives_text_or_what_the_tags_say(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    assert mapped.calculate("hello there") == "Hello There"
    assert isinstance(mapped.calculate("echo a"), np.ndarray)


def test_calculate_puts_its_tensors_behind_the_words_and_tags(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    first, second = mapped.calculate("echo a", B)
    assert bits(first) == bits(A)
    assert bits(second) == bits(B)
    assert bits(mapped.calculate({"cmd": "scale", "params": "2"}, A)) == bits(A * 2)


def test_calculate_leaves_no_tags(mapped: PythonSession) -> None:
    files = set(Path(mapped.session_dir()).glob("*.tsr"))
    for _ in range(20):
        mapped.calculate("echo", A, B)
    tags = {each.name for each in set(Path(mapped.session_dir()).glob("*.tsr")) - files}
    assert all(name.startswith(("segment_", "result_")) for name in tags)
    with pytest.raises(RemoteError):
        mapped.fetch_tensor("echo $0")


def test_memory_goes_round_in_the_steady_state(mapped: PythonSession) -> None:
    x = np.ones(100_000)
    for _ in range(5):
        mapped.calculate("echo", x)
    created = mapped.stats().created
    files = len(list(Path(mapped.session_dir()).glob("*.tsr")))
    for _ in range(200):
        mapped.calculate("echo", x)
        mapped.send_tensor(x, "steady")
    assert mapped.stats().created <= created + 3
    assert len(list(Path(mapped.session_dir()).glob("*.tsr"))) <= files + 6


def test_from_sending_to_answer_a_session_is_busy_and_not_ready(
    session: PythonSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the worker has taken the request up, of which its status says nothing."""
    assert session.pid is not None
    os.kill(session.pid, signal.SIGSTOP)
    try:
        session.send_request("hello you")
        assert session.is_busy()
        assert not session.is_ready()
        assert not session.wait_until_ready(20)
        with monkeypatch.context() as patch:
            patch.setattr(stats, "state_of", lambda _: "waiting")
            assert session.stats().worker.activity == "busy"
            assert "busy" in repr(session)
    finally:
        os.kill(session.pid, signal.SIGCONT)
    assert session.wait_until_ready()
    assert session.new_response()
    assert not session.is_busy()
    assert session.read_response() == "Hello You"


def test_while_another_thread_waits_for_its_answer_a_session_is_busy_and_not_ready(session: PythonSession) -> None:
    assert session.pid is not None
    turn: Any = session._dispatcher._consuming  # type: ignore[union-attr] # it is started
    os.kill(session.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as other:
        try:
            answer = other.submit(session.fetch_response, "hello you", FOREVER_MS)
            wait_until(lambda: turn.owner and session.is_busy())
            assert not session.is_ready()
            assert not session.wait_until_ready(20)
        finally:
            os.kill(session.pid, signal.SIGCONT)
        assert answer.result(BOUND_S) == "Hello You"
    assert not session.is_busy()


def test_an_answer_that_was_there_before_the_workers_end_is_there_after_the_next_start(session: PythonSession) -> None:
    session.send_request("hello you")
    wait_until(session.new_response)
    assert session.pid is not None
    os.kill(session.pid, signal.SIGKILL)
    wait_until(lambda: not session.is_alive())
    session.start()
    assert session.new_response()
    assert session.wait_for_response(FOREVER_MS) == "Hello You"
    assert session.fetch_response("hello again", FOREVER_MS) == "Hello Again"


def test_a_poll_of_is_busy_finds_the_answer_there(session: PythonSession) -> None:
    for number in range(20):
        session.send_request(f"hello {number}")
        while session.is_busy():
            pass
        assert session.read_response() == f"Hello {number}"


def test_a_session_whose_answers_were_left_can_be_brought_back_to_none(session: PythonSession) -> None:
    """As the manual says, after an exception between a request and the call that takes its answer."""
    session.send_request("hello left")
    session.send_request("fail left")
    session.send_request("hello last")
    assert session.wait_until_ready()
    taken: list[object] = []
    while session.new_response():
        try:
            taken.append(session.read_response())
        except RemoteError as error:
            taken.append(type(error))
    assert len(taken) == 3
    session.send_request("hello new")
    assert session.wait_for_response() == "Hello New"
