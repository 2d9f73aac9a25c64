"""An exception between any two lines of a pool's methods loses nothing for longer than until the pool is put right."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from segment_sides import PAGE, Sides

import tr_mmap
from tr_mmap import OutOfSpace
from tr_mmap.native import drain
from tr_mmap.native.reference import segments as reference
from tr_mmap.shm.segment import Segment
from tr_mmap.wire.header import SEQ_RETIRED, SEQ_WORD

PACKAGE = os.path.dirname(tr_mmap.__file__) + os.sep
TRACED = (PACKAGE + "shm" + os.sep, PACKAGE + os.path.join("native", "reference") + os.sep)


class Stop(BaseException):
    """What a signal handler raises."""


def stop() -> None:
    raise Stop


def stop_at(number: int, action: Callable[[], object], handler: Callable[[], object] = stop) -> bool:
    """Run the action, but call a handler, or raise Stop, before its ``number``-th line; False if it has fewer."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(TRACED) or frame.f_code.co_name == "_forked_in_child":
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                handler()
        return trace

    sys.settrace(trace)
    try:
        action()
    except Stop:
        return True
    finally:
        sys.settrace(None)
        while (
            reference._lock._is_owned()
        ):  # a trace function may raise where a "with" ends, and a signal handler may not
            reference._lock.release()
    return left <= 0


class World:
    """A pool of every kind of segment, and what the caller knows of it."""

    def __init__(self, directory: Path) -> None:
        self.sides = Sides(directory, budget_nbytes=400 * PAGE)
        pool = self.pool = self.sides.pool
        self.held = [pool.publish(np.full(5, number), may_share=True) for number in range(24)]
        self.held += [pool.publish(np.full(3000, number)) for number in range(3)]
        self.views = [self.sides.look(each) for each in self.held]
        self.loan = pool.empty(10, "int64", "numpy")
        self.loan[:] = 7
        for each in self.held[::2]:
            each.release()  # some with a view, some without
        self.held = self.held[1::2]
        del self.views[::3]
        self.sides.settle()
        self.handed: list[Segment] = []

    def holds(self) -> dict[Segment, int]:
        return dict.fromkeys(self.held + self.handed, 1)

    def check(self) -> None:
        """All that must be true of a pool between two calls."""
        pool = self.pool
        drain()
        holds, segments = self.holds(), set(pool._segments.values())
        listed = [each for free in (*pool.free.values(), *pool._awaiting.values(), pool.viewed) for each in free]
        assert len(listed) == len(set(listed))
        for segment in segments:
            wanted = holds.get(segment, 0) + (segment.loaned_layout is not None)
            assert segment.holds == wanted
            assert (segment in listed) == (not wanted)
            assert segment.words[SEQ_WORD] != SEQ_RETIRED
        assert set(listed) <= segments
        slabs = {segment.slab for segment in segments} - {None}
        assert pool.stats().nbytes == sum(each.capacity for each in slabs | {s for s in segments if s.slab is None})
        assert set(os.listdir(self.sides.directory)) == {os.path.basename(segment.path) for segment in segments}
        assert not pool.is_slow_path_running
        assert self.loan.tolist() == [7] * 10
        for segment in self.held:
            assert len(set(np.asarray(self.sides.look(segment)).tolist())) == 1

    def use(self) -> None:
        """It works as before."""
        for tensor in (np.arange(5), np.arange(3000), np.arange(7.0), np.arange(9000)):
            for may_share in (True, False):
                segment = self.pool.publish(tensor, may_share=may_share)
                assert self.sides.look(segment).tolist() == tensor.tolist()
                segment.release()
            loan = self.pool.empty(tensor.shape, tensor.dtype, "numpy")
            loan[...] = tensor
            segment = self.pool.publish(loan)
            assert self.sides.look(segment).tolist() == tensor.tolist()
            segment.release()


