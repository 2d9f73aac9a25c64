"""Sessions that share a pool do not stop, harm or corrupt each other, whatever interrupts one of them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupts import handled_at, interrupted_at
from support import BOUND_S

from tr_mmap.native import Pending, drain
from tr_mmap.shm import apart
from tr_mmap.shm import segment as segments
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.transfer.options import TransferOptions
from tr_mmap.transfer.segments import SegmentControllerTransfer
from tr_mmap.transfer.shared import PoolAccess

MIB = 1 << 20
STEPS = 400  # more than any method has


class Sharing:
    """Transfers that share a pool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder / "pool"
        self.directory.mkdir()
        self.access = PoolAccess(SegmentPool(str(self.directory), "segment", has_lines=True), str(self.directory))
        self.access.pool.hands_on = True
        self.made: list[SegmentControllerTransfer] = [self.join("first")]  # so that the pool stays open
        self._reader = SegmentReader(str(self.directory), shared=str(self.directory))

    def join(self, name: str) -> SegmentControllerTransfer:
        (self.folder / name).mkdir(exist_ok=True)
        return SegmentControllerTransfer(str(self.folder / name), TransferOptions(), None, self.access)

    def content(self, transfer: SegmentControllerTransfer, tag: str) -> Any:
        """A copy of what a tag's segment holds."""
        (segment,) = [each for name, each in transfer._tags.by_tag.items() if name == tag]
        return self._reader.receive(segment.name, segment.seq, "numpy").copy()

    def check_whole(self) -> None:
        """The lock is free, and nothing but the tags holds a segment."""
        with ThreadPoolExecutor(1) as other:
            assert other.submit(self.access.lock.acquire, blocking=False).result(BOUND_S)
            other.submit(self.access.lock.release).result(BOUND_S)
        assert self.access.depth == self.access.paused == 0
        self.made[0].put("last", np.zeros(3))
        self.made[0].drop("last")
        drain()
        held = {id(each) for transfer in self.access._users for each in transfer.holds()}
        pool = self.access.pool
        nbytes = sum(each.capacity for each in pool._segments.values() if id(each) not in held)
        assert pool.stats().free_nbytes == nbytes
        self.check_files()

    def check_files(self) -> None:
        """There is no file of an interrupted call."""
        names = {Path(each.path).name for each in self.access.pool._segments.values()}
        assert {each.name for each in self.directory.iterdir()} == {*names, "segment.readers"}


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Sharing]:
    shared = Sharing(tmp_path)
    yield shared
    for each in list(shared.access._users):
        each.close()  # type: ignore[attr-defined]


