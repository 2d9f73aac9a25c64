"""Arrays over segments, as the extension and plain Python make them: one suite for both."""

from __future__ import annotations

import gc
import importlib.util
import math
import mmap
import os
import sys
import threading
import weakref
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tr_mmap.native import reference

IMPLEMENTATIONS: list[Any] = [reference]
if importlib.util.find_spec("tr_mmap.native._native") is not None:
    from tr_mmap.native import _native

    IMPLEMENTATIONS.append(_native)

SEQ, LAYOUT, LEASE = 8, 9, 10  # words of a segment's header
FREE, HELD, PINNED = 0, 1, 2
OFFSET = 4096
NBYTES = 4 * OFFSET
FLOATS = ("float32", (8,), OFFSET)  # what a pool calls a layout


@pytest.fixture(params=IMPLEMENTATIONS, ids=["plain", "compiled"][: len(IMPLEMENTATIONS)])
def native(request: pytest.FixtureRequest) -> Any:
    return request.param


class Sides:
    """A segment that both sides see; its layout is number 1, its payload published as number 5."""

    def __init__(self, native: ModuleType) -> None:
        self.file = memoryview(mmap.mmap(-1, NBYTES))
        self.words = self.file.cast("Q")
        self.payload = np.frombuffer(self.file, np.float32, 8, OFFSET)
        self.payload[:] = range(8)
        self.owned = native.OwnerSegment(self.file)
        self.leased = native.ReaderSegment(self.file, self.file.toreadonly())
        self.drain = native.drain
        self.words[LAYOUT] = 1
        self.owned.stamp(5)

    def set_layout(self) -> None:
        self.leased.set_layout(1, np.dtype("f4"), (8,), OFFSET)

    @property
    def lease(self) -> int:
        self.drain()
        return self.words[LEASE]


@pytest.fixture
def sides(native: Any) -> Sides:
    return Sides(native)


# -- readers -----------------------------------------------------------------------------------------------------------


def test_the_lease_is_held_until_the_last_array_over_the_segment_is_gone(sides: Sides) -> None:
    sides.set_layout()
    first = sides.leased.view(5)
    second = sides.leased.view(5)
    part = first[2:4].reshape(2, 1)
    assert first.tolist() == list(range(8))
    assert (sides.lease, sides.leased.views) == (HELD, 2)
    del first
    assert sides.lease == HELD
    del second
    assert (sides.lease, sides.leased.views) == (HELD, 1)
    assert part.tolist() == [[2], [3]]
    del part
    assert (sides.lease, sides.leased.views) == (FREE, 0)


def test_a_view_of_shared_memory_cannot_be_written(sides: Sides) -> None:
    sides.set_layout()
    view = sides.leased.view(5)
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True


def test_another_number_is_no_view_and_holds_nothing(sides: Sides) -> None:
    sides.set_layout()
    for seq in (0, 4, 6, -1, 2**64 - 1, 2**64, 2**200):
        with pytest.raises(LookupError):
            sides.leased.view(seq)
        assert sides.lease == FREE
    view = sides.leased.view(5)
    with pytest.raises(LookupError):
        sides.leased.view(4)
    assert sides.lease == HELD
    del view


def test_a_layout_that_was_not_learnt_is_no_view_and_holds_nothing(sides: Sides) -> None:
    assert sides.leased.view(5) is None
    assert sides.lease == FREE
    sides.set_layout()
    view = sides.leased.view(5)
    sides.words[LAYOUT] = 2
    assert sides.leased.view(5) is None
    assert sides.lease == HELD
    del view
    sides.leased.set_layout(2, np.dtype("u1"), (2, 3), OFFSET + 4)
    assert sides.leased.view(5).shape == (2, 3)


@given(
    dtype=st.sampled_from(["u1", "i2", "f4", "f8", "c16", "?"]),
    shape=st.lists(st.integers(0, 5), max_size=5).map(tuple),
    offset=st.integers(0, 64).map(lambda count: OFFSET + 16 * count),
)
@settings(deadline=None)
def test_a_view_is_as_the_header_says(dtype: str, shape: tuple[int, ...], offset: int) -> None:
    assume(offset + np.dtype(dtype).itemsize * math.prod(shape) <= NBYTES)
    for native in IMPLEMENTATIONS:
        sides = Sides(native)
        wanted = np.ndarray(shape, dtype, sides.file, offset)
        try:
            sides.leased.set_layout(1, wanted.dtype, shape, offset)
        except ValueError:
            assert offset + wanted.nbytes > NBYTES
            continue
        view = sides.leased.view(5)
        assert (view.dtype, view.shape, view.flags.c_contiguous) == (wanted.dtype, shape, True)
        assert view.tobytes() == wanted.tobytes()
        assert np.shares_memory(view, wanted) == bool(wanted.nbytes)


