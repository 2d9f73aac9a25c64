"""Segments: what a view shows never changes while it lives, memory is used again once nobody looks, nothing stays."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies as own
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from strategies import bits

import tr_mmap
from tr_mmap import system
from tr_mmap.dtypes import DType, by_name
from tr_mmap.errors import (
    BadMessage,
    Fault,
    MissingTag,
    OutOfSpace,
    SessionNotStarted,
    StaleTensor,
    TSRFormatError,
    UnsupportedTensor,
)
from tr_mmap.native import bury
from tr_mmap.protocol import Request, TensorRef
from tr_mmap.segments import Receiver, Segment, SegmentPool, Tags
from tr_mmap.segments import pool as pools
from tr_mmap.segments.layout import HEAD_NBYTES, LEASE, LEASE_FREE, LEASE_PINNED, SEQ_RETIRED, class_nbytes
from tr_mmap.tsr import read_header

BOUND_S = 60.0  # for what happens at once; only a failure waits for it
PAGE = 4096
FRAMEWORKS = pytest.mark.parametrize("framework", ["numpy", "torch"])


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def ref_of(segment: Segment, tag: str = "") -> TensorRef:
    return TensorRef(tag, segment.name, segment.seq)


class Sides:
    """An owner and a reader over one directory."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.pool = SegmentPool(str(directory), "segment", **options)
        self.receiver = Receiver(str(directory))

    def look(self, segment: Segment, framework: str = "numpy") -> Any:
        return self.receiver.receive(ref_of(segment), framework)

    def pass_on(self, tensor: Any, framework: str = "numpy") -> Any:
        """Publish, receive, and let the owner's hold go: only the view keeps the segment."""
        self.settle()
        segment = self.pool.publish(tensor)
        try:
            return self.look(segment, framework)
        finally:
            segment.release()

    def settle(self) -> None:
        bury()
        self.pool.collect()

    def close(self) -> None:
        self.receiver.close()
        self.pool.close()


@pytest.fixture
def directory(workspace: Path) -> Iterator[Path]:
    """On tmpfs; whatever is left in it fails the test."""
    path = workspace / "segments"
    path.mkdir(0o700)
    yield path
    path.rmdir()


@pytest.fixture
def sides(directory: Path) -> Iterator[Sides]:
    made = Sides(directory)
    yield made
    made.close()


