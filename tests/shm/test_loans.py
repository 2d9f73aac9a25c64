"""Loans: published where they lie, nobody's to change afterwards, and back when their last array is gone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import strategies as own
import torch
from hypothesis import given, settings
from segment_sides import PAGE, Sides, lend, ref_of
from strategies import bits
from support import FRAMEWORKS

import tr_mmap
from tr_mmap.errors import UnsupportedTensor
from tr_mmap.native import drain
from tr_mmap.tsr.dtypes import DType
from tr_mmap.wire.segments import PRIVATE_COPY_NBYTES

# --- loans ------------------------------------------------------------------------------------------------------


@FRAMEWORKS
@given(dtype=own.dtypes(), shape=own.shapes())
@settings(deadline=None, max_examples=60)
def test_a_loan_of_any_kind_is_published_where_it_lies(
    module_sides: Sides, framework: str, dtype: DType, shape: tuple[int, ...]
) -> None:
    sides = module_sides
    count = math.prod(shape)
    if framework == "torch" and shape and count:  # a small one is copied instead
        shape = (shape[0] * (1 + PRIVATE_COPY_NBYTES // (count * dtype.itemsize)), *shape[1:])
        count = math.prod(shape)
    copied = sides.pool.stats().copied_nbytes
    loan = sides.pool.empty(shape, dtype.name, framework)
    assert own.shape_of(loan) == shape
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
    assert sides.pool.stats().copied_nbytes == copied + (data.nbytes if framework == "torch" and not shape else 0)
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
        drain()
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
    for shape in (9.0, (9.0, 2), ("9", 2), None, True, (True, 2), [2, False], {}, {3}, frozenset({3}), {3: 4}):
        with pytest.raises(TypeError):
            sides.pool.empty(shape, "float32", framework)
    assert tuple(sides.pool.empty((9, 2), "float32", framework).shape) == (9, 2)
    drain()
    assert sides.pool.stats().free_nbytes == sides.pool.stats().nbytes


def test_at_the_budget_a_loans_memory_is_shared_again_before_it_is_filled(
    limited: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = limited(2 * PAGE, block_ms=5000)
    loan = lend(sides, 1024)
    beside = loan[1:]
    segment = sides.pool.publish(loan)
    assert segment.is_private
    views = [sides.look(segment)]
    segment.release()
    del loan, beside
    other = sides.pool.publish(np.zeros(1024, np.float32))

    def let_go(_: float) -> None:
        views.clear()
        drain()

    sides.pool.pause = let_go
    for number in (7, 8):
        again = sides.pool.publish(np.full(1024, number, np.float32))
        assert again is segment
        assert sides.look(again).tolist() == [number] * 1024
        drain()
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


@pytest.mark.parametrize("cut", [slice(0, 20_480), slice(64, 20_480), slice(64, 128), slice(64, None), slice(None)])
@FRAMEWORKS
def test_an_aligned_part_of_a_loan_is_published_where_it_lies(sides: Sides, framework: str, cut: slice) -> None:
    loan = lend(sides, 30_000, framework)
    wanted = loan[cut].tolist()
    segment = sides.pool.publish(loan[cut])
    is_copied = framework == "torch" and len(wanted) < 20_000  # see PRIVATE_COPY_NBYTES
    assert sides.pool.stats().copied_nbytes == (4 * len(wanted) if is_copied else 0)
    assert sides.look(segment).tolist() == sides.look(segment, "torch").tolist() == wanted
    assert tr_mmap.load(segment.path).tolist() == wanted
    segment.release()


@pytest.mark.parametrize(
    "cut",
    [lambda a: a[1:], lambda a: a[63:], lambda a: a[::2], lambda a: a.reshape(300, 100).T, lambda a: a[64:128][::3]],
)
@FRAMEWORKS
def test_another_part_of_a_loan_is_copied_and_the_loan_stays_one(
    sides: Sides, framework: str, cut: Callable[[Any], Any]
) -> None:
    loan = lend(sides, 30_000, framework)
    wanted = cut(loan).tolist()
    segment = sides.pool.publish(cut(loan))
    assert sides.pool.stats().copied_nbytes > 0
    assert sides.look(segment).tolist() == wanted
    loan[:] = 5
    assert sides.look(segment).tolist() == wanted
    copied = sides.pool.stats().copied_nbytes
    whole = sides.pool.publish(loan)
    assert sides.pool.stats().copied_nbytes == copied
    assert sides.look(whole).tolist() == [5] * 30_000
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


@pytest.mark.parametrize("shape", [b"23", "23", bytearray(b"23"), (0, 1 << 62), (1 << 40, 0, 1 << 40)], ids=repr)
@FRAMEWORKS
def test_a_shape_that_no_tensor_has_is_refused_as_such(sides: Sides, shape: Any, framework: str) -> None:
    for _ in range(2):  # nothing of it is remembered
        with pytest.raises(UnsupportedTensor):
            sides.pool.empty(shape, "float32", framework)
    assert os.listdir(sides.directory) == []