@pytest.mark.parametrize(
    ("shape", "offset"),
    [((NBYTES,), OFFSET), ((-1,), OFFSET), ((2**62, 2**62), 0), ((1,), -4), ((1,), NBYTES), ((1,), 2**70)],
)
def test_a_layout_that_does_not_fit_into_the_file_is_refused(sides: Sides, shape: Any, offset: int) -> None:
    for learn in (
        lambda: sides.leased.set_layout(1, np.dtype("f4"), shape, offset),
        lambda: sides.owned.set_layout(("float32", shape, offset), np.dtype("f4")),
    ):
        with pytest.raises((ValueError, OverflowError)):
            learn()
    assert sides.leased.view(5) is None
    assert sides.owned.layout is None
    with pytest.raises(ValueError, match="no layout"):
        sides.owned.loan()


def test_a_private_view_is_written_to_alone_and_its_mapping_is_used_again(sides: Sides) -> None:
    sides.set_layout()
    mapping = memoryview(bytearray(sides.file))
    view = sides.leased.view(5, mapping)
    assert sides.leased.spare is None
    view[0] = 99
    assert sides.payload[0] == 0
    part = view[1:]
    del view
    assert sides.lease == HELD
    del part
    assert sides.lease == FREE
    assert sides.leased.spare is mapping
    with pytest.raises(ValueError, match="whole file"):
        sides.leased.view(5, mapping[:-1])
    sides.leased.spare = None  # taken out, to be used again
    view = sides.leased.view(5, mapping)
    del view
    assert sides.lease == FREE
    assert sides.leased.spare is mapping


def test_a_pinned_lease_is_never_given_back(sides: Sides) -> None:
    sides.set_layout()
    view = sides.leased.view(5)
    sides.leased.is_pinned = True
    del view
    assert sides.lease == PINNED
    assert sides.owned.claim() == PINNED


def test_a_childs_views_are_its_parents_lease(sides: Sides) -> None:
    sides.set_layout()
    view = sides.leased.view(5)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert view.tolist() == list(range(8))
            del view
            gc.collect()
            code = 0 if sides.lease == HELD else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert sides.lease == HELD
    del view
    assert sides.lease == FREE


def test_no_thread_takes_the_lease_from_under_anothers_view(native: Any) -> None:
    sides = Sides(native)
    sides.set_layout()
    lost: list[int] = []

    def look() -> None:
        for _ in range(3000):
            view = sides.leased.view(5)
            native.drain()
            if sides.words[LEASE] != HELD:
                lost.append(1)
            del view

    previous_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=look) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(previous_s)
    assert not lost
    assert sides.lease == FREE


# -- owners ------------------------------------------------------------------------------------------------------------


def test_a_segment_goes_back_to_its_shelf_with_its_last_hold(sides: Sides) -> None:
    shelf: list[Any] = []
    sides.owned.free_list = shelf
    sides.owned.holds = 2
    sides.owned.release()
    assert not shelf
    sides.owned.release()
    assert shelf == [sides.owned]
    sides.owned.free_list = None
    sides.owned.holds = 1
    sides.owned.release()
    assert shelf == [sides.owned]


def test_a_loan_is_one_hold_until_its_last_view_is_gone(sides: Sides) -> None:
    owned, shelf = sides.owned, []
    owned.free_list = shelf
    owned.set_layout(FLOATS, np.dtype("f4"))
    loan = owned.loan()
    loan[:] = 7
    assert sides.payload.tolist() == [7] * 8
    assert (owned.holds, owned.loaned_layout, owned.is_published) == (1, FLOATS, False)
    part = loan.reshape(2, 4)[1]
    del loan
    sides.drain()
    assert not shelf
    del part
    sides.drain()
    assert (shelf, owned.holds, owned.loaned_layout) == ([owned], 0, None)


