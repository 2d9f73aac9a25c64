"""Sessions of one process share a pool: a loan reaches all their workers without a copy; results are handed on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupts import handled_at
from support import TOOLS, environment

from tr_mmap import PythonSession
from tr_mmap.sessions.workspace import sweep
from tr_mmap.wire.names import POOL_PREFIX

MIB = 1 << 20
Open = Callable[..., PythonSession]


@pytest.fixture
def open_session() -> Iterator[Open]:
    """Starts sessions, which end with the test."""
    with ExitStack() as opened:
        yield lambda name, **options: opened.enter_context(PythonSession(TOOLS, name, quiet_mode=True, **options))


def pools(workspace: Path) -> list[str]:
    folder = workspace / "python_session"
    return [name for name in os.listdir(folder) if name.startswith(POOL_PREFIX)] if folder.exists() else []


def where(session: PythonSession, tensor: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(session.calculate("where", tensor))
    return found


def test_a_loan_goes_to_every_session_of_the_process_without_a_copy(open_session: Open, workspace: Path) -> None:
    sessions = [open_session(f"s{number}") for number in range(4)]
    loan = sessions[0].empty((MIB,), "uint8")
    loan[...] = 7
    before = sessions[1].stats()
    inodes = {where(session, loan)["inode"] for session in sessions}
    assert len(inodes) == 1
    after = sessions[1].stats()
    assert after.copied_nbytes == before.copied_nbytes
    assert after.segments == 1
    for session in sessions:
        session.send_tensor(loan, "shared")
        assert session.calculate("total shared") == session.calculate("total", loan)
    assert sessions[2].stats().copied_nbytes == before.copied_nbytes
    assert len(pools(workspace)) == 1


def test_the_pool_goes_with_the_last_session(open_session: Open, workspace: Path) -> None:
    first = open_session("first")
    with PythonSession(TOOLS, "second", quiet_mode=True) as second:
        second.send_tensor(np.ones(MIB), "x")
        assert second.stats().segments == first.stats().segments == 1
    assert len(pools(workspace)) == 1
    assert first.stats().free_nbytes == first.stats().nbytes  # what the other session held is free
    assert first.calculate("total", np.ones(9)) == "9"
    first.close()
    assert pools(workspace) == []


def test_the_statistics_show_what_both_sides_hold(open_session: Open) -> None:
    first, second = open_session("first"), open_session("second")
    for session in (first, second):
        session.calculate("keep", {"x": np.ones(MIB, np.uint8), "name": "it"})
    stats = second.stats()
    assert (stats.segments, stats.leased, stats.nbytes, stats.leased_nbytes) == (2, 2, 2 * MIB, 2 * MIB)
    assert stats.free_nbytes == 2 * MIB  # no request of ours needs them
    first.fetch_response("forget it")
    assert second.stats().leased == 1
    assert (stats.results.segments, stats.results.leased) == (0, 0)
    result = second.calculate("kept it")
    assert astuple(second.stats().results) == (1, MIB, 1, MIB)
    assert astuple(first.stats().results) == (0, 0, 0, 0)
    del result
    assert astuple(second.stats().results) == (1, MIB, 0, 0)
    second.terminate()
    second.join()
    second.start()
    second.wait_until_ready()
    assert second.stats().leased == 0  # the worker that had a view is dead
    assert astuple(second.stats().results) == (0, 0, 0, 0)


@pytest.mark.parametrize("options", [{"auth": True}, {"checksum": True}, {"budget_nbytes": 8 * MIB}])
def test_a_session_with_terms_of_its_own_keeps_a_pool_of_its_own(
    open_session: Open, workspace: Path, options: dict[str, Any]
) -> None:
    apart = open_session("apart", **options)
    apart.calculate("total", np.ones(9))
    assert pools(workspace) == []
    before = apart.stats().copied_nbytes
    other = open_session("other")
    x = np.arange(MIB, dtype=np.uint8)
    result = other.calculate("echo", x)
    assert len(pools(workspace)) == 1
    assert apart.calculate("total", result) == other.calculate("total", x)
    assert apart.stats().copied_nbytes == before + MIB
    assert "segment_0.tsr" in os.listdir(apart.session_dir())


def test_a_result_of_one_worker_reaches_another_without_a_copy(open_session: Open) -> None:
    first, second = open_session("first"), open_session("second")
    result = first.calculate("loan 1000000 5")
    before = second.stats().copied_nbytes
    for session in (second, first, second):
        assert where(session, result)["inode"] == (Path(first.session_dir()) / "result_0.tsr").stat().st_ino
    assert second.calculate("total", result) == "5000000"
    assert second.stats().copied_nbytes == before


def test_what_is_not_a_whole_result_is_copied(open_session: Open) -> None:
    first, second = open_session("first"), open_session("second")
    result = first.calculate("loan 1000000 5")
    before = second.stats().copied_nbytes
    for part in (result[1:], result[::2], result.reshape(1000, 1000), result.view(np.int8), result[:9]):
        assert second.calculate("echo", part).tobytes() == part.tobytes()
        before += part.nbytes
        assert second.stats().copied_nbytes == before


def test_a_view_that_a_second_worker_keeps_stays_right_when_the_first_goes_on(open_session: Open) -> None:
    first, second = open_session("first"), open_session("second")
    result = first.calculate("loan 1000000 5")
    second.calculate("keep", {"x": result, "name": "it"})
    del result
    for number in range(20):
        assert first.calculate(f"loan 1000000 {number}")[0] == number
    assert second.calculate("kept it").tolist() == [5] * 1_000_000
    second.fetch_response("forget it")


@pytest.mark.parametrize("ends", [PythonSession.terminate, PythonSession.close])
def test_a_result_is_handed_on_after_the_end_of_its_worker(open_session: Open, ends: Callable[..., Any]) -> None:
    first, second = open_session("first"), open_session("second")
    result, other = first.calculate("loan 1000000 5"), first.calculate("loan 1000000 6")
    assert second.calculate("total", result) == "5000000"
    ends(first)
    first.join()
    assert second.calculate("total", result) == "5000000"
    assert second.calculate("total", other) == "6000000"
    first.start()
    first.wait_until_ready()
    assert second.calculate("total", first.calculate("loan 1000000 7")) == "7000000"
    assert [second.calculate("total", each) for each in (result, other)] == ["5000000", "6000000"]


def test_links_to_results_that_are_gone_are_removed(open_session: Open) -> None:
    first, second = open_session("first"), open_session("second")
    for _ in range(3):
        for size in range(100_000, 1_000_000, 100_000):
            assert second.calculate("total", first.calculate(f"loan {size} 1")) == str(size)
        first.terminate()
        first.join()
        first.start()
        first.wait_until_ready()
    given = [name for name in os.listdir(second.session_dir()) if name.startswith("given-")]
    assert len(given) <= 12
    assert sum(name.endswith(".readers") for name in given) <= 2
    words = Path(f"/proc/{second.pid}/maps").read_text().split()
    mapped = {word for word in words if "/given-" in word and word.endswith(".readers")}
    assert len(mapped) <= 2  # the second worker keeps no line of pools that are gone


def test_a_handler_may_use_another_session_at_any_step_of_a_request(open_session: Open) -> None:
    first, second = open_session("first"), open_session("second")
    totals: list[str] = []
    x, y = np.full(MIB, 2, np.uint8), np.full(9, 3, np.uint8)

    def ask() -> None:
        first.send_tensor(x, "x")
        assert first.calculate("total", {"x": x}) == first.calculate("total x") == str(2 * MIB)

    def handle() -> None:
        totals.append(second.calculate("total", y))
        second.send_tensor(y, "y")

    step, was_handled = -1, True
    while was_handled:
        step += 2
        was_handled = handled_at(step, ask, handle)
    assert totals == ["27"] * (step // 2)
    assert step > 50
    assert second.calculate("total y") == "27"


CONTROLLER = """
import sys
import numpy as np
from tr_mmap import PythonSession
sessions = [PythonSession(sys.argv[1], f"killed{number}", quiet_mode=True) for number in range(2)]
for session in sessions:
    session.start()
for session in sessions:
    session.wait_until_ready()
    session.send_tensor(np.ones(1000), "x")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_controller_that_is_killed_leaves_no_pool(workspace: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, TOOLS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == b"ready\n"
        assert len(pools(workspace)) == 1
        assert sweep(str(workspace)).removed == []
        assert len(pools(workspace)) == 1
        controller.send_signal(signal.SIGKILL)
        controller.wait()
        sweep(str(workspace))
    assert pools(workspace) == []


def test_a_forked_child_makes_a_pool_of_its_own(open_session: Open, workspace: Path) -> None:
    session = open_session("parents")
    kept = session.calculate("loan 100000 3")
    assert session.calculate("total", np.ones(9)) == "9"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with PythonSession(TOOLS, "childs", quiet_mode=True) as own:
                is_right = own.calculate("total", np.ones(9)) == "9" and own.calculate("total", kept) == "300000"
                code = 0 if is_right and len(pools(workspace)) == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(pools(workspace)) == 1
    assert session.calculate("total", kept) == "300000"
