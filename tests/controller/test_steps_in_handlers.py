"""A wait in steps that a signal handler interrupts keeps the answer that it waits for; the handler's get their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from alarms import LoneHandler, once
from support import BOUND_S, FOREVER_MS, TOOLS, wait_until

from tr_mmap import PythonSession, ResponseTimeout

OUTER, INNER = np.full(4, 1, np.float32), np.full(4, 2, np.float32)
ASK: dict[str, tuple[str, Callable[[PythonSession], Any]]] = {
    "text": ("say {}", lambda session: session.wait_for_response(FOREVER_MS)),
    "tensor": ("echo {}", lambda session: session.wait_for_tensor(FOREVER_MS).tolist()),
    "name": ("echo {}", lambda session: session.recv_tensor("result_0", FOREVER_MS).tolist()),
}


@pytest.fixture(params=[{}, {"channel": "files"}, {"channel": "legacy"}, {"auth": True}], ids=str)
def held(request: pytest.FixtureRequest) -> Iterator[PythonSession]:
    """A session whose worker takes nothing up before :func:`go_on`, with two tags."""
    with PythonSession(TOOLS, "steps", quiet_mode=True, **request.param) as session:
        session.send_tensor(OUTER, "outer")
        session.send_tensor(INNER, "inner")
        assert session.fetch_tensor("echo outer", FOREVER_MS).tolist() == OUTER.tolist()
        assert session.pid is not None
        os.kill(session.pid, signal.SIGSTOP)
        yield session
        os.kill(session.pid, signal.SIGCONT)


@pytest.fixture
def when_waiting(held: PythonSession) -> Iterator[LoneHandler]:
    """Runs an action in a signal handler once this thread waits for the worker."""
    with once(lambda: held._dispatcher._consuming.owner) as arm:  # type: ignore[union-attr] # it is started
        yield arm


def go_on(session: PythonSession) -> None:
    assert session.pid is not None
    os.kill(session.pid, signal.SIGCONT)


def wanted(kind: str, name: str) -> Any:
    return name if kind == "text" else {"outer": OUTER, "inner": INNER}[name].tolist()


@pytest.mark.each_value
@pytest.mark.parametrize("inner", ASK)
@pytest.mark.parametrize("outer", ASK)
def test_both_get_their_own_answers(held: PythonSession, when_waiting: LoneHandler, outer: str, inner: str) -> None:
    inside: list[Any] = []

    def handle() -> None:
        go_on(held)
        held.send_request(ASK[inner][0].format("inner"), FOREVER_MS)
        inside.append(ASK[inner][1](held))

    held.send_request(ASK[outer][0].format("outer"))
    when_waiting(handle)
    assert ASK[outer][1](held) == wanted(outer, "outer")
    assert inside == [wanted(inner, "inner")]
    assert not held.new_response()


def test_a_handler_that_only_waits_gets_what_an_earlier_one_has_asked_for(
    held: PythonSession, when_waiting: LoneHandler
) -> None:
    inside: list[Any] = []

    def ask() -> None:
        go_on(held)
        held.send_request("say inner", FOREVER_MS)
        assert held.pid is not None
        wait_until(held.new_response)
        take()

    def take() -> None:
        inside.append(held.wait_for_response(FOREVER_MS))

    held.send_request("say outer")
    when_waiting(ask)
    assert held.wait_for_response(FOREVER_MS) == "outer"
    assert inside == ["inner"]


def test_a_handler_that_asked_for_nothing_takes_nothing(held: PythonSession, when_waiting: LoneHandler) -> None:
    inside: list[Any] = []

    def handle() -> None:
        go_on(held)
        assert held.fetch_response("say inner", FOREVER_MS) == "inner"  # by now the interrupted request has its answer
        inside.extend([held.new_response(), held.read_response()])
        with pytest.raises(ResponseTimeout, match="still to be taken"):
            held.wait_for_response(20)
        with pytest.raises(ResponseTimeout, match="within 30 ms"):
            held.recv_tensor("result_0", 30)

    held.send_request("say outer")
    when_waiting(handle)
    assert held.wait_for_response(FOREVER_MS) == "outer"
    assert inside == [False, None]


def test_what_a_handler_leaves_comes_after_the_interrupted_wait(held: PythonSession, when_waiting: LoneHandler) -> None:
    def handle() -> None:
        go_on(held)
        held.send_request("say inner", FOREVER_MS)
        with pytest.raises(LookupError):
            held.recv_tensor("nowhere", FOREVER_MS)  # which puts the answer back, for this thread's next wait

    held.send_request("say outer")
    when_waiting(handle)
    assert held.wait_for_response(FOREVER_MS) == "outer"
    assert held.wait_for_response(FOREVER_MS) == "inner"


def test_an_interrupted_wait_for_another_threads_answer_keeps_it(
    held: PythonSession, when_waiting: LoneHandler
) -> None:
    inside: list[Any] = []

    def handle() -> None:
        go_on(held)
        held.send_request("say inner", FOREVER_MS)
        inside.append(held.wait_for_response(FOREVER_MS))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.send_request, "say outer").result(BOUND_S)
    when_waiting(handle)
    assert held.wait_for_response(FOREVER_MS) == "outer"
    assert inside == ["inner"]


def test_a_wait_whose_handler_raises_leaves_its_answer(held: PythonSession, when_waiting: LoneHandler) -> None:
    def handle() -> None:
        raise KeyError("late")

    held.send_request("say outer")
    when_waiting(handle)
    with pytest.raises(KeyError):
        held.wait_for_response(FOREVER_MS)
    go_on(held)
    assert held.wait_for_response(FOREVER_MS) == "outer"
