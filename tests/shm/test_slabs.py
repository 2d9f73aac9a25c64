"""Many small segments: they share files, cost the same however many there are, and keep every promise of a segment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_sides import PAGE, Sides, ref_of
from support import FRAMEWORKS

import tr_mmap
from tr_mmap.errors import HostilePath, OutOfSpace, StaleTensor, TSRFormatError
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.shm.segment import Segment
from tr_mmap.shm.slabs import place_of, slot_name
from tr_mmap.wire.header import LEASE_FREE, LEASE_PINNED, LEASE_WORD
from tr_mmap.wire.segments import FEW_SEGMENTS, LOOKS_PER_TAKE, MAX_SLOTS, MAX_UNVIEWED


def publish(sides: Sides, tensor: Any) -> Segment:
    return sides.pool.publish(tensor, may_share=True)


def pass_on(sides: Sides, tensor: Any, framework: str = "numpy") -> Any:
    """Publish, receive, and let the owner's hold go."""
    segment = publish(sides, tensor)
    try:
        return sides.look(segment, framework)
    finally:
        segment.release()


def count_mappings(directory: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(directory))


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 99, MAX_SLOTS])
def test_the_name_of_a_slot_says_where_it_is(slots: int) -> None:
    for slot in {0, 1 % slots, slots - 1}:
        place = place_of(slot_name("result_7", slot, slots))
        assert (place.file, place.slot, place.slots) == ("result_7.tsr", slot, slots)


@pytest.mark.parametrize(
    "name",
    [
        *("result_7.tsr", "a.b.tsr", "a.1of.tsr", "a.of2.tsr", "a.2of2.tsr", "a.01of2.tsr", "a.1of02.tsr"),
        *(
            ".1of2.tsr",
            "a.1of257.tsr",
            "a.1of99999999999999999999.tsr",
            "a.\N{ARABIC-INDIC DIGIT ONE}of2.tsr",
            "a.1of2",
        ),
    ],
)
def test_any_other_name_is_that_of_a_file(name: str) -> None:
    assert place_of(name) == (name, 0, 0)


# --- what they cost ---------------------------------------------------------------------------------------------