class Child(np.ndarray):
    """A subclass, whose views have another array as their base."""


def test_an_array_of_a_loan_is_known_however_it_was_made(native: Any, sides: Sides) -> None:
    sides.owned.set_layout(FLOATS, np.dtype("f4"))
    loan = sides.owned.loan()
    for array in (loan, loan[2:], loan.reshape(2, 4).T, loan.view(Child)[1:], loan.view("u1"), loan[:0]):
        assert native.loan_of(array) is sides.owned
    sides.set_layout()
    for other in (loan.copy(), sides.payload, sides.leased.view(5), np.zeros(3), 3, None, "text"):
        assert native.loan_of(other) is None


def no_others(loan: np.ndarray) -> list[np.ndarray]:
    return []


@pytest.mark.parametrize(
    ("sent", "others", "is_writable_still"),
    [
        (lambda loan: loan, no_others, False),
        (lambda loan: loan[:4], no_others, False),
        (lambda loan: loan.view(Child)[1:], no_others, False),
        (lambda loan: loan, lambda loan: [loan[1:]], True),
        (lambda loan: loan[:4], lambda loan: [loan[4:]], True),
        (lambda loan: loan.base, no_others, True),  # whoever has that may have more
    ],
    ids=["whole", "part", "subclass", "whole-beside", "part-beside", "root"],
)
def test_what_is_sealed_cannot_be_written_and_other_views_are_told_of(
    native: Any, sides: Sides, sent: Any, others: Any, is_writable_still: bool
) -> None:
    sides.owned.set_layout(FLOATS, np.dtype("f4"))
    loan = sides.owned.loan()
    array, beside = sent(loan), others(loan)
    assert native.freeze(array) == is_writable_still
    for each in (array, loan, loan.base, loan[:]):
        assert not each.flags.writeable
    assert [each.flags.writeable for each in beside] == [True] * len(beside)
    with pytest.raises(TypeError):
        native.freeze(np.zeros(3))


def test_a_segment_and_its_pool_are_freed_together(native: Any) -> None:
    class Pool(native.FreeLists):  # type: ignore[misc]
        """Weakly referable."""

    class Segment(native.OwnerSegment):  # type: ignore[misc]
        """Weakly referable."""

    pool = Pool()
    segment = Segment(memoryview(bytearray(NBYTES)))
    segment.free_list = pool.free.setdefault(NBYTES, [])
    segment.pool_token = pool
    segment.free_list.append(segment)
    watched = [weakref.ref(pool), weakref.ref(segment)]
    del pool, segment
    gc.collect()
    assert [each() for each in watched] == [None, None]


# -- fast paths --------------------------------------------------------------------------------------------------------


class Stock:
    """A pool with one free segment, whose header says float32 x 8."""

    def __init__(self, native: Any) -> None:
        self.sides = Sides(native)
        self.segment = self.sides.owned
        self.pool = native.FreeLists()
        self.segment.pool_token = self.pool.pool_token
        self.segment.free_list = self.free_list = self.pool.free.setdefault(NBYTES - OFFSET, [])
        self.segment.set_layout(FLOATS, np.dtype("f4"))
        self.segment.requested_dtype = "float32"
        self.segment.is_header_current = True
        self.free_list.append(self.segment)
        self.pool.seq = 5

    def state(self) -> tuple[Any, ...]:
        pool, segment = self.pool, self.segment
        counters = pool.seq, pool.takes, pool.copied_nbytes
        return (
            *counters,
            segment.seq,
            segment.holds,
            segment.is_published,
            list(self.free_list),
            bytes(self.sides.file[OFFSET:]),
        )


@pytest.fixture
def stock(native: Any) -> Stock:
    return Stock(native)


UNLIKE = {
    "type": np.zeros(8, np.int32),
    "shape": np.zeros((2, 4), np.float32),
    "strides": np.zeros(16, np.float32)[::2],
    "order": np.zeros(8, ">f4"),
    "class": np.zeros(8, np.float32).view(Child),
    "kind": [0.0] * 8,
}


@pytest.mark.parametrize("tensor", UNLIKE.values(), ids=UNLIKE)
def test_what_is_not_like_the_last_tensor_takes_the_slow_path(stock: Stock, tensor: Any) -> None:
    before = stock.state()
    assert stock.pool.quick_publish(tensor) is None
    assert stock.state() == before


