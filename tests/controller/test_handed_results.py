"""Results of one worker in requests to another: again by the link that is there, and gone with their worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import TOOLS, wait_until

from tr_mmap import PythonSession, WorkerDied
from tr_mmap.native import IS_COMPILED
from tr_mmap.transfer.segments import SegmentControllerTransfer

MIB = 1 << 20
Open = Callable[[str], PythonSession]


@pytest.fixture
def open_session() -> Iterator[Open]:
    """Starts sessions, which end with the test."""
    with ExitStack() as opened:
        yield lambda name: opened.enter_context(PythonSession(TOOLS, name, quiet_mode=True))


def links(session: PythonSession) -> list[str]:
    """The names of other workers' segments in the directory of a session."""
    return [each for each in os.listdir(session.session_dir()) if each.startswith("given-") and each.endswith(".tsr")]


def has_mapped(session: PythonSession) -> bool:
    """Whether the worker has a segment of another worker mapped."""
    lines = Path(f"/proc/{session.pid}/maps").read_text().splitlines()
    return any("/given-" in line and ".tsr" in line for line in lines)


def restart(session: PythonSession) -> None:
    """End the worker, and start another."""
    session.terminate()
    session.join()
    session.start()
    session.wait_until_ready()


@pytest.mark.skipif(not IS_COMPILED, reason="plain Python has no fast path")
def test_a_result_is_handed_on_again_by_the_fast_path(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = open_session("first"), open_session("second")
    made = [first.calculate(f"loan 1000000 {number}") for number in (5, 6)]
    for result in made:
        second.calculate("total", result)
    prepared: list[Any] = []
    prepare = SegmentControllerTransfer.prepare
    monkeypatch.setattr(
        SegmentControllerTransfer,
        "prepare",
        lambda self, key, command, *rest: prepared.append(command) or prepare(self, key, command, *rest),
    )
    before = second.stats().copied_nbytes
    for _ in range(3):
        assert [second.calculate("total", each) for each in made] == ["5000000", "6000000"]
    echoed = second.calculate("echo", made[0], made[1], made[0])
    assert [each[-1] for each in echoed] == [5, 6, 5]
    assert prepared == []
    assert second.stats().copied_nbytes == before
    assert len(links(second)) == 2
    second.calculate("total", made[0][1:])
    assert prepared == ["total"]  # a part has no link


def test_results_go_beside_arrays_and_loans(open_session: Open) -> None:
    first, second = open_session("first"), open_session("second")
    result = first.calculate("loan 1000000 5")
    loan = second.empty((1000,), "uint8")
    loan[...] = 7
    plain = np.full(1000, 9, np.uint8)
    before = second.stats().copied_nbytes
    for count in range(1, 6):
        found = second.calculate("echo", plain, result, loan, result)
        assert [(each[0], each[-1], len(each)) for each in found] == [
            (9, 9, 1000),
            (5, 5, 1_000_000),
            (7, 7, 1000),
            (5, 5, 1_000_000),
        ]
        assert second.stats().copied_nbytes == before + count * 1000
    assert second.calculate("total", {"x": result}) == "5000000"


def test_a_request_in_flight_keeps_what_it_was_given(open_session: Open, tmp_path: Path) -> None:
    first, second = open_session("first"), open_session("second")
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    result = first.calculate("loan 1000000 5")
    assert second.calculate("total", result) == "5000000"
    held = second.submit(f"gate {gate}")
    total = second.submit("total", result)
    del result
    for number in range(20):
        assert first.calculate(f"loan 1000000 {number}")[0] == number
    gate.write_text("go")
    assert held.result() == "go"
    assert total.result() == "5000000"
    assert first.stats().results.leased == 0


def test_a_request_that_is_lost_with_its_worker_keeps_nothing(open_session: Open, tmp_path: Path) -> None:
    first, second = open_session("first"), open_session("second")
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    result = first.calculate("loan 1000000 5")
    assert second.calculate("total", result) == "5000000"
    held, total = second.submit(f"gate {gate}"), second.submit("total", result)
    restart(second)
    for future in (held, total):
        with pytest.raises(WorkerDied):
            future.result()
    assert second.calculate("total", result) == "5000000"
    del result
    wait_until(lambda: first.stats().results.leased == 0)


@pytest.mark.parametrize("ends", [restart, PythonSession.close])
@pytest.mark.parametrize("is_released_first", [True, False])
def test_the_end_of_a_worker_frees_what_others_were_given_of_its_results(
    open_session: Open, ends: Callable[..., Any], is_released_first: bool
) -> None:
    first, second = open_session("first"), open_session("second")
    made = [first.calculate(f"loan {MIB} {number}") for number in (1, 2)]
    for result in made:
        second.calculate("total", result)
    del result
    assert len(links(second)) == 2
    assert has_mapped(second)
    directories = [f"{each.session_dir()}/" for each in (first, second)]
    if is_released_first:
        made.clear()
    ends(first)
    if not is_released_first:
        assert [each[0] for each in made] == [1, 2]
        assert second.calculate("total", made[1]) == str(2 * MIB)
        made.clear()
        if not IS_COMPILED:
            second.stats()  # plain Python notices the end of views with the next call
    assert links(second) == []
    wait_until(lambda: not has_mapped(second))  # it looks once a second
    lines = Path("/proc/self/maps").read_text().splitlines()
    assert not any(".tsr" in line and any(each in line for each in directories) for line in lines)


def test_a_view_that_a_worker_keeps_outlives_the_worker_that_it_is_from(open_session: Open) -> None:
    first, second = open_session("first"), open_session("second")
    result = first.calculate("loan 1000000 5")
    second.calculate("keep", {"x": result, "name": "it"})
    del result
    first.close()
    assert links(second) == []
    assert second.calculate("kept it").tolist() == [5] * 1_000_000
    second.fetch_response("forget it")
    wait_until(lambda: not has_mapped(second))


def test_the_links_of_a_later_session_of_that_name_stay(open_session: Open) -> None:
    first, other = open_session("first"), open_session("other")
    with PythonSession(TOOLS, "second", quiet_mode=True) as second:
        of_first = first.calculate("loan 1000000 5")
        assert second.calculate("total", of_first) == "5000000"
        names = links(second)
    later = open_session("second")
    of_other = other.calculate("loan 1000000 6")
    assert later.calculate("total", of_other) == "6000000"
    assert links(later) == names
    del of_first
    first.close()
    assert links(later) == names
    assert later.calculate("total", of_other) == "6000000"
