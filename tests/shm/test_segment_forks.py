"""Segments across forks, guests and deaths: nobody sees memory that was filled again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupts import forked_at
from segment_sides import Sides
from support import FRAMEWORKS

import tr_mmap
from tr_mmap import Server
from tr_mmap.errors import SessionNotStarted, StaleTensor
from tr_mmap.native import drain
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.wire.header import LEASE_FREE, LEASE_PINNED, LEASE_WORD


@pytest.mark.parametrize(
    "make",
    [lambda path: SegmentPool(path, "segment").close(), lambda path: SegmentReader(path).close(), lambda _: Server()],
    ids=["pool", "reader", "server"],
)
def test_a_fork_at_any_step_of_the_making_raises_nothing_in_a_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], Any]
) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    step = 1
    while forked_at(step, lambda: make(str(tmp_path))):
        step += 1
    assert step > 3
    assert raised == []


# --- forks, guests and deaths -----------------------------------------------------------------------------------


class Child:
    """A fork of this process that looks at something when it is told to."""

    def __init__(self, is_right: Callable[[], bool]) -> None:
        read, self._write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 2
            try:
                os.close(self._write)
                os.read(read, 1)
                code = 0 if is_right() else 1
            finally:
                os._exit(code)
        os.close(read)

    def verdict(self) -> int:
        """0 if it saw what it should."""
        os.close(self._write)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_forked_child_takes_no_lease_because_it_could_not_release_it(sides: Sides) -> None:
    segment = sides.pool.publish(np.arange(1000))
    view = sides.look(segment, "numpy")
    del view
    sides.settle()

    def is_refused() -> bool:
        with pytest.raises(StaleTensor):
            sides.look(segment, "numpy")
        return True

    assert Child(is_refused).verdict() == 0
    assert segment.words[LEASE_WORD] == LEASE_FREE
    segment.release()


@pytest.mark.parametrize("is_received_again", [False, True])
@FRAMEWORKS
def test_a_view_in_a_forked_child_stays_right(sides: Sides, framework: str, is_received_again: bool) -> None:
    segment = sides.pool.publish(np.arange(10_000))
    view = sides.look(segment, framework)
    wanted = list(range(10_000))
    child = Child(lambda view=view: bool(view.tolist() == wanted))
    del view
    sides.settle()
    if is_received_again:
        for _ in range(3):
            assert sides.look(segment, framework).tolist() == wanted
            sides.settle()
    assert segment.words[LEASE_WORD] == LEASE_PINNED
    name = segment.name
    segment.release()
    for number in range(50):
        assert sides.pass_on(np.full(10_000, number), framework).tolist() == [number] * 10_000
    assert child.verdict() == 0
    assert name not in os.listdir(sides.directory)
    assert sides.pool.stats().segments == 1


def test_a_childs_end_gives_no_lease_back(sides: Sides) -> None:
    view = sides.pass_on(np.arange(1000))

    def drop() -> bool:
        nonlocal view
        del view
        sides.settle()
        sides.close()
        return True

    assert Child(drop).verdict() == 0
    assert len(os.listdir(sides.directory)) == 1
    for _ in range(10):
        sides.pass_on(np.zeros(1000))
    assert view.tolist() == list(range(1000))


def test_a_view_of_before_the_fork_that_died_pins_nothing(sides: Sides) -> None:
    sides.pass_on(np.arange(1000))
    sides.settle()
    assert Child(lambda: True).verdict() == 0
    for _ in range(5):
        sides.pass_on(np.arange(1000))
        sides.settle()
    assert sides.pool.stats().created == 1


def test_a_forked_child_neither_publishes_nor_lends(sides: Sides) -> None:
    for _ in range(3):  # so that there is a fast path
        sides.pass_on(np.arange(1000))
        sides.pool.empty(1000, "int64", "numpy")
        sides.settle()

    def is_refused() -> bool:
        for action in (lambda: sides.pool.publish(np.arange(1000)), lambda: sides.pool.empty(1000, "int64", "numpy")):
            with pytest.raises(SessionNotStarted):
                action()
        return True

    assert Child(is_refused).verdict() == 0


@FRAMEWORKS
def test_a_loan_in_a_forked_child_is_never_somebody_elses_memory(sides: Sides, framework: str) -> None:
    loan = sides.pool.empty(1000, "int64", framework)
    loan[:] = 5
    wanted = [5] * 1000
    child = Child(lambda loan=loan: bool(loan.tolist() == wanted))
    del loan
    sides.settle()
    for number in range(20):
        sides.pass_on(np.full(1000, number))
    assert child.verdict() == 0


@FRAMEWORKS
def test_what_a_stranger_has_loaded_stays_right(sides: Sides, framework: str) -> None:
    segment = sides.pool.publish(np.arange(1000))
    loaded: Any = tr_mmap.load(segment.path, framework=framework)
    name = segment.name
    segment.release()
    for number in range(1000):
        sides.pass_on(np.full(1000, number))
        sides.settle()
    assert loaded.tolist() == list(range(1000))
    assert os.listdir(sides.directory) != [name]
    assert sides.pool.stats().created == 2


def test_what_a_dead_reader_held_is_never_filled_again(sides: Sides) -> None:
    views = [sides.pass_on(np.arange(1000))]
    held = sides.pool.publish(np.arange(1000))
    views.append(sides.look(held))
    sides.pool.reader_died()  # but a child of it may live, and look
    held.release()
    new = SegmentReader(str(sides.directory))
    for number in range(20):
        segment = sides.pool.publish(np.full(1000, number))
        assert new.receive(segment.name, segment.seq, "numpy").tolist() == [number] * 1000
        drain()
        segment.release()
    for view in views:
        assert view.tolist() == list(range(1000))
    assert sides.pool.stats().segments == 1