def prepare(transfer: SegmentControllerTransfer, *tensors: Any) -> Any:
    pending = Pending("add", "numpy")
    transfer.prepare(pending, "add", "", tensors, math.inf)
    return pending


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("way", ["put", "prepare"])
def test_a_large_copy_of_one_session_holds_up_no_other(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch, is_new: bool, way: str
) -> None:
    first, second, third = sharing.made[0], sharing.join("second"), sharing.join("third")
    big = np.full(4 * MIB, 7, np.uint8)
    if not is_new:
        first.put("big", big)
        first.drop("big")
    begun, may_go_on = threading.Event(), threading.Event()

    def blocking(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begun.set()
            assert may_go_on.wait(BOUND_S)
            return real(*arguments)

        return run

    if is_new:
        monkeypatch.setattr(apart, "make_segment", blocking(segments.make_segment))
    else:
        monkeypatch.setattr(apart.tensors, "copy_into", blocking(apart.tensors.copy_into))
    with ThreadPoolExecutor(2) as threads:
        copy = threads.submit(first.put, "big", big) if way == "put" else threads.submit(prepare, first, big)
        assert begun.wait(BOUND_S)
        monkeypatch.undo()
        others = threads.submit(use_all, second, third)
        others.result(BOUND_S)
        assert not copy.done()
        may_go_on.set()
        copy.result(BOUND_S)
    assert first.stats().copied_nbytes >= big.nbytes
    if way == "put":
        assert (sharing.content(first, "big") == 7).all()
        assert sharing.content(second, "small").tolist() == [2.0] * 9


def use_all(second: SegmentControllerTransfer, third: SegmentControllerTransfer) -> None:
    second.put("small", np.full(9, 1.0))
    second.put("small", np.full(9, 2.0))
    second.put("more", np.full(2 * MIB, 3.0))
    second.drop("more")
    second.release(prepare(second, np.zeros(9), np.zeros(MIB)), None)
    second.empty((9,), "float32", "numpy")
    third.put("x", np.zeros(9))
    third.drop("x")
    third._tags._linking = "x"  # as after an interrupt: the next call repairs the pool of all
    third.access.has_failed = True
    second.stats()
    third.close()


@pytest.mark.each_value
@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("size", [9, 2 * MIB])
@pytest.mark.parametrize("way", ["put", "prepare", "drop", "close", "worker_ended", "empty"])
def test_no_interrupt_of_one_session_takes_the_pool_from_the_others(
    sharing: Sharing, size: int, way: str, is_new: bool
) -> None:
    other = sharing.join("other")
    other.put("kept", np.full(size, 5, np.uint8))
    step, is_interrupted = 0, True
    while is_interrupted and step < STEPS:
        step += 1
        one = sharing.join("one")
        one.put("old", np.full(size, 4, np.uint8))
        pendings: list[Any] = []

        def request(one: SegmentControllerTransfer = one, pendings: list[Any] = pendings) -> None:
            pendings.append(Pending("add", "numpy"))
            one.prepare(pendings[0], "add", "", [np.full(size, 3, np.uint8)], math.inf)

        actions: dict[str, Callable[[], object]] = {
            "put": partial(one.put, "new", np.full(size, 3, np.uint8)),
            "prepare": request,
            "drop": partial(one.drop, "old"),
            "close": one.close,
            "worker_ended": one.worker_ended,
            "empty": partial(one.empty, (size,), "uint8", "numpy"),
        }
        if is_new:
            other.release_free()  # so that a file is made
        is_interrupted = interrupted_at(step, actions[way])
        other.put("next", np.full(size, 6, np.uint8))
        assert (sharing.content(other, "next") == 6).all(), step
        for pending in pendings:
            one.release(pending, None)
        sharing.check_files()
        one.close()
        sharing.check_whole()
        assert (sharing.content(other, "kept") == 5).all(), step
    assert step < STEPS


@pytest.mark.parametrize("size", [9, 2 * MIB])
def test_a_handler_may_close_another_session_at_any_step_of_a_send(sharing: Sharing, size: int) -> None:
    one = sharing.made[0]
    step, was_handled = 0, True
    while was_handled and step < STEPS:
        step += 1
        other = sharing.join("other")
        other.put("x", np.full(size, 1, np.uint8))
        was_handled = handled_at(step, partial(one.put, "mine", np.full(size, 2, np.uint8)), other.close)
        for number in range(3):
            one.put(f"more{number}", np.full(size, 3, np.uint8))
        assert (sharing.content(one, "mine") == 2).all(), step
        other.close()
        sharing.check_whole()
    assert step < STEPS


@pytest.mark.parametrize("size", [9, 2 * MIB])
def test_a_handler_may_send_in_another_session_at_any_step_of_a_send(sharing: Sharing, size: int) -> None:
    one, other = sharing.made[0], sharing.join("other")

    def handle() -> None:
        other.put("x", np.full(size, 1, np.uint8))
        other.release(prepare(other, np.full(size, 4, np.uint8)), None)
        other.worker_ended()

    step, was_handled = 0, True
    while was_handled and step < STEPS:
        step += 1
        was_handled = handled_at(step, partial(one.put, "mine", np.full(size, 2, np.uint8)), handle)
        assert (sharing.content(one, "mine") == 2).all(), step
        assert not was_handled or (sharing.content(other, "x") == 1).all(), step
        sharing.check_whole()
    assert step < STEPS


def test_a_thread_that_finds_a_workers_end_waits_for_no_interrupted_send(sharing: Sharing) -> None:
    """Its session's turn is the thread's. A handler in the interrupted thread may want that turn."""
    one, other = sharing.made[0], sharing.join("other")
    other.put("x", np.full(9, 1.0))
    other.put("x", np.full(9, 2.0))
    pending = prepare(other, np.zeros(9))
    other.unannounced.clear()  # as if the worker had heard of it
    with ThreadPoolExecutor(1) as threads, one.access.lock:
        one.access.depth += 1  # as in the middle of a send
        threads.submit(other.worker_ended).result(BOUND_S)
        one.access.depth -= 1
        other.worker_started(bool)
    assert list(other.unannounced) == ["x"]
    assert pending.held == []
    sharing.check_whole()


def test_what_a_thread_could_not_release_any_session_releases(sharing: Sharing) -> None:
    one, other = sharing.made[0], sharing.join("other")
    pending = prepare(other, np.zeros(9))
    with ThreadPoolExecutor(1) as threads, one.access.lock:
        threads.submit(other.release, pending, None).result(BOUND_S)
        assert pending.held != []
    one.put("x", np.zeros(9))
    assert pending.held == []
    sharing.check_whole()


def test_sessions_beyond_those_that_may_share_have_pools_of_their_own(sharing: Sharing) -> None:
    for number in range(47):
        assert sharing.join(f"s{number}").access is sharing.access
    apart = sharing.join("apart")
    apart.put("x", np.zeros(9))
    assert apart.pool_directory == ""
    assert (sharing.folder / "apart" / "segment_0.tsr").exists()
    apart.close()
    sharing.access._users[-1].close()  # type: ignore[attr-defined]
    assert sharing.join("late").access is sharing.access
