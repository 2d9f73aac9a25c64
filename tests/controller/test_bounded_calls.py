"""``timeout_ms`` bounds the whole call, and what needs no answer does not wait for another thread's request.

A request is sent at once, also if others are under way, unless these are as many as may be in flight.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, get_ident
from typing import Any

import numpy as np
import pytest
from support import FOREVER_MS, TOOLS, Gate, script, wait_until

from tr_mmap import BadMessage, PythonSession, ResponseTimeout, SessionInUse, SessionNotStarted, WorkerDied
from tr_mmap.controller.dispatcher import Dispatcher
from tr_mmap.native import IS_COMPILED

A = np.arange(4.0)
LONG_S = FOREVER_MS / 1000 / 2  # no call here takes so long, unless it waits for the other thread's request

WAITING: dict[str, Callable[[PythonSession], Any]] = {
    "fetch_response": lambda session: session.fetch_response("hello", 50),
    "fetch_tensor": lambda session: session.fetch_tensor("echo a", 50),
    "calculate": lambda session: session.calculate("echo", A, timeout_ms=50),
    "send_request": lambda session: session.send_request("hello", 50),
    "wait_for_response": lambda session: session.wait_for_response(50),
    "wait_for_tensor": lambda session: session.wait_for_tensor(50),
}
SESSIONS: dict[str, dict[str, Any]] = {"mapped": {}, "limit": {"max_in_flight": 1}, "files": {"channel": "files"}}
# Each wait behind another request; by the mapped channel send_request() waits for no answer.
BEHIND = [(each, name) for each in SESSIONS for name in WAITING if (each, name) != ("mapped", "send_request")]
PROMPT: dict[str, Callable[[PythonSession], Any]] = {
    "stats": PythonSession.stats,
    "is_alive": PythonSession.is_alive,
    "is_ready": PythonSession.is_ready,
    "is_busy": PythonSession.is_busy,
    "new_response": PythonSession.new_response,
    "repr": repr,
    "send_tensor": lambda session: session.send_tensor(A, "b"),
    "drop_tensor": lambda session: session.drop_tensor("a"),
    "empty": lambda session: session.empty(3),
    "read_response": PythonSession.read_response,
    "wait_until_ready": lambda session: session.wait_until_ready(50),
    "wait_until_ok": lambda session: session.wait_until_ok(50),
    "join": lambda session: session.join(50),
    "please_exit": lambda session: session.please_exit(50, ensure=False),
}


@pytest.fixture(params=SESSIONS)
def busy(request: pytest.FixtureRequest, workspace: Path, gate: Gate) -> Iterator[PythonSession]:
    """A session whose worker is in the middle of another thread's request."""
    session = PythonSession(TOOLS, "busy", quiet_mode=True, **SESSIONS[request.param])
    session.start()
    assert session.wait_until_ready(FOREVER_MS)
    session.send_tensor(A, "a")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(session.fetch_response, gate.message, FOREVER_MS)
        gate.wait_for_worker()
        yield session
        session.close()
        assert isinstance(other.exception(LONG_S), (SessionNotStarted, WorkerDied))