ACTIONS: dict[str, Callable[[World], object]] = {
    "publish": lambda world: world.handed.append(world.pool.publish(np.arange(5), may_share=True)),
    "publish of another layout": lambda world: world.handed.append(world.pool.publish(np.arange(6.0))),
    "publish of a new size": lambda world: world.handed.append(world.pool.publish(np.arange(40_000))),
    "publish of a slab": lambda world: world.handed.extend(
        world.pool.publish(np.arange(5), may_share=True) for _ in range(12)
    ),
    "publish at the budget": lambda world: world.handed.append(world.pool.publish(np.zeros(330 * PAGE, np.uint8))),
    "publish of a loan": lambda world: world.handed.append(world.pool.publish(world.loan)),
    "empty": lambda world: world.pool.empty(5, "int64", "numpy"),
    "empty of a new size": lambda world: world.pool.empty(70_000, "int64", "numpy"),
    "release": lambda world: world.held.pop().release(),
    "collect": lambda world: world.pool.collect(),
    "the reader's death": lambda world: world.pool.reader_died(),
    "all free ones": lambda world: world.pool._retire_free(),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_pool_is_right_again_after_an_exception_at_any_line(directory: Path, name: str, is_full: bool) -> None:
    number, is_stopped = 1, True
    while is_stopped:
        world = World(directory)
        is_stopped = stop_at(number, lambda world=world: ACTIONS[name](world))
        repaired = 7 * number % 61 + 1
        stop_at(repaired, lambda world=world: world.pool.reconcile(world.holds()))  # which may be interrupted itself
        world.pool.reconcile(world.holds())
        world.check()
        stats = world.pool.stats()
        world.pool.reconcile(world.holds())
        assert world.pool.stats() == stats
        for segment in world.handed:
            segment.release()
        world.use()
        world.sides.close()
        assert os.listdir(directory) == []
        number += 1 if is_full else max(1, number // 10)
    assert number > 1


@pytest.mark.parametrize("name", ACTIONS)
def test_what_a_signal_handler_publishes_between_any_two_lines_stays(directory: Path, name: str, is_full: bool) -> None:
    number, is_reached = 1, True
    while is_reached:
        world = World(directory)
        inner: list[Segment] = []

        def publish(world: World = world, inner: list[Segment] = inner) -> None:
            inner.extend(world.pool.publish(np.full(5, 70 + count), may_share=True) for count in range(4))
            inner.append(world.pool.publish(np.full(3000, 74)))

        try:
            is_reached = stop_at(number, lambda world=world: ACTIONS[name](world), publish)
        except OutOfSpace:  # the handler has taken the room
            assert name == "publish at the budget"
        if name != "publish at the budget":  # else there may be no room left
            world.use()
        for count, segment in enumerate(inner):
            assert set(world.sides.look(segment).tolist()) == {70 + count}
        world.handed += inner
        world.check()
        world.sides.close()
        number += 1 if is_full else max(1, number // 10)
    assert number > 1


def test_closing_again_after_an_exception_removes_all(directory: Path) -> None:
    number = 1
    while True:
        world = World(directory)
        is_stopped = stop_at(number, world.pool.close)
        world.sides.close()
        assert os.listdir(directory) == []
        number += 1
        if not is_stopped:
            break


def test_files_of_others_are_left_alone(directory: Path) -> None:
    world = World(directory)
    others = ["result_0.tsr", "segment_x.tsr", "segment_0.tsr.tmp", "a.tsr", "my_segment_1.tsr"]
    for name in others:
        (directory / name).write_bytes(b"")
    (directory / "segment_99999.tsr").write_bytes(b"")
    world.pool.reconcile(world.holds())
    assert set(os.listdir(directory)) >= set(others)
    assert "segment_99999.tsr" not in os.listdir(directory)
    for name in others:
        (directory / name).unlink()
    world.sides.close()


def test_wrong_counts_and_lists_are_put_right(directory: Path) -> None:
    world = World(directory)
    pool = world.pool
    pool.is_slow_path_running = True
    world.held[0].holds = 5
    world.held[1].holds = 0
    pool.free[world.held[1].key].append(world.held[1])
    pool._nbytes = 3
    pool.free[PAGE].clear()
    pool.reconcile(world.holds())
    world.check()
    world.sides.close()
