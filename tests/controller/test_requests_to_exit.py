"""A request that is under way is answered before the worker is asked to exit, and no request to exit is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alarms import once
from support import BOUND_S, FOREVER_MS, TOOLS, Gate, script, wait_until

from tr_mmap import PythonSession, SessionNotStarted, WorkerDied
from tr_mmap.controller import dispatcher
from tr_mmap.wire.messages import RING_SLOTS

OPTIONS: dict[str, dict[str, Any]] = {"mapped": {}, "signed": {"auth": True}, "files": {"channel": "files"}}
SLOW_START = """\
import sys
open(sys.argv[2]).read()  # a FIFO: until the test lets it go on
from tr_mmap import Server
server = Server()
@server.command("say")
def say(text: str):
    return text
server.run()
"""

LINGERING = """\
import threading
from tr_mmap import Server
threading.Thread(target=threading.Event().wait).start()
Server(framework="numpy").run()
"""


@pytest.fixture(params=OPTIONS)
def session(request: pytest.FixtureRequest, workspace: Path) -> Iterator[PythonSession]:
    session = PythonSession(TOOLS, "exits", quiet_mode=True, **OPTIONS[request.param])
    session.start()
    assert session.wait_until_ready(FOREVER_MS)
    yield session
    session.close()


def is_asked(session: PythonSession) -> bool:
    dispatcher: Any = session._dispatcher
    return dispatcher is None or bool(dispatcher._exits)


def has_sent(session: PythonSession, count: int) -> bool:
    """Whether that many requests were sent, or are about to be."""
    dispatcher: Any = session._dispatcher
    return bool(dispatcher._counters.seq >= count and dispatcher.in_flight)


def test_a_request_that_the_worker_has_not_taken_is_answered_first(session: PythonSession) -> None:
    pid = session.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(session.fetch_response, "say answer", FOREVER_MS)
        wait_until(lambda: has_sent(session, 1))
        exiting = pool.submit(session.please_exit, FOREVER_MS)
        wait_until(lambda: is_asked(session))
        os.kill(pid, signal.SIGCONT)
        assert asking.result(BOUND_S) == "answer"
        assert exiting.result(BOUND_S)


def test_a_request_whose_answer_nobody_waits_for_yet_is_no_hindrance(session: PythonSession, gate: Gate) -> None:
    session.send_request(gate.message)
    with ThreadPoolExecutor(1) as pool:
        exiting = pool.submit(session.please_exit, FOREVER_MS)
        wait_until(lambda: is_asked(session))
        gate.let_go("an answer")
        assert exiting.result(BOUND_S)


def test_an_exit_that_must_wait_says_for_what(
    session: PythonSession, gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_ANSWER_NOTICE_S", 0.01)
    pid = session.pid
    session.send_request(gate.message)
    gate.wait_for_worker()
    with ThreadPoolExecutor(1) as pool:
        exiting = pool.submit(session.please_exit, FOREVER_MS)
        wait_until(lambda: caplog.records)
        gate.let_go("an answer")
        assert exiting.result(BOUND_S)
    (said,) = [each.getMessage() for each in caplog.records]
    assert said.startswith("session 'exits' is to end: waiting up to ")
    assert f" s more until its worker has answered 'gate'; process {pid} is " in said
    assert said.endswith("terminate() ends it at once")


def test_an_exit_that_waits_for_a_thread_of_the_worker_says_so(
    workspace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_END_NOTICE_S", 0.01)
    session = PythonSession(script(tmp_path, LINGERING), "lingers", quiet_mode=True)
    with session, ThreadPoolExecutor(1) as pool:
        exiting = pool.submit(session.please_exit, FOREVER_MS)
        wait_until(lambda: caplog.records)
        session.terminate()
        assert not exiting.result(BOUND_S)
    assert "until its worker has ended; process " in caplog.text


def test_a_request_to_a_worker_that_still_starts_is_answered_first(workspace: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "start"
    os.mkfifo(fifo)
    session = PythonSession(script(tmp_path, SLOW_START), "starts", quiet_mode=True, args=[str(fifo)])
    session.start()
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(session.fetch_response, "say early", FOREVER_MS)
        wait_until(lambda: has_sent(session, 1))
        exiting = pool.submit(session.please_exit, FOREVER_MS)
        wait_until(lambda: is_asked(session))
        fifo.write_text("go on")
        assert asking.result(BOUND_S) == "early"
        assert exiting.result(BOUND_S)


def test_a_worker_that_is_not_answering_in_time_still_hears_that_it_is_to_exit(
    session: PythonSession, gate: Gate
) -> None:
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(session.fetch_response, gate.message, FOREVER_MS)
        gate.wait_for_worker()
        assert not session.please_exit(50, ensure=False)
        gate.let_go("answer")
        try:
            assert asking.result(BOUND_S) == "answer"
        finally:
            assert session.join(FOREVER_MS)


@pytest.mark.parametrize("session", ["mapped", "signed"], indirect=True)
def test_a_worker_that_is_told_to_exit_again_and_again_loses_no_answer(session: PythonSession, gate: Gate) -> None:
    """More often than its ring has slots."""
    first = session.submit(gate.message)
    gate.wait_for_worker()
    others = [session.submit(f"say {each}") for each in range(20)]
    for _ in range(2 * RING_SLOTS):
        assert not session.please_exit(0, ensure=False)
    gate.let_go("first")
    try:
        assert [each.result(BOUND_S) for each in [first, *others]] == ["first", *map(str, range(20))]
    finally:
        assert session.join(FOREVER_MS)


def test_requests_that_wait_behind_a_request_to_exit_are_not_sent(session: PythonSession, gate: Gate) -> None:
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(session.fetch_response, gate.message, FOREVER_MS)
        gate.wait_for_worker()
        exiting = pool.submit(session.please_exit, FOREVER_MS)
        wait_until(lambda: is_asked(session))
        late = [pool.submit(session.fetch_response, "say late", FOREVER_MS) for _ in range(2)]
        gate.let_go("first")
        assert first.result(BOUND_S) == "first"
        for each in late:
            with pytest.raises((SessionNotStarted, WorkerDied)):
                each.result(BOUND_S)
        assert exiting.result(BOUND_S)


@pytest.mark.each_value
@pytest.mark.parametrize("end", [PythonSession.terminate, PythonSession.close, lambda each: os.kill(each.pid, 9)])
def test_a_worker_that_a_signal_ends_has_not_ended_by_itself(
    session: PythonSession, gate: Gate, end: Callable[[PythonSession], Any]
) -> None:
    session.send_request(gate.message)
    gate.wait_for_worker()
    with ThreadPoolExecutor(1) as pool:
        exiting = pool.submit(session.please_exit, FOREVER_MS)
        wait_until(lambda: is_asked(session))
        end(session)
        assert exiting.result(BOUND_S) is False


def test_start_finishes_a_close_that_was_interrupted(session: PythonSession, gate: Gate) -> None:
    session.send_request(gate.message)
    gate.wait_for_worker()
    dispatcher: Any = session._dispatcher

    def interrupt() -> None:
        raise KeyboardInterrupt

    with once(lambda: dispatcher.is_closing) as arm:
        arm(interrupt)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatcher, "_close", lambda: wait_until(lambda: False))
            with pytest.raises(KeyboardInterrupt):
                session.close()
    session.start()
    assert session.fetch_response("say again") == "again"
    session.close()


def ignore(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)


def reap(number: int) -> None:
    def take_all(*_: object) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    signal.signal(number, take_all)


@pytest.mark.each_value
@pytest.mark.parametrize("lose_exit_code", [ignore, reap])
@pytest.mark.parametrize("is_killed", [False, True])
def test_where_the_exit_code_is_lost_a_workers_farewell_says_that_it_ended_by_itself(
    session: PythonSession, lose_exit_code: Callable[[int], None], is_killed: bool
) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    try:
        lose_exit_code(signal.SIGCHLD)
        if is_killed:
            assert session.pid is not None
            os.kill(session.pid, signal.SIGKILL)
            assert session.join(FOREVER_MS)
        assert session.please_exit() is not is_killed
    finally:
        signal.signal(signal.SIGCHLD, before)