@pytest.mark.parametrize(
    "ask",
    [
        lambda session, message: session.fetch_response(message, 50),
        lambda session, message: session.fetch_tensor(message, 50),
        lambda session, message: session.calculate(message, timeout_ms=50),
    ],
)
def test_a_call_that_is_not_answered_has_its_time_only_once(
    workspace: Path, gate: Gate, ask: Callable[[PythonSession, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled code waits first, and leaves what is left of the time to Python."""
    waited: list[tuple[float, float]] = []
    wait = Dispatcher.wait

    def noting(self: Dispatcher, pending: Any, deadline_s: float, timeout_s: float, *others: Any) -> Any:
        waited.append((time.monotonic(), deadline_s))
        return wait(self, pending, deadline_s, timeout_s, *others)

    monkeypatch.setattr(Dispatcher, "wait", noting)
    with PythonSession(TOOLS, "once", quiet_mode=True) as session:
        session.fetch_response("hello")
        waited.clear()
        with pytest.raises(ResponseTimeout):
            ask(session, gate.message)
        ((now_s, deadline_s),) = waited
        assert not IS_COMPILED or deadline_s <= now_s
        gate.let_go("late")


@pytest.mark.each_value
@pytest.mark.parametrize(("busy", "name"), BEHIND, indirect=["busy"])
def test_the_wait_for_another_threads_request_counts(busy: PythonSession, name: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(ResponseTimeout):
        WAITING[name](busy)
    assert time.monotonic() - began_s < LONG_S


@pytest.mark.each_value
@pytest.mark.parametrize(("busy", "name"), BEHIND, indirect=["busy"])
def test_a_timeout_says_what_its_own_caller_asked_for(busy: PythonSession, name: str) -> None:
    with pytest.raises(ResponseTimeout, match="within 50 ms") as caught:
        WAITING[name](busy)
    assert ("another request is under way" in str(caught.value)) == (not name.startswith("wait"))
    commands = {"fetch_response": "hello", "fetch_tensor": "echo", "calculate": "echo", "send_request": "hello"}
    assert caught.value.timeout_ms == 50
    assert caught.value.command == commands.get(name, "")
    assert not caught.value.is_taken_up


@pytest.mark.each_value
@pytest.mark.parametrize(("options", "name"), [each for each in BEHIND if not each[1].startswith("wait")])
def test_a_timeout_behind_ones_own_request_is_that_of_the_new_one(
    workspace: Path, gate: Gate, options: str, name: str
) -> None:
    with PythonSession(TOOLS, "behind", quiet_mode=True, **SESSIONS[options]) as session:
        session.send_request(gate.message)
        gate.wait_for_worker()
        with pytest.raises(ResponseTimeout, match=r"another request is under way \('gate'\)") as caught:
            WAITING[name](session)
        assert caught.value.command in ("hello", "echo")
        assert caught.value.is_taken_up is False
        gate.let_go("first")
        assert session.wait_for_response(FOREVER_MS) == "first"


def test_requests_are_sent_at_once_until_as_many_are_in_flight_as_may_be(workspace: Path, gate: Gate) -> None:
    with PythonSession(TOOLS, "limit", quiet_mode=True, max_in_flight=4) as session:
        session.send_request(gate.message)
        gate.wait_for_worker()
        for number in range(3):
            session.send_request(f"say {number}", 50)
        with pytest.raises(ResponseTimeout, match="another request is under way") as caught:
            session.send_request("say late", 50)
        assert (caught.value.command, caught.value.timeout_ms) == ("say", 50)
        gate.let_go("first")
        assert [session.wait_for_response(FOREVER_MS) for _ in range(4)] == ["first", "0", "1", "2"]
        assert not session.new_response()


@pytest.mark.parametrize("options", SESSIONS)
def test_threads_that_send_at_the_same_moment_send_no_more_than_may_be_in_flight(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    limit = {"mapped": 4, "limit": 1, "files": 1}[options]
    with PythonSession(TOOLS, "moment", quiet_mode=True, **{"max_in_flight": limit} | SESSIONS[options]) as session:
        session.calculate("echo", A)
        dispatcher: Any = session._dispatcher
        dispatcher.resources.worker.fast_path = None
        admit, together = dispatcher._admit, Barrier(6)
        admitted: set[int] = set()

        def admit_together(*arguments: Any) -> None:
            admit(*arguments)
            if get_ident() not in admitted:
                admitted.add(get_ident())
                together.wait(LONG_S)  # each has found room, and none is in flight

        assert session.pid is not None
        os.kill(session.pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(6) as pool, monkeypatch.context() as patch:
                patch.setattr(dispatcher, "_admit", admit_together)
                waits = [pool.submit(session.calculate, "echo", A + number, timeout_ms=100) for number in range(6)]
                errors = [str(each.exception(LONG_S)) for each in waits]
            assert len(dispatcher.in_flight) == limit
            assert len([each for each in errors if "within 100 ms" in each]) == 6
        finally:
            os.kill(session.pid, signal.SIGCONT)
        assert session.calculate("echo", A, timeout_ms=FOREVER_MS).tolist() == A.tolist()


def test_a_session_that_runs_says_so_at_once_when_it_is_started_again(busy: PythonSession) -> None:
    began_s = time.monotonic()
    with pytest.raises(SessionInUse, match="started already"):
        busy.start()
    assert time.monotonic() - began_s < LONG_S


@pytest.mark.each_value
@pytest.mark.parametrize("name", PROMPT)
def test_what_needs_no_answer_does_not_wait_for_another_threads_request(busy: PythonSession, name: str) -> None:
    began_s = time.monotonic()
    PROMPT[name](busy)
    assert time.monotonic() - began_s < LONG_S


@pytest.mark.each_value
@pytest.mark.parametrize("end", [PythonSession.close, PythonSession.terminate, lambda s: s.please_exit(50)])
def test_a_session_ends_in_the_middle_of_another_threads_request(
    busy: PythonSession, end: Callable[[PythonSession], Any]
) -> None:
    began_s = time.monotonic()
    end(busy)
    assert time.monotonic() - began_s < LONG_S
    assert not busy.is_alive()


def test_a_request_to_exit_lets_the_request_under_way_be_answered(workspace: Path, gate: Gate) -> None:
    session = PythonSession(TOOLS, "answered", quiet_mode=True)
    session.start()
    assert session.wait_until_ready(FOREVER_MS)
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(session.fetch_response, gate.message, FOREVER_MS)
        gate.wait_for_worker()
        exiting = pool.submit(session.please_exit, FOREVER_MS)
        with pytest.raises((SessionNotStarted, ResponseTimeout)):  # no further request overwrites the one to exit
            session.fetch_response("hello", 10)
        gate.let_go("the answer")
        assert other.result(LONG_S) == "the answer"
        assert exiting.result(LONG_S)


def test_a_worker_that_has_answered_and_has_not_ended_its_request_is_not_ready(
    workspace: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PythonSession(TOOLS, "ending", quiet_mode=True) as session:
        assert session.wait_until_ready(FOREVER_MS)
        moments = 0

        def is_asked() -> bool:
            """The worker takes a request up, and answers it, between the look at its status and this one."""
            nonlocal moments
            moments += 1
            if moments == 1:
                session.send_request(gate.message)
                gate.wait_for_worker()
            return False

        monkeypatch.setattr(session, "_is_asked", is_asked)
        assert not session.wait_until_ready(50)
        assert moments == 1  # a worker that says that it is busy need not be asked for
        gate.let_go("answer")
        assert session.wait_until_ready(FOREVER_MS)
        assert session.wait_for_response(FOREVER_MS) == "answer"


def test_no_timeout_is_no_limit(workspace: Path) -> None:
    with PythonSession(TOOLS, "none", quiet_mode=True, start_timeout_ms=None) as session:
        assert session.fetch_response("say a", None) == "a"
        assert session.calculate("echo", A, timeout_ms=None).tolist() == A.tolist()
        session.send_request("say b", None)
        assert session.wait_for_response(None) == "b"
        session.send_tensor(A, "a")
        assert session.fetch_tensor("echo a", None).tolist() == A.tolist()
        assert session.wait_until_ready(None)
        assert session.wait_until_ok(None)
        assert session.please_exit(None)
        assert session.join(None)


@pytest.mark.parametrize("wrong", ["5", float("nan"), -1, True, [5], object()])
def test_a_timeout_is_a_number_of_milliseconds_or_none(mapped: PythonSession, wrong: Any) -> None:
    for call in (
        lambda: mapped.fetch_response("hello", wrong),
        lambda: mapped.calculate("echo", A, timeout_ms=wrong),
        lambda: mapped.wait_for_tensor(wrong),
        lambda: mapped.wait_until_ready(wrong),
        lambda: mapped.please_exit(wrong),
        lambda: mapped.join(wrong),
    ):
        with pytest.raises(BadMessage, match="timeout_ms") as caught:
            call()
        assert caught.value.detail == "timeout_ms"
    assert mapped.fetch_response("hello numpy", np.float32(60_000)) == "Hello Numpy"


# -- what a timeout says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_timeout_says_what_the_worker_does(workspace: Path, gate: Gate, channel: str) -> None:
    with PythonSession(TOOLS, "says", quiet_mode=True, channel=channel) as session:
        session.send_request(gate.message)
        gate.wait_for_worker()
        with pytest.raises(ResponseTimeout) as caught:
            session.wait_for_response(1)
        error = caught.value
        assert (error.command, error.pid, error.is_taken_up) == ("gate", session.pid, True)
        assert error.state in ("waiting", "running")
        assert error.last_moved_ms is not None
        assert error.last_moved_ms < FOREVER_MS
        assert str(session.pid) in str(error)
        assert "has begun to work on it" in str(error)
        gate.let_go("late")
        assert session.wait_for_response(FOREVER_MS) == "late"


@pytest.mark.each_value
@pytest.mark.parametrize("remark", ["", "busy: epoch 3"])
@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_request_that_waits_behind_one_by_hand_is_not_said_to_be_taken_up(
    workspace: Path, tmp_path: Path, gate: Gate, channel: str, remark: str
) -> None:
    worker = script(
        tmp_path,
        "from tr_mmap import Server\nserver = Server(framework='numpy')\n"
        "@server.command('wait')\ndef wait(path: str):\n"
        f"    if {remark!r}:\n        server.write_status({remark!r})\n"
        "    with open(path) as fifo:\n        return fifo.read()\n"
        "server.run()\n",
    )
    with PythonSession(worker, "behind", quiet_mode=True, channel=channel) as session:
        place = Path(session.session_dir())
        (place / "new").write_text(json.dumps({"cmd": "wait", "params": str(gate.path)}))
        (place / "new").rename(place / "request.json")
        gate.wait_for_worker()
        with pytest.raises(ResponseTimeout, match="somebody wrote by hand") as caught:
            session.fetch_response("wait nowhere", 1)
        assert caught.value.is_taken_up is False
        gate.let_go("by hand")
        answer = place / "response.json"
        wait_until(lambda: answer.exists() and "by hand" in answer.read_text())


def test_a_wait_without_a_request_says_what_the_worker_does(mapped: PythonSession) -> None:
    assert mapped.fetch_response("hello you") == "Hello You"  # so that it has moved
    with pytest.raises(ResponseTimeout, match="no request was made") as caught:
        mapped.wait_for_tensor(1)
    assert (caught.value.command, caught.value.pid) == ("", mapped.pid)
    assert caught.value.state in ("waiting", "running")
    assert caught.value.last_moved_ms is not None


def test_a_wait_for_a_tensor_by_name_says_how_long_it_was(mapped: PythonSession) -> None:
    with pytest.raises(ResponseTimeout, match="within 30 ms") as caught:
        mapped.recv_tensor("result_0", 30)
    assert caught.value.timeout_ms == 30


def test_a_thread_whose_answer_another_has_taken_is_told_the_truth(mapped: PythonSession) -> None:
    mapped.send_request("hello you")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(mapped.wait_for_response).result() == "Hello You"
    with pytest.raises(ResponseTimeout, match="no request was made whose answer is still to be taken"):
        mapped.wait_for_response(20)


def test_a_stopped_worker_is_said_to_be_stopped(workspace: Path) -> None:
    with PythonSession(TOOLS, "stopped", quiet_mode=True) as session:
        assert session.pid is not None
        os.kill(session.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: session.stats().worker.activity == "stopped")
            with pytest.raises(ResponseTimeout, match="kill -CONT") as caught:
                session.fetch_response("hello", 20)
            assert caught.value.state == "stopped"
            assert caught.value.is_taken_up is False
        finally:
            os.kill(session.pid, signal.SIGCONT)
        assert session.fetch_response("hello again", FOREVER_MS) == "Hello Again"


def test_stats_tell_busy_from_hung_and_idle(workspace: Path, gate: Gate) -> None:
    def activity() -> str:
        return session.stats().worker.activity

    with PythonSession(TOOLS, "hung", quiet_mode=True) as session:
        assert activity() == "idle"
        session.send_request(gate.message)
        gate.wait_for_worker()
        wait_until(lambda: activity() == "hung")  # it waits at the gate and does not move
        gate.let_go("on")
        assert session.wait_for_response(FOREVER_MS) == "on"
        wait_until(lambda: activity() == "idle")
        session.terminate()
        assert activity() == "ended"
        with pytest.raises(WorkerDied):
            session.fetch_response("hello", FOREVER_MS)
        assert activity() == "ended"  # also when its death was reported
        session.start()
        assert activity() in ("starting", "idle")