@pytest.fixture
def limited(directory: Path) -> Iterator[Callable[..., Sides]]:
    """Makes sides whose owner has a budget."""
    made: list[Sides] = []

    def make(budget_nbytes: int, **options: Any) -> Sides:
        made.append(Sides(directory, budget_nbytes=budget_nbytes, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def tags(sides: Sides) -> Iterator[Tags]:
    made = Tags(str(sides.directory), Segment.release)
    yield made
    for tag in list(made._segments):
        made.drop(tag)


# --- arithmetic -------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**44))
@settings(deadline=None, max_examples=1000)
def test_a_size_class_wastes_little(nbytes: int) -> None:
    capacity = class_nbytes(nbytes)
    assert capacity >= max(nbytes, PAGE)
    assert capacity % PAGE == 0
    assert capacity - nbytes <= max(PAGE, capacity / 8)
    assert class_nbytes(capacity) == capacity


@pytest.mark.parametrize("exponent", range(45))
def test_powers_of_two_are_size_classes(exponent: int) -> None:
    assert class_nbytes(1 << exponent) == max(1 << exponent, PAGE)


def test_there_are_few_size_classes() -> None:
    for exponent in range(15, 30):
        low, high = 1 << exponent, 2 << exponent
        assert {class_nbytes(low + step * (low // 64)) for step in range(1, 65)} == {
            low + step * (low // 8) for step in range(1, 9)
        }
        assert class_nbytes(high) == high


# --- one tensor -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module_sides() -> Iterator[Sides]:
    path = tempfile.mkdtemp(dir="/dev/shm", prefix=f"tr_test_{os.getpid()}_")
    made = Sides(Path(path))
    yield made
    made.close()
    os.rmdir(path)


@given(tensor=own.tensors(), framework=st.sampled_from(["numpy", "torch"]))
@settings(deadline=None, max_examples=300)
def test_every_tensor_arrives_bit_for_bit(module_sides: Sides, tensor: Any, framework: str) -> None:
    view = module_sides.pass_on(tensor, framework)
    assert own.shape_of(view) == own.shape_of(tensor)
    assert bits(view) == bits(tensor)
    assert isinstance(view, torch.Tensor) == (framework == "torch")


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, 255 << 10, 256 << 10, (256 << 10) + 1, 5 << 20])
@pytest.mark.parametrize("layout", ["c", "strided", "big-endian"])
def test_tensors_of_every_size_arrive_first_and_again(sides: Sides, nbytes: int, layout: str) -> None:
    data = np.frombuffer(random.Random(nbytes).randbytes(2 * (nbytes + 8)), np.uint8)
    for _ in range(3):
        if layout == "c":
            tensor: Any = data[:nbytes]
        elif layout == "strided":
            tensor = data[: 2 * nbytes : 2]
        else:
            tensor = data[: nbytes // 8 * 8].view(">f8")
        view = sides.pass_on(tensor)
        assert bits(view) == bits(tensor)
        del view


def test_a_numpy_view_can_never_be_written(sides: Sides) -> None:
    view = sides.pass_on(np.arange(4))
    for action in (lambda: view.__setitem__(0, 1), lambda: view.setflags(write=True)):
        with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
            action()


def test_a_store_into_a_torch_view_stays_with_it(sides: Sides) -> None:
    segment = sides.pool.publish(np.arange(4))
    first = sides.look(segment, "torch")
    first += 100
    assert first.tolist() == [100, 101, 102, 103]
    assert sides.look(segment).tolist() == sides.look(segment, "torch").tolist() == [0, 1, 2, 3]
    del first
    assert sides.look(segment, "torch").tolist() == [0, 1, 2, 3]  # nor does a mapping that is used again show it
    segment.release()


# --- using segments again ---------------------------------------------------------------------------------------


@FRAMEWORKS
def test_one_segment_serves_all_messages_whose_views_die(sides: Sides, framework: str) -> None:
    for number in range(50):
        view = sides.pass_on(np.full(1000, number), framework)
        assert view.tolist() == [number] * 1000
        del view
        sides.settle()
    stats = sides.pool.stats()
    assert (stats.created, stats.segments, stats.published) == (1, 1, 50)
    assert stats.copied_nbytes == 50 * 8000
    assert stats.nbytes == stats.free_nbytes == class_nbytes(8000)


@FRAMEWORKS
def test_a_segment_is_left_alone_for_as_long_as_a_view_lives(sides: Sides, framework: str) -> None:
    view = sides.pass_on(np.arange(1000), framework)
    for number in range(20):
        assert sides.pass_on(np.full(1000, -number), framework).tolist() == [-number] * 1000
    assert view.tolist() == list(range(1000))
    part = view[10:20][::2]
    del view
    for number in range(20):
        assert sides.pass_on(np.full(1000, -number), framework).tolist() == [-number] * 1000
    assert part.tolist() == [10, 12, 14, 16, 18]
    assert sides.pool.stats().created == 2
    del part
    sides.settle()
    for number in range(5):
        sides.pass_on(np.full(1000, -number), framework)
    assert sides.pool.stats().created == 2


def test_every_kind_of_derived_view_keeps_the_segment(sides: Sides) -> None:
    content = np.arange(24.0)
    derive: list[Callable[[Any], Any]] = [
        lambda a: a[3:],
        lambda a: a[::-1],
        lambda a: a.reshape(2, 3, 4).transpose(2, 0, 1)[1],
        lambda a: a.view(np.uint8),
        lambda a: memoryview(a),
        lambda a: memoryview(a).cast("B")[8:],
        lambda a: np.frombuffer(a, np.int64),
        lambda a: np.lib.stride_tricks.sliding_window_view(a, 3),
        lambda a: np.broadcast_to(a, (3, 24)),
        lambda a: a.real,
        lambda a: a.flat,
    ]
    kept = [(make(sides.pass_on(content)), make(content.copy())) for make in derive]
    for _ in range(2 * len(kept)):
        sides.pass_on(np.zeros(24))
    for found, wanted in kept:
        assert np.array_equal(np.asarray(found), np.asarray(wanted))
    tensor = sides.pass_on(content, "torch")
    others = [tensor[3:], tensor.view(4, 6).T, tensor.numpy(), tensor.detach(), tensor.untyped_storage()]
    del tensor
    for _ in range(3):
        sides.pass_on(np.zeros(24))
    assert others[0].tolist() == content[3:].tolist()
    assert others[2].tolist() == content.tolist()


def test_a_hold_keeps_the_segment(sides: Sides) -> None:
    held = sides.pool.publish(np.arange(10))
    for _ in range(5):
        sides.pass_on(np.zeros(10, int))
    assert sides.look(held).tolist() == list(range(10))
    held.release()


def test_sizes_that_are_no_longer_sent_are_given_back(sides: Sides) -> None:
    for pages in range(1, 8):
        sides.pass_on(np.zeros(pages * PAGE, np.uint8))
    assert sides.pool.stats().segments == 7
    for _ in range(600):
        sides.pass_on(np.zeros(1, np.uint8))
    sides.settle()
    sides.pass_on(np.zeros(10 * PAGE, np.uint8))  # making one is the occasion
    assert sides.pool.stats().segments == 2
    assert len(os.listdir(sides.directory)) == 2


def test_names_are_never_used_twice(limited: Callable[..., Sides]) -> None:
    sides = limited(4 * PAGE)
    names: list[str] = []
    for number in range(30):
        segment = sides.pool.publish(np.zeros((number % 4 + 1) * PAGE, np.uint8))
        if segment.name not in names[-1:]:
            assert segment.name not in names
            names.append(segment.name)
        segment.release()
    assert len(names) > 10


def test_a_reference_that_is_out_of_date_is_stale(sides: Sides) -> None:
    first = ref_of(sides.pool.publish(np.arange(10)), "a")
    sides.pool._segments[first.segment].release()
    assert sides.pass_on(np.zeros(10, int)).tolist() == [0] * 10
    for framework in ("numpy", "torch"):
        with pytest.raises(StaleTensor) as caught:
            sides.receiver.receive(first, framework)
        assert (caught.value.name, caught.value.seq) == (first.segment, first.seq)
        assert "'a'" in str(caught.value)
    sides.pass_on(np.zeros(10, int))
    assert sides.pool.stats().created == 1  # the refused look left no lease


@pytest.mark.parametrize(
    ("name", "seq"),
    [
        ("segment_0.tsr", 0),
        ("segment_0.tsr", 2),
        ("segment_0.tsr", SEQ_RETIRED),
        ("segment_1.tsr", 1),
        ("result_0.tsr", 1),
    ],
)
def test_a_reference_to_nothing_is_stale(sides: Sides, name: str, seq: int) -> None:
    segment = sides.pool.publish(np.arange(10))
    assert segment.name == "segment_0.tsr"
    before = open_fds()
    with pytest.raises(StaleTensor):
        sides.receiver.receive(TensorRef("", name, seq), "numpy")
    assert open_fds() == before
    assert segment.words[LEASE] == LEASE_FREE
    segment.release()


@pytest.mark.parametrize("name", ["../segments/segment_0.tsr", "status.txt", "", ".", "/", "segment_0.tsr\0"])
def test_only_a_segments_name_is_ever_opened(sides: Sides, name: str) -> None:
    segment = sides.pool.publish(np.arange(10))
    with pytest.raises(BadMessage):
        sides.receiver.receive(TensorRef("", name, 1), "numpy")
    segment.release()


def test_a_segment_that_is_being_filled_is_stale(sides: Sides) -> None:
    segment = sides.pool.publish(np.arange(10))
    old = ref_of(segment)
    segment.release()
    taken, _ = sides.pool._take(80)
    assert taken is segment
    with pytest.raises(StaleTensor):
        sides.receiver.receive(old, "numpy")


def test_a_plain_file_in_a_segments_place_is_no_segment(sides: Sides) -> None:
    path = sides.directory / "result_0.tsr"
    try:
        tr_mmap.save(path, np.zeros(2000))
        with pytest.raises(TSRFormatError) as caught:
            sides.receiver.receive(TensorRef("", path.name, 1), "numpy")
        assert caught.value.fault in (Fault.BAD_FLAGS, Fault.BAD_RESERVED)  # the lease is no part of a plain file
        path.write_bytes(b"short")
        with pytest.raises(StaleTensor):
            Receiver(str(sides.directory)).receive(TensorRef("", path.name, 1), "numpy")
    finally:
        path.unlink()


def test_many_segments_keep_no_descriptors(sides: Sides) -> None:
    before = open_fds()
    segments = [sides.pool.publish(np.full(100, number)) for number in range(200)]
    views = [sides.look(each, framework) for each in segments for framework in ("numpy", "torch")]
    assert open_fds() == before
    assert [int(view[7]) for view in views] == [number for number in range(200) for _ in range(2)]
    for each in segments:
        each.release()


# --- giving memory back -----------------------------------------------------------------------------------------


def test_a_retired_segment_gives_its_memory_back_at_once(limited: Callable[..., Sides]) -> None:
    sides = limited(4 << 20)
    segment = sides.pool.publish(np.ones(3 << 20, np.uint8))
    sides.look(segment)  # so the reader has it mapped
    path = sides.directory / "witness"
    os.link(segment.path, path)
    assert path.stat().st_blocks * 512 >= 3 << 20
    segment.release()
    bury()
    other = sides.pool.publish(np.ones(2 << 20, np.uint8))
    assert not os.path.exists(segment.path)
    assert path.stat().st_blocks * 512 <= HEAD_NBYTES
    with pytest.raises(TSRFormatError):  # what is left of it is no tensor, least of all one of zeros
        tr_mmap.load(path)
    with pytest.raises(StaleTensor):
        sides.look(segment)
    path.unlink()
    other.release()


def test_a_segment_that_is_retired_under_a_view_gives_its_memory_back_with_it(sides: Sides) -> None:
    view = sides.pass_on(np.arange(1000))
    (segment,) = sides.pool._segments.values()
    name = segment.name
    sides.pool.reader_died()
    assert os.listdir(sides.directory) == []
    assert view.tolist() == list(range(1000))

    def is_mapped() -> bool:
        return f"{sides.directory}/{name}" in Path("/proc/self/maps").read_text()

    assert is_mapped()
    del view, segment
    sides.settle()
    sides.pass_on(np.zeros(1))  # mapping a new one is the occasion to forget old ones
    assert name not in sides.receiver.mapped
    gc.collect()
    assert not is_mapped()


def test_closing_leaves_live_views_whole(directory: Path) -> None:
    sides = Sides(directory)
    views = [sides.pass_on(np.arange(1000), framework) for framework in ("numpy", "torch")]
    loan = sides.pool.empty(10, "int64", "numpy")
    loan[:] = 5
    sides.close()
    assert os.listdir(directory) == []
    del sides
    gc.collect()
    for view in views:
        assert view.tolist() == list(range(1000))
    assert loan.tolist() == [5] * 10


# --- budget -----------------------------------------------------------------------------------------------------


def test_the_budget_is_kept_and_says_what_is_missing(limited: Callable[..., Sides]) -> None:
    sides = limited(10 * PAGE)
    held = [sides.pool.publish(np.full(4 * PAGE, number, np.uint8)) for number in range(2)]
    before = sides.pool.stats()
    for action in (
        lambda: sides.pool.publish(np.zeros(4 * PAGE, np.uint8)),
        lambda: sides.pool.empty(4 * PAGE, "uint8", "numpy"),
    ):
        with pytest.raises(OutOfSpace) as caught:
            action()
        assert (caught.value.needed_nbytes, caught.value.free_nbytes) == (4 * PAGE, 2 * PAGE)
        assert sides.pool.stats() == before
    assert [int(sides.look(each)[5]) for each in held] == [0, 1]
    sides.settle()
    assert len(os.listdir(sides.directory)) == 2
    held.pop().release()
    held.append(sides.pool.publish(np.zeros(6 * PAGE, np.uint8)))
    assert sides.pool.stats().nbytes == 10 * PAGE
    for each in held:
        each.release()


def test_free_segments_of_other_sizes_make_room(limited: Callable[..., Sides]) -> None:
    sides = limited(10 * PAGE)
    for pages in (1, 2, 3, 4, 10, 1, 5, 5, 10):
        assert sides.pass_on(np.full(pages * PAGE, pages, np.uint8))[-1] == pages
        sides.settle()
        assert sides.pool.stats().nbytes <= 10 * PAGE


def test_memory_that_the_reader_looks_at_counts(limited: Callable[..., Sides]) -> None:
    sides = limited(4 * PAGE)
    views = [sides.pass_on(np.full(PAGE, number, np.uint8)) for number in range(4)]
    for size in (PAGE, 2 * PAGE):
        with pytest.raises(OutOfSpace):
            sides.pass_on(np.zeros(size, np.uint8))
    assert [int(view[9]) for view in views] == [0, 1, 2, 3]
    del views[1:3]
    sides.settle()
    assert sides.pass_on(np.zeros(2 * PAGE, np.uint8)).sum() == 0
    assert [int(view[9]) for view in views] == [0, 3]


def test_at_the_budget_an_owner_may_wait_for_the_reader(
    limited: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = limited(2 * PAGE, block_ms=1000 * BOUND_S)
    views = [sides.pass_on(np.full(PAGE, number, np.uint8)) for number in range(2)]
    pauses: list[float] = []

    def pause(seconds: float) -> None:  # in it the reader, another process, goes on
        pauses.append(seconds)
        if len(pauses) == 3:
            views.pop()
            bury()

    monkeypatch.setattr(pools, "_pause", pause)
    assert sides.pass_on(np.full(PAGE, 7, np.uint8))[0] == 7
    assert len(pauses) == 3
    assert views[0][0] == 0


def test_a_full_file_system_leaves_everything_as_it_was(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    held = sides.pool.publish(np.arange(10))
    before = sides.pool.stats()

    def allocate(fd: int, nbytes: int, *, directory: str) -> None:
        raise OutOfSpace("full", needed_nbytes=nbytes, free_nbytes=0)

    with monkeypatch.context() as patch:
        patch.setattr(system, "allocate", allocate)
        for nbytes in (10, 1 << 20):
            with pytest.raises(OutOfSpace):
                sides.pool.publish(np.zeros(nbytes, np.uint8))
            with pytest.raises(OutOfSpace):
                sides.pool.empty(nbytes, "uint8", "torch")
    assert sides.pool.stats() == before
    assert os.listdir(sides.directory) == [held.name]
    assert sides.look(held).tolist() == list(range(10))
    held.release()


def test_a_full_file_system_is_helped_by_free_segments(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    sides.pass_on(np.zeros(1 << 20, np.uint8))
    sides.settle()
    real = system.allocate

    def allocate(fd: int, nbytes: int, *, directory: str) -> None:
        if os.listdir(directory) == ["segment_0.tsr", "segment_1.tsr"][::-1] or len(os.listdir(directory)) == 2:
            raise OutOfSpace("full", needed_nbytes=nbytes, free_nbytes=0)
        real(fd, nbytes, directory=directory)

    monkeypatch.setattr(system, "allocate", allocate)
    assert sides.pass_on(np.full(10, 3)).tolist() == [3] * 10


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, "M8[s]"),
        np.ma.masked_array([1, 2], [True, False]),
        torch.zeros(2).to_sparse(),
        None,
        5,
        "text",
        b"bytes",
        [1, 2],
        object(),
        np.array(["a"]),
        np.array([object()]),
        np.zeros((1,) * 17),
    ],
    ids=range(12),
)
def test_what_is_no_tensor_changes_nothing(sides: Sides, value: Any) -> None:
    sides.pass_on(np.zeros(2))
    sides.settle()
    before, names = sides.pool.stats(), os.listdir(sides.directory)
    with pytest.raises(UnsupportedTensor):
        sides.pool.publish(value)
    assert sides.pool.stats() == before
    assert os.listdir(sides.directory) == names


@pytest.mark.parametrize(
    ("shape", "dtype", "framework"),
    [
        ((2, -1), "int8", "numpy"),
        ((1,) * 17, "int8", "numpy"),
        (2, "text", "numpy"),
        (2, "int8", "jax"),
        (2, "O", "numpy"),
        (2, ["int8"], "numpy"),
        ((2, 3), {"int8": 1}, "numpy"),
    ],
)
def test_what_cannot_be_lent_changes_nothing(sides: Sides, shape: Any, dtype: str, framework: str) -> None:
    before = sides.pool.stats()
    with pytest.raises(UnsupportedTensor):
        sides.pool.empty(shape, dtype, framework)
    assert sides.pool.stats() == before


def test_a_copy_that_fails_in_the_middle_leaves_the_segment_free(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(*_: Any) -> None:
        raise MemoryError

    sides.pass_on(np.zeros(2))
    sides.settle()
    before = sides.pool.stats()
    with monkeypatch.context() as patch:
        patch.setattr(pools.tensors, "copy", copy)
        with pytest.raises(MemoryError):
            sides.pool.publish(np.ones((2, 1)))  # not the shape that the segment held before
    assert sides.pool.stats() == before
    assert sides.pass_on(np.ones(2)).tolist() == [1, 1]
    assert sides.pool.stats().created == 1


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


@pytest.mark.parametrize("is_received_again", [False, True])
@FRAMEWORKS
def test_a_view_in_a_forked_child_stays_right(sides: Sides, framework: str, is_received_again: bool) -> None:
    segment = sides.pool.publish(np.arange(1000))
    view = sides.look(segment, framework)
    wanted = list(range(1000))
    child = Child(lambda view=view: bool(view.tolist() == wanted))
    del view
    sides.settle()
    if is_received_again:
        for _ in range(3):
            assert sides.look(segment, framework).tolist() == wanted
            sides.settle()
    assert segment.words[LEASE] == LEASE_PINNED
    name = segment.name
    segment.release()
    for number in range(50):
        assert sides.pass_on(np.full(1000, number), framework).tolist() == [number] * 1000
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
    for _ in range(3):  # so that there is a short cut
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
    new = Receiver(str(sides.directory))
    for number in range(20):
        segment = sides.pool.publish(np.full(1000, number))
        assert new.receive(ref_of(segment), "numpy").tolist() == [number] * 1000
        bury()
        segment.release()
    for view in views:
        assert view.tolist() == list(range(1000))
    assert sides.pool.stats().segments == 1


# --- loans ------------------------------------------------------------------------------------------------------


def lend(sides: Sides, count: int, framework: str = "numpy") -> Any:
    loan = sides.pool.empty(count, "float32", framework)
    loan[:] = torch.arange(count) if framework == "torch" else np.arange(count)
    return loan


@FRAMEWORKS
@given(dtype=own.dtypes(), shape=own.shapes())
@settings(deadline=None, max_examples=60)
def test_a_loan_of_any_kind_is_published_where_it_lies(
    module_sides: Sides, framework: str, dtype: DType, shape: tuple[int, ...]
) -> None:
    sides = module_sides
    copied = sides.pool.stats().copied_nbytes
    loan = sides.pool.empty(shape, dtype.name, framework)
    assert own.shape_of(loan) == shape
    count = math.prod(shape)
    data = np.random.default_rng(count).integers(0, 2, (count * dtype.itemsize,)).astype(np.uint8)
    if count:
        flat = loan.reshape(-1).view(torch.uint8).numpy() if framework == "torch" else loan.reshape(-1).view(np.uint8)
        flat[:] = data
        del flat
    segment = sides.pool.publish(loan)
    for kind in ("numpy", "torch"):
        view = sides.look(segment, kind)
        assert own.shape_of(view) == shape
        assert bits(view) == data.tobytes()
    assert bits(loan) == data.tobytes()
    assert sides.pool.stats().copied_nbytes == copied
    segment.release()


def test_a_numpy_loan_is_read_only_once_published(sides: Sides) -> None:
    loan = lend(sides, 1000)
    segment = sides.pool.publish(loan)
    with pytest.raises(ValueError, match="read-only"):
        loan[0] = 5
    view = sides.look(segment)
    assert view.tolist() == loan.tolist() == list(range(1000))
    segment.release()


@pytest.mark.parametrize("count", [64, 128, 1000])
@pytest.mark.parametrize("cut", [None, slice(0, 64), slice(64, 128)])
def test_a_header_says_what_lies_there_whatever_was_lent_before(sides: Sides, cut: slice | None, count: int) -> None:
    first = np.arange(count, dtype=np.float32)
    sides.pool.publish(first).release()
    loan = sides.pool.empty(128, "int32", "numpy")
    loan[:] = 7
    if cut is not None:
        sides.pool.publish(loan[cut]).release()
    del loan
    for number in range(3):
        segment = sides.pool.publish(first + number)
        view = sides.look(segment)
        assert (view.dtype, view.tolist()) == (np.float32, (first + number).tolist())
        segment.release()
        del view
        bury()
    assert sides.pool.stats().created == 1


@FRAMEWORKS
def test_a_loan_that_is_changed_after_it_was_sent_is_sent_again_as_it_is_then(sides: Sides, framework: str) -> None:
    loan = lend(sides, 1024, framework)
    beside = loan[:2]  # so the memory itself becomes private
    first = sides.pool.publish(loan)
    beside[0] = 5
    again = sides.pool.publish(loan)
    assert float(sides.look(first)[0]) == 0
    assert float(sides.look(again)[0]) == float(loan[0]) == 5
    first.release()
    again.release()


def twin_by_numpy(loan: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(loan.numpy())


def twin_by_dlpack(loan: torch.Tensor) -> torch.Tensor:
    return torch.from_dlpack(loan)


@pytest.mark.parametrize("twin_of", [twin_by_numpy, twin_by_dlpack])
def test_a_torch_loan_that_is_sent_through_another_storage_is_copied(sides: Sides, twin_of: Any) -> None:
    loan = lend(sides, 1024, "torch")
    segment = sides.pool.publish(twin_of(loan))
    loan[3] = 99
    assert sides.look(segment).tolist() == list(range(1024))
    segment.release()


def test_what_has_no_storage_is_refused_as_ever_when_there_were_loans(sides: Sides) -> None:
    lend(sides, 1024, "torch")
    with pytest.raises(UnsupportedTensor, match="sparse"):
        sides.pool.publish(torch.eye(3).to_sparse())


@FRAMEWORKS
def test_a_size_may_be_any_whole_number_and_nothing_else(sides: Sides, framework: str) -> None:
    assert tuple(sides.pool.empty((np.int64(9), np.uint8(2)), "float32", framework).shape) == (9, 2)
    for shape in (9.0, (9.0, 2), ("9", 2), None):
        with pytest.raises(TypeError):
            sides.pool.empty(shape, "float32", framework)
    assert tuple(sides.pool.empty((9, 2), "float32", framework).shape) == (9, 2)
    bury()
    assert sides.pool.stats().free_nbytes == sides.pool.stats().nbytes


def test_at_the_budget_a_loans_memory_is_shared_again_before_it_is_filled(
    limited: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = limited(2 * PAGE, block_ms=5000)
    loan = lend(sides, 1024)
    beside = loan[1:]
    segment = sides.pool.publish(loan)
    assert segment.is_closed_off
    views = [sides.look(segment)]
    segment.release()
    del loan, beside
    other = sides.pool.publish(np.zeros(1024, np.float32))

    def let_go(_: float) -> None:
        views.clear()
        bury()

    monkeypatch.setattr(pools, "_pause", let_go)
    for number in (7, 8):
        again = sides.pool.publish(np.full(1024, number, np.float32))
        assert again is segment
        assert sides.look(again).tolist() == [number] * 1024
        bury()
        again.release()
    other.release()


def test_a_torch_loan_is_private_once_published(sides: Sides) -> None:
    loan = lend(sides, 1000, "torch")
    segment = sides.pool.publish(loan)
    loan += 100
    assert sides.look(segment).tolist() == list(range(1000))
    assert loan.tolist() == list(range(100, 1100))
    again = sides.pool.publish(loan)  # it is memory like any other now
    assert sides.look(again).tolist() == list(range(100, 1100))
    assert sides.look(segment).tolist() == list(range(1000))
    segment.release()
    again.release()


@pytest.mark.parametrize("cut", [slice(0, 512), slice(64, 512), slice(64, 128), slice(64, None), slice(None)])
@FRAMEWORKS
def test_an_aligned_part_of_a_loan_is_published_where_it_lies(sides: Sides, framework: str, cut: slice) -> None:
    loan = lend(sides, 1000, framework)
    wanted = loan[cut].tolist()
    segment = sides.pool.publish(loan[cut])
    assert sides.pool.stats().copied_nbytes == 0
    assert sides.look(segment).tolist() == sides.look(segment, "torch").tolist() == wanted
    assert tr_mmap.load(segment.path).tolist() == wanted
    segment.release()


@pytest.mark.parametrize(
    "cut",
    [lambda a: a[1:], lambda a: a[63:], lambda a: a[::2], lambda a: a.reshape(10, 100).T, lambda a: a[64:128][::3]],
)
@FRAMEWORKS
def test_another_part_of_a_loan_is_copied_and_the_loan_stays_one(
    sides: Sides, framework: str, cut: Callable[[Any], Any]
) -> None:
    loan = lend(sides, 1000, framework)
    wanted = cut(loan).tolist()
    segment = sides.pool.publish(cut(loan))
    assert sides.pool.stats().copied_nbytes > 0
    assert sides.look(segment).tolist() == wanted
    loan[:] = 5
    assert sides.look(segment).tolist() == wanted
    copied = sides.pool.stats().copied_nbytes
    whole = sides.pool.publish(loan)
    assert sides.pool.stats().copied_nbytes == copied
    assert sides.look(whole).tolist() == [5] * 1000
    segment.release()
    whole.release()


def test_a_loan_is_published_again_as_what_it_was_and_copied_as_anything_else(sides: Sides) -> None:
    loan = lend(sides, 1000)
    first = sides.pool.publish(loan)
    again = sides.pool.publish(loan)
    assert again is first
    assert ref_of(again) == ref_of(first)
    assert sides.pool.stats().copied_nbytes == 0
    others = [loan[:500], loan.reshape(10, 100), loan.view(np.int32), loan[64:]]
    for other in others:
        segment = sides.pool.publish(other)
        assert segment is not first
        assert sides.look(segment).tolist() == other.tolist()
        segment.release()
    assert sides.look(first).tolist() == list(range(1000))
    first.release()
    assert sides.look(again).tolist() == list(range(1000))
    again.release()


@FRAMEWORKS
def test_a_loan_comes_back_when_its_last_array_is_gone(sides: Sides, framework: str) -> None:
    for number in range(10):
        loan = lend(sides, 1000, framework)
        part = loan[10:20]
        del loan
        sides.settle()
        assert part.tolist() == list(range(10, 20))
        if number % 2:
            segment = sides.pool.publish(part)
            segment.release()
        del part
        sides.settle()
    stats = sides.pool.stats()
    assert stats.free_nbytes == stats.nbytes
    assert stats.segments == 2  # the loan, and the copy of an unaligned part


@FRAMEWORKS
def test_a_published_loan_is_kept_by_its_lender_and_by_its_reader(sides: Sides, framework: str) -> None:
    loan = lend(sides, 1000, framework)
    view = sides.pass_on(loan)
    for number in range(5):
        sides.pass_on(np.full(1000, number, np.float32))
    assert view.tolist() == loan.tolist() == list(range(1000))
    del loan
    for number in range(5):
        sides.pass_on(np.full(1000, number, np.float32))
    assert view.tolist() == list(range(1000))


@pytest.mark.parametrize("conjugate", [lambda t: t.conj(), lambda t: t.conj().imag, lambda t: t.imag, lambda t: -t])
def test_a_lazily_changed_view_of_a_loan_is_sent_as_it_looks(sides: Sides, conjugate: Callable[[Any], Any]) -> None:
    loan = sides.pool.empty(100, "complex64", "torch")
    loan[:] = torch.complex(torch.arange(100.0), torch.ones(100))
    changed = conjugate(loan)
    segment = sides.pool.publish(changed)
    assert sides.look(segment).tolist() == changed.tolist()
    segment.release()


def test_a_torch_loan_sent_through_numpy_cannot_be_changed_afterwards(sides: Sides) -> None:
    loan = lend(sides, 1000, "torch")
    array = loan.numpy()
    segment = sides.pool.publish(array)
    loan += 100
    array += 100
    assert sides.look(segment).tolist() == list(range(1000))
    segment.release()
    for number in range(5):
        sides.pass_on(np.full(1000, -number, np.float32))
    assert array.tolist() == loan.tolist() == list(range(200, 1200))


def test_an_array_made_of_a_torch_loan_before_it_was_sent_stays_whole(sides: Sides) -> None:
    loan = lend(sides, 1000, "torch")
    array, part = loan.numpy(), loan[500:].numpy()
    sides.pass_on(loan)
    sides.settle()
    for number in range(5):
        sides.pass_on(np.full(1000, -number, np.float32))
    assert array.tolist() == list(range(1000))
    assert part.tolist() == list(range(500, 1000))
    del loan, array
    sides.settle()
    for number in range(5):
        sides.pass_on(np.full(1000, -number, np.float32))
    assert part.tolist() == list(range(500, 1000))


def test_a_numpy_loan_sent_through_torch_cannot_be_changed_afterwards(sides: Sides) -> None:
    loan = lend(sides, 1000)
    tensor = torch.from_numpy(loan)
    segment = sides.pool.publish(tensor)
    loan[:] = 7
    tensor[5:] = 8
    assert sides.look(segment).tolist() == list(range(1000))
    segment.release()


# --- tags -------------------------------------------------------------------------------------------------------


def test_a_tags_file_can_be_loaded_by_anyone(sides: Sides, tags: Tags) -> None:
    content = np.arange(60.0).reshape(3, 4, 5)
    tags.put("a", sides.pool.publish(content))
    path = sides.directory / "a.tsr"
    assert np.array_equal(tr_mmap.load(path), content)
    header = read_header(path)
    assert (header.shape, header.dtype, header.is_segment) == ((3, 4, 5), by_name("float64"), True)
    (segment,) = sides.pool._segments.values()
    assert os.path.samefile(path, segment.path)
    tags.drop("a")
    assert not path.exists()


def test_a_tag_that_is_sent_again_lets_go_of_its_segment(sides: Sides, tags: Tags) -> None:
    for number in range(20):
        tags.put("a", sides.pool.publish(np.full(10, number)))
        assert tr_mmap.read_header(sides.directory / "a.tsr").seq == number + 1
    assert sides.pool.stats().created == 2
    assert sorted(os.listdir(sides.directory)) == ["a.tsr", "segment_0.tsr", "segment_1.tsr"]


def test_one_loan_may_have_many_tags(sides: Sides, tags: Tags) -> None:
    loan = lend(sides, 10)
    for tag in ("a", "b", "a", "a"):
        tags.put(tag, sides.pool.publish(loan))
    assert sides.pool.stats().segments == 1
    assert sorted(os.listdir(sides.directory)) == ["a.tsr", "b.tsr", "segment_0.tsr"]
    del loan
    tags.drop("a")
    assert tr_mmap.load(sides.directory / "b.tsr").tolist() == list(range(10))
    tags.drop("b")
    sides.settle()
    stats = sides.pool.stats()
    assert stats.free_nbytes == stats.nbytes


def test_a_tag_that_cannot_be_put_keeps_what_it_had(sides: Sides, tags: Tags, monkeypatch: pytest.MonkeyPatch) -> None:
    tags.put("a", sides.pool.publish(np.arange(10)))
    tags.told(Request(1, "x", "", 0, *tags.news()))
    for call in ("link", "rename"):
        with monkeypatch.context() as patch:

            def fail(*_: Any) -> None:
                raise OSError(28, "full")

            patch.setattr(system, call, fail)
            with pytest.raises(OSError, match="full"):
                tags.put("a", sides.pool.publish(np.zeros(10)))
    assert tr_mmap.load(sides.directory / "a.tsr").tolist() == list(range(10))
    assert tags.news() == ([], [])
    assert sides.pool.stats().segments == 2
    assert sides.pool.stats().free_nbytes == class_nbytes(80)
    assert sorted(os.listdir(sides.directory)) == ["a.tsr", "segment_0.tsr", "segment_1.tsr"]


def test_a_tag_that_was_never_sent_cannot_be_dropped(sides: Sides, tags: Tags) -> None:
    tags.put("a", sides.pool.publish(np.zeros(1)))
    with pytest.raises(MissingTag) as caught:
        tags.drop("b")
    assert caught.value.tag == "b"
    assert "sent are a" in str(caught.value)
    assert tags.news()[1] == []


class Told:
    """What the worker knows, from the requests that it answered."""

    def __init__(self, tags: Tags) -> None:
        self.tags = tags
        self.known: dict[str, int] = {}

    def ask(self) -> Request:
        return Request(1, "x", "", 0, *self.tags.news())

    def answer(self, request: Request) -> None:
        for ref in request.tensors:
            self.known[ref.tag] = ref.seq
        for tag in request.drops:
            self.known.pop(tag, None)
        self.tags.told(request)


def test_what_was_told_is_not_told_again(sides: Sides, tags: Tags) -> None:
    told = Told(tags)
    for tag in ("a", "b"):
        tags.put(tag, sides.pool.publish(np.zeros(1)))
    tags.drop("b")
    request = told.ask()
    assert [ref.tag for ref in request.tensors] == ["a"]
    assert request.drops == ["b"]
    assert (told.ask().tensors, told.ask().drops) == (request.tensors, request.drops)  # until it is answered
    told.answer(request)
    assert tags.news() == ([], [])
    tags.tell_again()
    assert [ref.tag for ref in told.ask().tensors] == ["a"]


@given(
    st.lists(st.tuples(st.sampled_from(["put", "drop", "ask", "answer", "die"]), st.sampled_from("ab")), max_size=20)
)
@settings(deadline=None, max_examples=150)
def test_the_worker_knows_every_tag_whatever_changes_while_it_answers(
    module_sides: Sides, steps: list[tuple[str, str]]
) -> None:
    tags = Tags(str(module_sides.directory), Segment.release)
    told = Told(tags)
    pending: Request | None = None
    for step, tag in steps:
        if step == "put":
            tags.put(tag, module_sides.pool.publish(np.zeros(1)))
        elif step == "drop" and tag in tags._segments:
            tags.drop(tag)
        elif step == "ask" and pending is None:
            pending = told.ask()
        elif step == "answer" and pending is not None:
            told.answer(pending)
            pending = None
        elif step == "die":
            pending = None
            told.known.clear()
            tags.tell_again()
    if pending is not None:
        told.answer(pending)
    told.answer(told.ask())
    assert told.known == {tag: segment.seq for tag, segment in tags._segments.items()}
    assert tags.news() == ([], [])
    for tag in list(tags._segments):
        tags.drop(tag)


LOADER = """
import sys
import numpy as np
import tr_mmap
found = 0
while found < 100:
    try:
        array = tr_mmap.load(sys.argv[1])
    except tr_mmap.TSRFormatError as error:  # a tag that changes without pause may be missed again and again
        assert error.fault in ("unpublished", "torn", "header_checksum"), error.fault
        continue
    assert array.shape == (5000,) and array.min() == array.max(), array
    found += 1
"""


def python(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(tr_mmap.__file__).parent.parent)},
    )


def test_a_stranger_finds_a_tag_whole_while_it_is_sent_again_and_again(sides: Sides, tags: Tags) -> None:
    tags.put("a", sides.pool.publish(np.zeros(5000)))
    with python(LOADER, sides.directory / "a.tsr") as loader:
        number = 0
        while loader.poll() is None:
            number += 1
            tags.put("a", sides.pool.publish(np.full(5000, number)))
            assert "a.tsr" in os.listdir(sides.directory)
    assert loader.returncode == 0


# --- another process --------------------------------------------------------------------------------------------

READER = """
import json, sys, zlib
import numpy as np
from tr_mmap.errors import StaleTensor
from tr_mmap.native import bury
from tr_mmap.protocol import TensorRef
from tr_mmap.segments import Receiver
receiver = Receiver(sys.argv[1])
views = {}
def crc(view):
    return zlib.crc32(np.ascontiguousarray(view).tobytes())
for line in sys.stdin:
    what, key, *more = json.loads(line)
    if what == "look":
        try:
            views[key] = receiver.receive(TensorRef("", *more), "numpy")
        except StaleTensor:
            print(-1, flush=True)
            continue
        print(crc(views[key]), flush=True)
    elif what == "check":
        print(crc(views[key]), flush=True)
    elif what == "drop":
        del views[key]
        bury()
        print(0, flush=True)
"""


class Reader:
    """A reader in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.popen = python(READER, directory)

    def do(self, *words: object) -> int:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(json.dumps(words).encode() + b"\n")
        self.popen.stdin.flush()
        return int(self.popen.stdout.readline())

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(BOUND_S)
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_another_process_sees_every_tensor_for_as_long_as_it_looks(sides: Sides, seed: int) -> None:
    rng = random.Random(seed)
    reader = Reader(sides.directory)
    views: dict[int, int] = {}  # number of a publication to the CRC of its content
    stale: list[TensorRef] = []
    try:
        for number in range(600):
            content = rng.randbytes(rng.choice([0, 10, 5000, 20_000, 300_000]))
            segment = sides.pool.publish(np.frombuffer(content, np.uint8))
            assert reader.do("look", number, segment.name, segment.seq) == zlib.crc32(content)
            views[number] = zlib.crc32(content)
            stale.append(ref_of(segment))
            segment.release()
            if rng.random() < 0.9:
                gone = rng.choice(list(views))
                assert reader.do("check", gone) == views.pop(gone)
                reader.do("drop", gone)
            if rng.random() < 0.1:
                old = rng.choice(stale)
                if old.seq != sides.pool._segments.get(old.segment, segment).seq:
                    assert reader.do("look", -1, old.segment, old.seq) == -1
        for number, crc in views.items():
            assert reader.do("check", number) == crc
        assert sides.pool.stats().created < 250
        sides.pool.reader_died()
        names = set(os.listdir(sides.directory))
        for number, crc in views.items():
            assert reader.do("check", number) == crc
    finally:
        reader.kill()
    assert {segment.name for segment in sides.pool._segments.values()} == names


# --- against a model --------------------------------------------------------------------------------------------


class SegmentsMachine(RuleBasedStateMachine):
    """Tags, loans and views of both frameworks, in any order. The model: each shows what it showed at first."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm", prefix=f"tr_test_{os.getpid()}_"))
        self.held: dict[str, tuple[Segment, bytes]] = {}
        self.old: list[tuple[TensorRef, bytes]] = []
        self.views: list[tuple[Any, bytes]] = []
        self.loans: list[tuple[Any, bytes, bool]] = []  # and whether it has been published
        self.counter = 0
        self.budget: int | None = None
        self.sides = Sides(self.directory)

    @initialize(budget=st.sampled_from([None, 12 * PAGE]))
    def begin(self, budget: int | None) -> None:
        self.budget = budget
        self.sides = Sides(self.directory, budget_nbytes=budget)

    def content(self, count: int) -> np.ndarray[Any, Any]:
        self.counter += 1
        return np.full(count, self.counter, np.int32)

    def hold(self, tag: str, tensor: Any) -> None:
        wanted = bits(tensor)
        before = self.sides.pool.stats()
        try:
            segment = self.sides.pool.publish(tensor)
        except OutOfSpace as error:
            # Not the error itself: with its traceback it would be a cycle that keeps the tensor.
            sizes = (error.needed_nbytes, error.free_nbytes)
        else:
            sizes = None
        if sizes is not None:
            assert self.budget is not None
            assert sizes[0] > sizes[1]
            assert self.sides.pool.stats().published == before.published
            return
        previous = self.held.pop(tag, None)
        if previous is not None:
            self.old.append((ref_of(previous[0]), previous[1]))
            previous[0].release()
        self.held[tag] = (segment, wanted)

    @rule(tag=st.sampled_from("abc"), count=st.sampled_from([0, 1, 1000, 1024, 1025, 3000]))
    def send(self, tag: str, count: int) -> None:
        self.hold(tag, self.content(count))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop_tag(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(sorted(self.held)))
        segment, content = self.held.pop(tag)
        self.old.append((ref_of(segment), content))
        segment.release()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), framework=st.sampled_from(["numpy", "torch"]))
    def look(self, data: st.DataObject, framework: str) -> None:
        segment, content = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        view = self.sides.look(segment, framework)
        assert bits(view) == content
        self.views.append((view, content))

    @precondition(lambda self: self.old)
    @rule(data=st.data(), framework=st.sampled_from(["numpy", "torch"]))
    def look_for_what_was_dropped(self, data: st.DataObject, framework: str) -> None:
        ref, content = data.draw(st.sampled_from(self.old))
        try:
            view = self.sides.receiver.receive(ref, framework)
        except StaleTensor:
            return
        assert bits(view) == content  # not filled again yet
        self.views.append((view, content))

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def drop_view(self, data: st.DataObject) -> None:
        del self.views[data.draw(st.integers(0, len(self.views) - 1))]

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def cut_view(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.views) - 1))
        part = self.views[index][0][1:]
        self.views[index] = (part, bits(part))

    @precondition(lambda self: any(isinstance(view, torch.Tensor) for view, _ in self.views))
    @rule(data=st.data())
    def write_into_view(self, data: st.DataObject) -> None:
        mine = [index for index, (view, _) in enumerate(self.views) if isinstance(view, torch.Tensor)]
        index = data.draw(st.sampled_from(mine))
        view = self.views[index][0]
        view += 1_000_000
        self.views[index] = (view, bits(view))

    @rule(count=st.sampled_from([1, 1000, 2000]), framework=st.sampled_from(["numpy", "torch"]))
    def borrow(self, count: int, framework: str) -> None:
        try:
            loan = self.sides.pool.empty(count, "int32", framework)
        except OutOfSpace:
            assert self.budget is not None
            return
        content = self.content(count)
        loan[:] = torch.from_numpy(content) if framework == "torch" else content
        self.loans.append((loan, bits(content), False))

    @precondition(lambda self: self.loans)
    @rule(data=st.data(), tag=st.sampled_from("abc"), cut=st.sampled_from([None, slice(64, None), slice(1, None)]))
    def send_loan(self, data: st.DataObject, tag: str, cut: slice | None) -> None:
        index = data.draw(st.integers(0, len(self.loans) - 1))
        loan, content, is_sent = self.loans[index]
        copied = self.sides.pool.stats().copied_nbytes
        self.hold(tag, loan if cut is None else loan[cut])
        is_sent |= self.sides.pool.stats().copied_nbytes == copied
        self.loans[index] = (loan, content, is_sent)

    @precondition(lambda self: self.loans)
    @rule(data=st.data())
    def write_into_loan(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.loans) - 1))
        loan, _, is_sent = self.loans[index]
        try:
            loan += 1_000_000
        except ValueError:
            assert is_sent
            assert isinstance(loan, np.ndarray)
        self.loans[index] = (loan, bits(loan), is_sent)

    @precondition(lambda self: self.loans)
    @rule(data=st.data())
    def drop_loan(self, data: st.DataObject) -> None:
        del self.loans[data.draw(st.integers(0, len(self.loans) - 1))]

    @rule()
    def settle(self) -> None:
        self.sides.settle()

    @invariant()
    def everything_shows_what_it_should(self) -> None:
        for shown, content in self.views:
            assert bits(shown) == content
        for shown, content, _ in self.loans:
            assert bits(shown) == content

    @invariant()
    def the_books_are_right(self) -> None:
        stats = self.sides.pool.stats()
        names = {segment.name for segment in self.sides.pool._segments.values()}
        assert names == set(os.listdir(self.directory))
        assert stats.segments == len(names)
        assert stats.nbytes == sum(segment.capacity for segment in self.sides.pool._segments.values())
        assert self.budget is None or stats.nbytes <= self.budget

    def teardown(self) -> None:
        try:
            for segment, content in self.held.values():
                assert bits(self.sides.look(segment)) == content
                segment.release()
            self.views.clear()
            self.loans.clear()
            self.sides.settle()
            stats = self.sides.pool.stats()
            assert stats.free_nbytes == stats.nbytes
            for segment in self.sides.pool._segments.values():
                assert segment.words[LEASE] == LEASE_FREE
            self.sides.close()
            assert os.listdir(self.directory) == []
        finally:
            shutil.rmtree(self.directory)


TestSegmentsAgainstAModel = SegmentsMachine.TestCase
TestSegmentsAgainstAModel.settings = settings(deadline=None, max_examples=120, stateful_step_count=40)