def test_what_is_like_the_last_tensor_is_published_whole_or_not_at_all(native: Any, stock: Stock) -> None:
    before = stock.state()
    segment = stock.pool.quick_publish(np.full(8, 3, np.float32))
    if native is reference:
        assert segment is None
        assert stock.state() == before
        return
    assert segment is stock.segment
    payload = np.full(8, 3, np.float32).tobytes()
    assert stock.state() == (6, 1, 32, 6, 1, False, [], payload.ljust(NBYTES - OFFSET, b"\0"))
    assert (stock.sides.words[SEQ], stock.sides.words[LAYOUT]) == (6, 1)


def test_a_segment_that_somebody_looks_at_or_whose_header_says_other_is_no_fast_path(stock: Stock) -> None:
    tensor = np.zeros(8, np.float32)
    stock.sides.set_layout()
    view = stock.sides.leased.view(5)
    for is_taken in (lambda: stock.pool.quick_publish(tensor), lambda: stock.pool.quick_loan(8, "float32", "numpy")):
        assert is_taken() is None
        assert [*stock.free_list, *stock.pool.viewed] == [stock.segment]  # perhaps set aside for the pool to look at
        stock.free_list[:] = [stock.segment]
        stock.pool.viewed.clear()
    assert view.tolist() == list(range(8))
    del view
    stock.sides.drain()
    stock.segment.is_header_current = False
    assert stock.pool.quick_publish(tensor) is None
    stock.segment.clear_layout()
    assert stock.pool.quick_loan(8, "float32", "numpy") is None
    assert stock.free_list == [stock.segment]


def test_a_loan_like_the_last_goes_round_without_a_copy(native: Any, stock: Stock) -> None:
    for seq, shape in ((6, 8), (7, (8,)), (8, (8,))):
        loan = stock.pool.quick_loan(shape, "".join(["float", "32"]), "numpy")
        if native is reference:
            assert loan is None
            return
        loan[:] = seq
        assert stock.pool.quick_publish(loan) is stock.segment
        assert not loan.flags.writeable
        assert (stock.segment.seq, stock.segment.holds, stock.segment.is_published) == (seq, 2, True)
        assert stock.pool.quick_publish(loan) is stock.segment  # again: the same tensor
        assert (stock.segment.seq, stock.segment.holds) == (seq, 3)
        stock.segment.release()
        stock.segment.release()
        assert not stock.free_list
        del loan
        assert stock.free_list == [stock.segment]
    assert stock.pool.copied_nbytes == 0


class Eight(int):
    """No plain int: it might run anybody's code."""


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((8, 1), "float32"),
        ((2, 4), "float32"),
        (7, "float32"),
        (-8, "float32"),
        (2**70, "float32"),
        ((8,) * 17, "float32"),
        (Eight(8), "float32"),
        ((Eight(8),), "float32"),
        ([8], "float32"),
        (8.0, "float32"),
        (None, "float32"),
        (8, "float64"),
        (8, np.dtype("f4")),  # the same type, but nobody has called it so yet
        (8, None),
    ],
)
def test_another_wish_than_the_last_takes_the_slow_path(stock: Stock, shape: Any, dtype: Any) -> None:
    before = stock.state()
    assert stock.pool.quick_loan(shape, dtype, "numpy") is None
    assert stock.state() == before


def test_a_pool_that_has_segments_to_give_up_does_that_first(native: Any, stock: Stock) -> None:
    stock.pool.to_retire.append(native.OwnerSegment(memoryview(mmap.mmap(-1, NBYTES))))
    before = stock.state()
    assert stock.pool.quick_loan(8, "float32", "numpy") is None
    assert stock.pool.quick_publish(np.zeros(8, np.float32)) is None
    assert stock.state() == before


def test_a_loan_that_others_can_still_write_to_takes_the_slow_path(native: Any, stock: Stock) -> None:
    stock.segment.free_list.clear()
    loan = stock.segment.loan()
    beside = loan[:2]
    for array in (loan, beside, loan[4:]):
        assert stock.pool.quick_publish(array) is None
    assert native.FreeLists().quick_publish(loan) is None  # nor is it another pool's
    assert (stock.pool.seq, stock.segment.holds, stock.segment.is_published) == (5, 1, False)
