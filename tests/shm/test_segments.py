"""Segments: a tensor arrives as it was, a view never changes while it lives, memory is used again."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import strategies as own
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_sides import PAGE, Sides, ref_of
from strategies import bits
from support import FRAMEWORKS, check_open_files, open_files

import tr_mmap
from tr_mmap.errors import BadMessage, Fault, StaleTensor, TSRFormatError
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.shm.size_classes import class_nbytes
from tr_mmap.wire.header import LEASE_FREE, LEASE_WORD, SEQ_RETIRED

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
    view = sides.pass_on(np.arange(10_000), framework)
    for number in range(20):
        assert sides.pass_on(np.full(10_000, -number), framework).tolist() == [-number] * 10_000
    assert view.tolist() == list(range(10_000))
    part = view[10:20][::2]
    del view
    for number in range(20):
        assert sides.pass_on(np.full(10_000, -number), framework).tolist() == [-number] * 10_000
    assert part.tolist() == [10, 12, 14, 16, 18]
    assert sides.pool.stats().created == 2
    del part
    sides.settle()
    for number in range(5):
        sides.pass_on(np.full(10_000, -number), framework)
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
            sides.receiver.receive(first.segment, first.seq, framework, first.tag)
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
    before = open_files()
    with pytest.raises(StaleTensor):
        sides.receiver.receive(name, seq, "numpy")
    check_open_files(before)
    assert segment.words[LEASE_WORD] == LEASE_FREE
    segment.release()


@pytest.mark.parametrize("name", ["../segments/segment_0.tsr", "status.txt", "", ".", "/", "segment_0.tsr\0"])
def test_only_a_segments_name_is_ever_opened(sides: Sides, name: str) -> None:
    segment = sides.pool.publish(np.arange(10))
    with pytest.raises(BadMessage):
        sides.receiver.receive(name, 1, "numpy")
    segment.release()


def test_a_segment_that_is_being_filled_is_stale(sides: Sides) -> None:
    segment = sides.pool.publish(np.arange(10))
    old = ref_of(segment)
    segment.release()
    taken, _ = sides.pool._take(80)
    assert taken is segment
    with pytest.raises(StaleTensor):
        sides.receiver.receive(old.segment, old.seq, "numpy", old.tag)


def test_a_plain_file_in_a_segments_place_is_no_segment(sides: Sides) -> None:
    path = sides.directory / "result_0.tsr"
    try:
        tr_mmap.save(path, np.zeros(2000))
        with pytest.raises(TSRFormatError) as caught:
            sides.receiver.receive(path.name, 1, "numpy")
        assert caught.value.fault in (Fault.BAD_FLAGS, Fault.BAD_RESERVED)  # the lease is no part of a plain file
        path.write_bytes(b"short")
        with pytest.raises(StaleTensor):
            SegmentReader(str(sides.directory)).receive(path.name, 1, "numpy")
    finally:
        path.unlink()


def test_many_segments_keep_no_descriptors(sides: Sides) -> None:
    before = open_files()
    segments = [sides.pool.publish(np.full(100, number)) for number in range(200)]
    views = [sides.look(each, framework) for each in segments for framework in ("numpy", "torch")]
    check_open_files(before)
    assert [int(view[7]) for view in views] == [number for number in range(200) for _ in range(2)]
    for each in segments:
        each.release()
