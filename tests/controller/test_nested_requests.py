"""Whatever interrupts a request may use the session: the interrupted request and the other each get their answers."""

from __future__ import annotations

import gc
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import FOREVER_MS, TOOLS, Gate

from tr_mmap import PythonSession, SessionBusy, SessionNotStarted, WorkerDied

A = np.arange(9)


@contextmanager
def on_alarm(handle: Callable[[], Any]) -> Iterator[None]:
    previous = signal.signal(signal.SIGALRM, lambda *_: handle())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


OPTIONS: dict[str, dict[str, Any]] = {
    "mapped": {},
    "signed": {"auth": True},
    "files": {"channel": "files"},
    "checksum": {"checksum": True},
}
INNER: dict[str, Callable[[PythonSession], Any]] = {
    "text": lambda session: session.fetch_response("say inner", FOREVER_MS),
    "tensor": lambda session: session.calculate("echo", A, timeout_ms=FOREVER_MS).tolist(),
    "steps": lambda session: (session.send_request("say steps"), session.wait_for_response(FOREVER_MS))[1],
}
WANTED = {"text": "inner", "tensor": A.tolist(), "steps": "steps"}


@pytest.mark.each_value
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("inner", INNER)
def test_a_signal_handler_may_make_requests_while_another_is_under_way(
    workspace: Path, gate: Gate, options: str, inner: str
) -> None:
    inside: list[Any] = []
    with PythonSession(TOOLS, "nested", quiet_mode=True, **OPTIONS[options]) as session:
        session.calculate("echo", A)

        def handle() -> None:
            gate.let_go("outer")
            inside.append(INNER[inner](session))

        with on_alarm(handle):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert session.fetch_response(gate.message, FOREVER_MS) == "outer"
        assert inside == [WANTED[inner]]
        assert session.fetch_response("say next") == "next"
        assert not session.new_response()


@pytest.mark.parametrize("options", OPTIONS)
def test_an_answer_that_any_thread_may_take_survives_a_handlers_request(
    workspace: Path, gate: Gate, options: str
) -> None:
    with PythonSession(TOOLS, "nested", quiet_mode=True, **OPTIONS[options]) as session:

        def handle() -> None:
            gate.let_go("outer")
            assert session.fetch_response("say inner", FOREVER_MS) == "inner"

        with on_alarm(handle):
            session.send_request(gate.message)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert session.wait_for_response(FOREVER_MS) == "outer"
        assert not session.new_response()


@pytest.mark.parametrize("options", ["mapped", "signed", "files"])
def test_a_handler_that_comes_at_any_moment_loses_no_answer(workspace: Path, options: str) -> None:
    chance = random.Random(5)
    inside = 0

    def handle() -> None:
        nonlocal inside
        inside += 1
        mine = inside  # the next alarm may come during this one
        if mine % 2:
            assert session.fetch_response(f"say {mine}", FOREVER_MS) == str(mine)
        else:
            x = np.full(7, mine)
            session.send_tensor(x, "t")
            assert session.fetch_tensor("echo t", FOREVER_MS).tolist() == x.tolist()

    def ask(number: int) -> None:
        kind = number % 4
        if kind == 0:
            assert session.fetch_response(f"say outer{number}", FOREVER_MS) == f"outer{number}"
        elif kind == 1:
            x = np.full(chance.choice([3, 50_000]), number)
            assert np.array_equal(session.calculate("echo", x, timeout_ms=FOREVER_MS), x)
        elif kind == 2:
            session.send_tensor(np.full(4, number), "u")
            assert session.fetch_tensor("echo u", FOREVER_MS)[0] == number
        else:
            session.send_request(f"say sent{number}", FOREVER_MS)
            assert session.wait_for_response(FOREVER_MS) == f"sent{number}"

    count = 60 if options == "files" else 400
    with PythonSession(TOOLS, "nested", quiet_mode=True, **OPTIONS[options]) as session, on_alarm(handle):
        for number in range(count):
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, chance.choice([2e-4, 1e-3])))
            ask(number)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert inside > count // 4
        assert not session.new_response()


