"""The memory of segments: given back when nobody needs it, within a budget, and whole after whatever fails."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_sides import PAGE, Sides
from support import BOUND_S

import tr_mmap
from tr_mmap.base import system
from tr_mmap.errors import BadMessage, OutOfSpace, StaleTensor, TSRFormatError, UnsupportedTensor
from tr_mmap.native import drain
from tr_mmap.shm import pool as pools
from tr_mmap.wire.segments import HEAD_NBYTES

# --- giving memory back -----------------------------------------------------------------------------------------


def test_a_retired_segment_gives_its_memory_back_at_once(limited: Callable[..., Sides]) -> None:
    sides = limited(4 << 20)
    segment = sides.pool.publish(np.ones(3 << 20, np.uint8))
    sides.look(segment)  # so the reader has it mapped
    path = sides.directory / "witness"
    os.link(segment.path, path)
    assert path.stat().st_blocks * 512 >= 3 << 20
    segment.release()
    drain()
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
            drain()

    sides.pool.pause = pause
    assert sides.pass_on(np.full(PAGE, 7, np.uint8))[0] == 7
    assert len(pauses) == 3
    assert views[0][0] == 0


def test_a_full_file_system_leaves_everything_as_it_was(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    held = sides.pool.publish(np.arange(10))
    before = sides.pool.stats()

    def allocate(fd: int, nbytes: int, *, directory: str, first: Any = None) -> None:
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

    def allocate(fd: int, nbytes: int, *, directory: str, first: Any = None) -> None:
        if os.listdir(directory) == ["segment_0.tsr", "segment_1.tsr"][::-1] or len(os.listdir(directory)) == 2:
            raise OutOfSpace("full", needed_nbytes=nbytes, free_nbytes=0)
        real(fd, nbytes, directory=directory, first=first)

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
        (None, "int8", "numpy"),
        (2, "int8", "jax"),
        (2, "O", "numpy"),
        (2, ["int8"], "numpy"),
        ((2, 3), {"int8": 1}, "numpy"),
    ],
)
def test_what_cannot_be_lent_changes_nothing(sides: Sides, shape: Any, dtype: str, framework: str) -> None:
    before = sides.pool.stats()
    with pytest.raises(BadMessage if framework == "jax" else UnsupportedTensor):
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
