"""The byte budget: what happens at it, on either side."""

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
from support import BOUND_S, FOREVER_MS, TOOLS, processes_of

from tr_mmap import (
    BadMessage,
    OutOfSpace,
    PythonSession,
    RemoteError,
    SessionNotStarted,
    TRException,
    WorkerDied,
)
from tr_mmap.shm.store import SegmentStore

MIB = 1 << 20


def test_at_the_budget_the_controller_fails_and_the_tag_keeps_what_it_had() -> None:
    with PythonSession(session_id="budget", quiet_mode=True, budget_nbytes=4 * MIB) as session:
        session.send_tensor(np.ones(3 * MIB, np.uint8), "a")
        with pytest.raises(OutOfSpace) as caught:
            session.send_tensor(np.zeros(3 * MIB, np.uint8), "a")
        assert caught.value.needed_nbytes == 3 * MIB
        assert caught.value.free_nbytes == 1 * MIB
        assert session.fetch_tensor("sum a") == 3 * MIB


def test_at_the_budget_the_worker_fails_where_that_is_the_policy() -> None:
    with PythonSession(session_id="budget", quiet_mode=True, budget_nbytes=4 * MIB) as session:
        session.send_tensor(np.ones(3 * MIB, np.uint8), "a")
        held = session.fetch_tensor("echo a")
        with pytest.raises(RemoteError, match="OutOfSpace"):
            session.fetch_tensor("echo a")
        assert held.sum(dtype=np.int64) == 3 * MIB
        del held
        assert session.fetch_tensor("echo a").sum(dtype=np.int64) == 3 * MIB


def test_at_the_budget_the_worker_waits_for_a_view_to_go_where_that_is_the_policy() -> None:
    with PythonSession(session_id="budget", quiet_mode=True, budget_nbytes=4 * MIB, at_budget="block") as session:
        session.send_tensor(np.ones(3 * MIB, np.uint8), "a")
        held = [session.fetch_tensor("echo a")]
        answers: list[int] = []
        asker = threading.Thread(target=lambda: answers.append(int(session.fetch_tensor("echo a").sum(dtype=np.int64))))
        asker.start()
        while not session._dispatcher.resources.worker.channel.is_taken_up():  # type: ignore[union-attr] # it cannot go on
            assert asker.is_alive()
        held.clear()
        asker.join()
        assert answers == [3 * MIB]


def test_at_the_budget_nobody_waits_for_a_worker_that_has_died(workspace: Path) -> None:
    with PythonSession(TOOLS, "budget", quiet_mode=True, budget_nbytes=4 * MIB, at_budget="block") as session:
        session.send_tensor(np.ones(3 * MIB, np.uint8), "a")
        session.fetch_response("keep a mine")
        session.drop_tensor("a")
        sender = ThreadPoolExecutor(1).submit(session.send_tensor, np.ones(3 * MIB, np.uint8), "b")
        for worker in processes_of(workspace):
            worker.kill()  # terminated, it would let go of its views
        with pytest.raises((WorkerDied, OutOfSpace)):  # the latter if it began when the worker had died
            sender.result(5)  # of the 10 that it waits for a worker that lives
        session.close()


def _kill(session: PythonSession) -> None:
    assert session.pid is not None
    os.kill(session.pid, signal.SIGKILL)


ENDS: dict[str, tuple[type[TRException], Callable[[PythonSession], Any]]] = {
    "close": (SessionNotStarted, PythonSession.close),
    "please_exit": (SessionNotStarted, lambda session: session.please_exit(50)),
    "terminate": (WorkerDied, PythonSession.terminate),
    "kill": (WorkerDied, _kill),
}
TAKES: dict[str, Callable[[PythonSession], Any]] = {
    "send_tensor": lambda session: session.send_tensor(np.ones(3 * MIB, np.uint8), "b"),
    "empty": lambda session: session.empty(3 * MIB, "uint8"),
    "torch loan": lambda session: session.empty(3 * MIB, "uint8", framework="torch"),
    "calculate": lambda session: session.calculate("echo", np.ones(3 * MIB, np.uint8), timeout_ms=FOREVER_MS),
}


@pytest.mark.each_value
@pytest.mark.parametrize("take", TAKES)
@pytest.mark.parametrize("end", ENDS)
def test_a_wait_for_room_that_an_end_ends_says_so(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, end: str, take: str
) -> None:
    session = PythonSession(TOOLS, "budget", quiet_mode=True, budget_nbytes=4 * MIB, at_budget="block")
    session.start()
    assert session.wait_until_ready(FOREVER_MS)
    session.send_tensor(np.ones(3 * MIB, np.uint8), "a")
    waits = threading.Event()
    look = SegmentStore._retire_free  # which the wait for room does before each pause

    def looked(store: SegmentStore) -> bool:
        waits.set()
        return look(store)

    monkeypatch.setattr(SegmentStore, "_retire_free", looked)
    error, act = ENDS[end]
    with ThreadPoolExecutor(1) as pool:
        taker = pool.submit(TAKES[take], session)
        assert waits.wait(BOUND_S)
        act(session)
        with pytest.raises(error):
            taker.result(BOUND_S)
    session.close()


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(BadMessage, match="at_budget"):
        PythonSession(at_budget="wait")
