"""What tells every test that something is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import support
from support import empty_place, processes_of


@pytest.fixture
def start() -> Iterator[Callable[[object], int]]:
    """Starts a process with a workspace in its environment; gives its number."""
    with ExitStack() as stack:

        def started(workspace: object) -> int:
            process = subprocess.Popen(
                [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "TR_WORKSPACE": str(workspace)},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            return process.pid

        yield started


def numbers(workspace: Path) -> list[int]:
    return [each.pid for each in processes_of(workspace)]


def test_a_process_and_a_file_that_are_left_fail_the_test_and_the_process_is_ended(
    start: Callable[[object], int],
) -> None:
    places, pids = [], []

    def leave() -> None:
        with empty_place() as place:
            places.append(place)
            (place / "file").touch()
            pids.append(start(place))

    with pytest.raises(pytest.fail.Exception, match=r"left behind: process \d+ .*; .*/file"):
        leave()
    assert support.has_ended(pids[0])
    assert not places[0].exists()


def test_a_process_is_found_whatever_was_there_before_the_workspace(start: Callable[[object], int]) -> None:
    start("/elsewhere")
    with empty_place() as first:
        one = start(first)
        with empty_place() as second:
            other = start(second)
            assert (numbers(first), numbers(second)) == ([one], [other])
            for pid in (one, other):
                support.psutil.Process(pid).kill()
                assert support.has_ended(pid)


def test_a_process_that_was_given_the_number_of_an_older_one_is_found(
    start: Callable[[object], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel begins again when it has given all numbers: then none says which process it is."""
    counted = support._count_forks
    with empty_place() as place:
        pid = start(place)
        monkeypatch.setattr(support._older[place], "_pids", frozenset({pid}))
        assert numbers(place) == []
        monkeypatch.setattr(support, "_count_forks", lambda: counted() + support._FEW_FORKS)
        assert numbers(place) == [pid]
        support.psutil.Process(pid).kill()
        assert support.has_ended(pid)