@pytest.mark.parametrize("options", OPTIONS)
def test_a_handler_in_the_middle_of_taking_an_earlier_answer_gets_its_own(workspace: Path, options: str) -> None:
    inside: list[str] = []
    with PythonSession(TOOLS, "nested", quiet_mode=True, **OPTIONS[options]) as session:
        session.fetch_response("say warm")
        transfer: Any = session._dispatcher.transfer  # type: ignore[union-attr] # it is started
        decode = transfer.decode

        def interrupted(raw: bytes) -> Any:
            del transfer.decode
            signal.raise_signal(signal.SIGALRM)
            return decode(raw)

        with on_alarm(lambda: inside.append(session.fetch_response("say inner", FOREVER_MS))):
            session.send_request("say first\x01x")  # which the fast path does not know how to read
            transfer.decode = interrupted  # the next call takes the first answer, and is interrupted in that
            assert session.fetch_response("say second", FOREVER_MS) == "second"
        assert inside == ["inner"]
        assert session.wait_for_response(FOREVER_MS) == "first\x01x"


@pytest.mark.each_value
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("moment", ["receive", "check_own"])
def test_a_handler_may_take_the_answer_that_it_interrupts_for_the_next_request(
    workspace: Path, options: str, moment: str
) -> None:
    """At two moments: while its tensors are received, and when they have been."""
    inside: list[Any] = []
    received: list[Any] = []
    with PythonSession(TOOLS, "nested", quiet_mode=True, **OPTIONS[options]) as session:
        session.send_tensor(A, "a")
        session.fetch_response("say warm")
        dispatcher: Any = session._dispatcher
        transfer: Any = dispatcher.transfer
        owner: Any = transfer if moment == "receive" else dispatcher
        step, receive = getattr(owner, moment), transfer.receive

        def receive_and_note(*arguments: Any) -> Any:
            received.append(receive(*arguments))
            return received[-1]

        def interrupted(*arguments: Any) -> Any:
            if received or moment == "receive":
                delattr(owner, moment)
                signal.raise_signal(signal.SIGALRM)
            return step(*arguments)

        with on_alarm(lambda: inside.append(session.wait_for_tensor(FOREVER_MS))):
            session.send_request("echo a")
            transfer.receive = receive_and_note
            setattr(owner, moment, interrupted)
            assert session.fetch_response("say second", FOREVER_MS) == "second"
        assert inside[0].tolist() == A.tolist()
        assert not session.new_response()


def test_a_destructor_may_use_the_session_of_the_code_that_it_interrupts(workspace: Path) -> None:
    outcomes: list[str] = []

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            try:
                outcomes.append(session.fetch_response("say inner", FOREVER_MS))
            except SessionBusy:
                outcomes.append("refused")

    previous = gc.get_threshold()
    with PythonSession(TOOLS, "destructor", quiet_mode=True) as session:
        try:
            gc.set_threshold(20)
            for number in range(200):
                Cycle()
                x = np.full(5, number)
                assert session.calculate("echo", x).tolist() == x.tolist()
        finally:
            gc.set_threshold(*previous)
        gc.collect()
        assert len(outcomes) == 200
        assert outcomes.count("inner") > 0
        assert session.fetch_response("say next") == "next"


OUTER: dict[str, Callable[[PythonSession, str], Any]] = {
    "text": lambda session, message: session.fetch_response(message, FOREVER_MS),
    "calculate": lambda session, message: session.calculate(message, timeout_ms=FOREVER_MS),
    "steps": lambda session, message: (session.send_request(message), session.wait_for_response(FOREVER_MS))[1],
}


@pytest.mark.each_value
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("outer", OUTER)
def test_a_request_is_answered_although_a_handler_asks_the_worker_to_exit(
    workspace: Path, gate: Gate, options: str, outer: str
) -> None:
    session = PythonSession(TOOLS, "exits", quiet_mode=True, **OPTIONS[options])
    session.start()
    assert session.fetch_response("say warm", FOREVER_MS) == "warm"
    has_ended: list[bool] = []

    def handle() -> None:
        gate.let_go("outer")
        has_ended.append(session.please_exit(FOREVER_MS))

    with on_alarm(handle):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert OUTER[outer](session, gate.message) == "outer"
    assert has_ended == [True]
    assert not session.is_alive()
    with pytest.raises(SessionNotStarted):
        session.wait_for_response(FOREVER_MS)


@pytest.mark.parametrize("end", [PythonSession.close, PythonSession.terminate, PythonSession.please_exit])
def test_a_handler_may_end_the_session(workspace: Path, gate: Gate, end: Callable[[PythonSession], Any]) -> None:
    session = PythonSession(TOOLS, "ended", quiet_mode=True)
    session.start()
    assert session.wait_until_ready(FOREVER_MS)

    def handle() -> None:
        if end is PythonSession.please_exit:
            gate.let_go("outer")
        end(session)

    with on_alarm(handle):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            assert session.fetch_response(gate.message, FOREVER_MS) == "outer"
        except (SessionNotStarted, WorkerDied):
            pass
    assert not session.is_alive()
    session.close()
