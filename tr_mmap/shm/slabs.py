"""Slabs: where the slots of a file of many small segments lie, and what they are called. Pure: opens no file."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..wire.names import TENSOR_SUFFIX
from ..wire.segments import HEAD_NBYTES, MAX_SLOTS, SLOT_MARK, SLOT_NBYTES, SLOTS_MARK

__all__ = ["Place", "place_of", "slab_nbytes", "slot_name"]

_slot_name = re.compile(
    rf"(.+){re.escape(SLOT_MARK)}(0|[1-9][0-9]{{0,3}}){SLOTS_MARK}([1-9][0-9]{{0,3}}){re.escape(TENSOR_SUFFIX)}",
    re.ASCII,
).fullmatch


class Place(NamedTuple):
    """Where a segment lies.

    Attributes:
        file: the name of its file.
        slot: its number in a slab; 0 for a segment with a file of its own.
        slots: how many slots the slab has; 0 for a segment with a file of its own.
    """

    file: str
    slot: int
    slots: int

    @property
    def head_offset(self) -> int:
        """Where in the file its header begins, in bytes."""
        return self.slot * HEAD_NBYTES

    @property
    def end_offset(self) -> int:
        """Where in the file a slot's payload ends, in bytes."""
        return self.slots * HEAD_NBYTES + (self.slot + 1) * SLOT_NBYTES


def place_of(name: str) -> Place:
    """The place of the segment that a message names."""
    found = _slot_name(name)
    if found is not None:
        slot, slots = int(found[2]), int(found[3])
        if slot < slots <= MAX_SLOTS:
            return Place(found[1] + TENSOR_SUFFIX, slot, slots)
    return Place(name, 0, 0)


def slot_name(stem: str, slot: int, slots: int) -> str:
    """The name of a slot in the slab whose file's name is ``stem`` without its suffix."""
    return f"{stem}{SLOT_MARK}{slot}{SLOTS_MARK}{slots}{TENSOR_SUFFIX}"


def slab_nbytes(slots: int) -> int:
    """Bytes of the file of a slab."""
    return slots * (HEAD_NBYTES + SLOT_NBYTES)
