"""The bytes of a ring, for tests that write them as a hostile peer does, or look at what a peer has stored."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from tr_mmap.channel.interface import Channel
from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.wire.messages import (
    EMPTY_SLOT,
    REQUEST_RING_FILE,
    RESPONSE_RING_FILE,
    RING_NBYTES,
    RING_SLOT_NBYTES,
    RING_SLOTS,
    RING_WORDS_NBYTES,
)

RING_FILES = [REQUEST_RING_FILE, RESPONSE_RING_FILE]
EMPTY_RING = bytes(RING_WORDS_NBYTES) + RING_SLOTS * EMPTY_SLOT.encode().ljust(RING_SLOT_NBYTES)


def ring_memory(content: bytes = EMPTY_RING) -> memoryview:
    """A ring that belongs to no session."""
    view = memoryview(mmap.mmap(-1, RING_NBYTES))
    view[: len(content)] = content
    return view


def slot_at(position: int) -> int:
    """The offset of the slot of the n-th message, counted from 0."""
    return RING_WORDS_NBYTES + position % RING_SLOTS * RING_SLOT_NBYTES


def next_slot(end: Channel) -> int:
    """The offset of the slot that an end takes next."""
    assert isinstance(end, MappedChannel)
    return slot_at(end._in.taken)


def poke(path: str | os.PathLike[str], offset: int, data: bytes) -> None:
    """Write into a file that is mapped."""
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, offset)
    os.close(fd)


def line_at(path: str | os.PathLike[str], position: int) -> bytes:
    """The line in the slot of the n-th message, counted from 0."""
    start = slot_at(position)
    return Path(path).read_bytes()[start : start + RING_SLOT_NBYTES].partition(b"\n")[0]
