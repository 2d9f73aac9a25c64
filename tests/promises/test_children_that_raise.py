"""A handler that forks at any step, and raises in the child: what unwinds there undoes nothing of its parent's."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupts import forked_at
from support import FOREVER_MS, TOOLS, forks

import tr_mmap
from tr_mmap import PythonSession
from tr_mmap.shm.pool import SegmentPool

pytestmark = forks
LONG = "x" * 70_000  # a message of a file of its own


def new_tag(session: PythonSession) -> None:
    x = np.arange(20_000 + 10_000 * session.stats().segments, dtype=np.float32)
    session.send_tensor(x, "new")
    assert np.array_equal(session.fetch_tensor("echo new", FOREVER_MS), x)
    session.drop_tensor("new")


def known_tag(session: PythonSession) -> None:
    for number in range(2):
        session.send_tensor(np.full(9, number, np.float32), "known")
        assert session.fetch_tensor("echo known", FOREVER_MS).tolist() == [number] * 9


def arguments(session: PythonSession) -> None:
    x, y = np.arange(9, dtype=np.float32), np.full(3000, 2.5, np.float32)
    assert [each.tolist() for each in session.calculate("echo", x, y, timeout_ms=FOREVER_MS)] == [
        x.tolist(),
        y.tolist(),
    ]


def loan(session: PythonSession) -> None:
    x = session.empty(5000, "float32")
    x[:] = 7
    assert session.calculate("echo", x, timeout_ms=FOREVER_MS).tolist() == [7] * 5000


def long_text(session: PythonSession) -> None:
    assert session.fetch_response(f"say {LONG}", FOREVER_MS) == LONG


def steps(session: PythonSession) -> None:
    session.send_request("say steps", FOREVER_MS)
    assert session.wait_until_ok(FOREVER_MS)
    assert session.wait_for_response(FOREVER_MS) == "steps"


def name(session: PythonSession) -> None:
    session.send_tensor(np.arange(4, dtype=np.float32), "named")
    session.send_request("echo named", FOREVER_MS)
    assert session.recv_tensor("result_0", FOREVER_MS).tolist() == [0, 1, 2, 3]


def own_name(session: PythonSession) -> None:
    tr_mmap.save(os.path.join(session.session_dir(), "own.tsr"), np.arange(3, dtype=np.float32))  # as the worker would
    assert session.recv_tensor("own", FOREVER_MS).tolist() == [0, 1, 2]


ACTIONS: list[Callable[[PythonSession], None]] = [
    new_tag,
    known_tag,
    arguments,
    loan,
    long_text,
    steps,
    name,
    own_name,
]
OPTIONS: dict[str, dict[str, Any]] = {
    "mapped": {},
    "signed": {"auth": True},
    "checked": {"checksum": True},
    "files": {"channel": "files"},
    "legacy": {"channel": "legacy"},
}


@pytest.mark.each_value
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("action", ACTIONS)
def test_no_step_of_a_request_costs_the_parent_anything(
    workspace: Path, is_full: bool, action: Callable[[PythonSession], None], options: str
) -> None:
    if options == "legacy" and action is own_name:
        pytest.skip("there a file by hand is a result")
    with PythonSession(TOOLS, "raising", quiet_mode=True, **OPTIONS[options]) as session:
        action(session)
        step, stride = 1 + ACTIONS.index(action), 1 if is_full else 61
        while forked_at(step, partial(action, session)):
            step += stride
        assert step > 5
        action(session)
        assert session.fetch_response("say next", FOREVER_MS) == "next"


@pytest.mark.parametrize("options", OPTIONS)
def test_no_step_of_a_start_or_an_end_costs_the_parent_anything(workspace: Path, is_full: bool, options: str) -> None:
    def live() -> None:
        session = PythonSession(TOOLS, "starting", quiet_mode=True, **OPTIONS[options])
        session.start()
        folder = session.session_dir()
        assert session.wait_until_ready(FOREVER_MS)
        assert session.fetch_response("say here", FOREVER_MS) == "here"
        assert session.please_exit(FOREVER_MS)
        assert not os.path.exists(folder)

    step, stride = 1, 7 if is_full else 2003
    while forked_at(step, live):
        step += stride
    assert step > 5


def publish_a_new_size(pool: SegmentPool) -> None:
    segment = pool.publish(np.zeros(5000 + 2000 * pool.stats().segments))
    assert os.path.exists(segment.path)
    segment.release()


def publish_after_a_private_loan(pool: SegmentPool) -> None:
    loan = pool.empty(3000, "float32", "numpy")
    view = loan[5:]
    hidden = memoryview(loan)
    segment = pool.publish(loan)
    assert os.path.exists(segment.path)
    segment.release()
    del loan, view, hidden
    pool.publish(np.ones(3000, np.float32)).release()


def give_up_what_is_free(pool: SegmentPool) -> None:
    for count in (3000, 90_000):
        pool.publish(np.zeros(count)).release()
    kept = pool.publish(np.zeros(7000))
    pool.release_free()
    assert os.path.exists(kept.path)
    kept.release()


@pytest.mark.parametrize("action", [publish_a_new_size, publish_after_a_private_loan, give_up_what_is_free])
def test_no_step_of_a_pool_costs_the_parent_a_segment(
    tmp_path: Path, is_full: bool, action: Callable[[SegmentPool], None]
) -> None:
    pool = SegmentPool(str(tmp_path), "segment")
    step, stride = 1, 1 if is_full else 5
    while forked_at(step, partial(action, pool)):
        assert {path.name for path in tmp_path.iterdir()} == set(pool._segments)
        step += stride
    assert step > 5
    pool.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_there", [False, True])
def test_no_step_of_a_save_costs_the_parent_its_file(tmp_path: Path, is_full: bool, is_there: bool) -> None:
    path = tmp_path / "x.tsr"

    def save() -> None:
        if not is_there:
            path.unlink(missing_ok=True)
        tr_mmap.save(path, np.arange(1000))
        assert tr_mmap.load(path).tolist() == list(range(1000))

    step, stride = 1 + is_there, 1 if is_full else 3
    while forked_at(step, save):
        assert [each.name for each in tmp_path.iterdir()] == ["x.tsr"]
        step += stride
    assert step > 5