@FRAMEWORKS
def test_thousands_of_kept_views_need_few_mappings_and_files(sides: Sides, framework: str) -> None:
    views = [pass_on(sides, np.full(3, number), framework) for number in range(5000)]
    assert count_mappings(sides.directory) < 5000 / 20
    assert len(os.listdir(sides.directory)) < 5000 / 20
    assert [view.tolist() for view in views] == [[number] * 3 for number in range(5000)]
    stats = sides.pool.stats()
    assert stats.nbytes == sum(path.stat().st_size // 2 for path in sides.directory.iterdir())  # the rest are headers


def test_a_few_tensors_make_no_slab(sides: Sides) -> None:
    held = [publish(sides, np.zeros(1)) for _ in range(FEW_SEGMENTS)]
    assert {os.path.getsize(each.path) for each in held} == {2 * PAGE}
    assert sides.pool.stats().nbytes == FEW_SEGMENTS * PAGE
    for each in held:
        each.release()


def test_at_most_a_third_of_the_small_segments_is_made_in_advance(sides: Sides) -> None:
    held = []
    for number in range(1, 3000):
        held.append(publish(sides, np.zeros(1)))
        assert sides.pool.stats().segments <= max(1.5 * number, FEW_SEGMENTS + 1)
    for each in held:
        each.release()


def test_a_take_looks_at_a_bounded_number_of_segments(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    is_viewed = Segment.is_viewed.fget
    assert is_viewed is not None

    def counted(segment: Segment) -> bool:
        nonlocal looks
        looks += 1
        return bool(is_viewed(segment))

    monkeypatch.setattr(Segment, "is_viewed", property(counted))
    views, most = [], 0
    for number in range(2000):
        before = looks
        views.append(pass_on(sides, np.full(3, number)))
        views.append(sides.pass_on(np.full(3, number)))
        most = max(most, looks - before)
    # One take of a slot and one of a file; a look at the idle ones, once in a while, sees a few for each take since.
    assert most <= 3 * LOOKS_PER_TAKE + LOOKS_PER_TAKE * 200
    assert looks <= 2 * 2000 * 3 * LOOKS_PER_TAKE


def test_memory_is_found_again_within_a_bounded_number_of_takes(sides: Sides) -> None:
    views = [pass_on(sides, np.full(3, number)) for number in range(1000)]
    views += [sides.pass_on(np.full(3, number)) for number in range(1000)]
    sides.settle()
    created, before = sides.pool.stats().created, sides.pool.stats()
    assert before.free_nbytes == before.nbytes  # none has a hold here
    kept = views[::2]
    views.clear()
    for number in range(1900 // LOOKS_PER_TAKE):
        sides.settle()
        pass_on(sides, np.zeros(number % 7))
        kept.append(sides.pass_on(np.zeros(number % 7)))
    assert sides.pool.stats().created <= created + 20


def test_a_reader_unmaps_what_it_has_not_used_for_longest(sides: Sides) -> None:
    held = [sides.pool.publish(np.full(3, number)) for number in range(3 * MAX_UNVIEWED // 2)]
    kept = sides.look(held[0])
    for each in held:
        sides.look(each)
        assert sides.look(held[1]).tolist() == [1] * 3  # one that is always in use
        sides.settle()
    assert len(sides.receiver.mapped) <= MAX_UNVIEWED + 2 * LOOKS_PER_TAKE
    assert {held[0].name, held[1].name} <= set(sides.receiver.mapped)
    assert kept.tolist() == [0] * 3
    for number in (0, 5, 1000, len(held) - 1):
        assert sides.look(held[number]).tolist() == [number] * 3
    for each in held:
        each.release()


# --- the promises of a segment ----------------------------------------------------------------------------------


def slots(sides: Sides, count: int = 4) -> list[Segment]:
    """Slots of one slab, each published and held; the first is the slab's first."""
    held = [publish(sides, np.full(3, -1)) for _ in range(FEW_SEGMENTS)]
    found = [publish(sides, np.full(3, number)) for number in range(count)]
    assert {each.path for each in found} == {found[0].path}
    assert found[0].file_offset == 0
    for each in held:
        each.release()
    return found


@FRAMEWORKS
def test_a_slot_is_left_alone_for_as_long_as_a_view_lives(sides: Sides, framework: str) -> None:
    found = slots(sides)
    views = [sides.look(each, framework) for each in found]
    for each in found:
        each.release()
    for number in range(500):
        assert pass_on(sides, np.full(3, 100 + number)).tolist() == [100 + number] * 3
        sides.settle()
    assert [view.tolist() for view in views] == [[number] * 3 for number in range(4)]


def test_a_store_into_a_torch_view_of_a_slot_stays_with_it(sides: Sides) -> None:
    found = slots(sides)
    first = sides.look(found[1], "torch")
    first += 100
    assert first.tolist() == [101] * 3
    assert sides.look(found[1]).tolist() == sides.look(found[1], "torch").tolist() == [1] * 3
    assert [sides.look(each).tolist() for each in found] == [[number] * 3 for number in range(4)]


def test_every_dtype_and_shape_lies_in_a_slot(sides: Sides) -> None:
    slots(sides)
    for tensor in (
        np.zeros(()),
        np.zeros((0, 4)),
        torch.ones(3, dtype=torch.bfloat16),
        np.arange(512.0),
        np.ones(1, ">i4"),
    ):
        for framework in ("numpy", "torch"):
            view = pass_on(sides, tensor, framework)
            assert tuple(view.shape) == tuple(tensor.shape)
            assert bool((torch.as_tensor(view.tolist()) == torch.as_tensor(tensor.tolist())).all())


def test_an_old_reference_to_a_slot_is_stale(sides: Sides) -> None:
    old = ref_of(slots(sides)[2])
    sides.pool._segments[old.segment].release()
    publish(sides, np.zeros(3)).release()
    publish(sides, np.zeros(3))
    with pytest.raises(StaleTensor):
        sides.receiver.receive(old.segment, old.seq, "numpy")


def test_the_first_slot_is_an_ordinary_file_and_a_guest_keeps_it(sides: Sides) -> None:
    found = slots(sides)
    loaded = tr_mmap.load(found[0].path)
    assert loaded.tolist() == [0] * 3
    for each in found:
        each.release()
    for number in range(200):
        pass_on(sides, np.full(3, number))
        sides.settle()
    assert loaded.tolist() == [0] * 3
    assert tr_mmap.load(found[0].path).tolist() == [0] * 3


def test_a_forked_childs_lease_keeps_its_slot_only(sides: Sides) -> None:
    found = slots(sides)
    view = sides.look(found[2])
    sides.receiver.forked_in_parent()
    del view
    sides.settle()
    assert [int(each.words[LEASE_WORD]) for each in found] == [LEASE_FREE, LEASE_FREE, LEASE_PINNED, LEASE_FREE]
    names = [each.name for each in found]
    for each in found:
        each.release()
    taken = [publish(sides, np.zeros(3)).name for _ in range(40)]
    assert names[2] not in taken
    assert set(names) - {names[2]} <= set(taken)


def test_slots_that_a_dead_reader_held_are_never_filled_again(sides: Sides) -> None:
    found = slots(sides)
    view = sides.look(found[3])
    sides.pool.reader_died()
    for each in found:
        each.release()
    new = SegmentReader(str(sides.directory))
    for number in range(100):
        segment = publish(sides, np.full(3, number))
        assert new.receive(segment.name, segment.seq, "numpy").tolist() == [number] * 3
        sides.settle()
        segment.release()
    assert view.tolist() == [3] * 3


def test_a_slab_goes_when_no_slot_of_it_is_used(sides: Sides) -> None:
    found = slots(sides)
    path = found[0].path
    for each in found[1:]:
        each.release()
    sides.pool._retire_free()
    assert os.path.exists(path)  # for the one that is held
    assert sides.look(found[0]).tolist() == [0] * 3
    sides.settle()
    found[0].release()
    sides.pool._retire_free()
    assert os.listdir(sides.directory) == []
    assert (sides.pool.stats().segments, sides.pool.stats().nbytes) == (0, 0)


def test_a_slab_keeps_the_budget(limited: Callable[..., Sides]) -> None:
    sides = limited(40 * PAGE)
    views = [pass_on(sides, np.full(3, number)) for number in range(40)]
    assert sides.pool.stats().nbytes == 40 * PAGE
    with pytest.raises(OutOfSpace):
        pass_on(sides, np.zeros(3))
    assert [view.tolist() for view in views] == [[number] * 3 for number in range(40)]
    del views[5:]
    sides.settle()
    assert pass_on(sides, np.zeros(3)).tolist() == [0] * 3


def test_a_tag_gets_no_slot(sides: Sides) -> None:
    for each in slots(sides):
        each.release()
    for _ in range(3):  # so that every way to take one is tried
        segment = sides.pool.publish(np.zeros(3))
        assert os.path.getsize(segment.path) == 2 * PAGE
        segment.release()


def test_a_slot_of_a_file_that_is_too_short_is_stale(sides: Sides) -> None:
    segment = sides.pool.publish(np.zeros(3))
    stem = segment.name.removesuffix(".tsr")
    with pytest.raises(StaleTensor):
        sides.receiver.receive(slot_name(stem, 1, 4), segment.seq, "numpy")
    segment.release()


def test_a_slab_with_holes_is_refused(sides: Sides) -> None:
    path = sides.directory / "result_0.tsr"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    path.chmod(0o600)
    try:
        with pytest.raises(HostilePath, match="holes"):
            sides.receiver.receive(slot_name("result_0", 1, 8), 1, "numpy")
    finally:
        path.unlink()


def test_two_names_of_one_file_with_different_numbers_of_slots_are_two_slabs(sides: Sides) -> None:
    """A peer that lies about the second is told so by a typed error."""
    segments = [sides.pool.publish(np.full(3, number), may_share=True) for number in range(100)]
    slot = next(each for each in segments if place_of(each.name).slots > 1)
    assert sides.look(slot).tolist() == [segments.index(slot)] * 3
    place = place_of(slot.name)
    longer = slot_name(place.file.removesuffix(".tsr"), place.slots, 2 * place.slots)
    with pytest.raises((StaleTensor, TSRFormatError, HostilePath)):
        sides.receiver.receive(longer, slot.seq, "numpy")
