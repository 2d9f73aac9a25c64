"""The byte budget: what happens at it, on either side."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support import TOOLS, processes_of

from tr_mmap import BadMessage, OutOfSpace, PythonSession, RemoteError

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
        with pytest.raises(OutOfSpace):
            sender.result(5)  # of the 10 that it waits for a worker that lives
        session.close()


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(BadMessage, match="at_budget"):
        PythonSession(at_budget="wait")
