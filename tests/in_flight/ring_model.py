"""Both sides of a ring as programs whose steps a test interleaves; its words, with store buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from interleavings import Machine, Program

from tr_mmap.native.reference import ring as module
from tr_mmap.native.reference.ring import Ring
from tr_mmap.wire.messages import BLANK_NUMBER, RING_BELL_OFFSET, RING_CANCEL_OFFSET, RING_DONE_OFFSET

SLOT_NBYTES = 32  # {"seq":␠, the number, and two words of the rest
BLANK = int.from_bytes(BLANK_NUMBER.encode(), "little")
DONE, BELL, CANCEL = RING_DONE_OFFSET // 8, RING_BELL_OFFSET // 8, RING_CANCEL_OFFSET // 8
FIRST_NUMBER = (module.RING_WORDS_NBYTES + 8) // 8
START = int.from_bytes(b'{"seq": ', "little")
FIFO, POSTS, LOCK = "the bell's FIFO", "the semaphore", "a lock"
BUFFER = bytearray(module.RING_NBYTES)

Kind = type[Ring]


class Words:
    """The words of a ring, in a machine's memory."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def __getitem__(self, index: int) -> int:
        value: int = self.machine.load(index)
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self.machine.store(index, value)


class Bytes:
    """The same as bytes, which are copied word by word, from the first or from the last."""

    def __init__(self, machine: Machine, *, is_backwards: bool = False) -> None:
        self.machine = machine
        self.step = -1 if is_backwards else 1

    def __setitem__(self, span: slice, text: bytes) -> None:
        words = [int.from_bytes(text[at : at + 8].ljust(8), "little") for at in range(0, len(text), 8)]
        for place in range(len(words))[:: self.step]:
            self.machine.store(span.start // 8 + place, words[place])

    def __getitem__(self, span: slice) -> SimpleNamespace:
        places = list(range(span.start // 8, span.stop // 8))[:: self.step]

        def copied() -> bytes:
            words = {place: self.machine.load(place) for place in places}
            return b"".join(words[place].to_bytes(8, "little") for place in sorted(places))

        return SimpleNamespace(tobytes=copied)


class NumbersOnly(Bytes):
    """Texts that are there as soon as their numbers are: for models in which no slot is used too early."""

    def __setitem__(self, span: slice, text: bytes) -> None:
        pass

    def __getitem__(self, span: slice) -> SimpleNamespace:
        number = self.machine.load(span.start // 8 + 1).to_bytes(8, "little")
        return SimpleNamespace(tobytes=lambda: line_of(int(number)) + b"\n")


class Model:
    """A machine, and rings over its memory.

    Args:
        slots: how many the rings have.
        unfenced: the programs whose fences are left out.
        text: makes the texts of the messages.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        slots: int = 2,
        unfenced: Iterable[int] = (),
        text: Callable[[Machine], Bytes] = NumbersOnly,
    ) -> None:
        numbers = [FIRST_NUMBER + slot * SLOT_NBYTES // 8 for slot in range(slots)]
        self.machine = Machine(dict.fromkeys(numbers, BLANK) | {number - 1: START for number in numbers})
        self.text = text
        self.unfenced = set(unfenced)
        patch.setattr(module, "RING_SLOTS", slots)
        patch.setattr(module, "RING_SLOT_NBYTES", SLOT_NBYTES)
        patch.setattr(module, "_fence", self.fence)
        patch.setattr(module, "_key_of", lambda _: (0, 0))
        patch.setattr(module, "os", SimpleNamespace(write=self.write_to_fifo))

    def fence(self) -> None:
        if self.machine.running not in self.unfenced:
            self.machine.fence()

    def write_to_fifo(self, _fd: int, _text: bytes) -> int:
        """The kernel takes a lock for it, so the stores before it reach memory first."""
        self.machine.exchange(FIFO, lambda _: 1)
        return 1

    def drain_fifo(self) -> None:
        self.machine.exchange(FIFO, lambda _: 0)

    def post(self) -> None:
        self.machine.exchange(POSTS, lambda count: count + 1)

    def ring(self, kind: Kind = Ring) -> Ring:
        ring = kind(BUFFER)
        ring._words = Words(self.machine)  # type: ignore[assignment] # of the machine
        ring._buffer = self.text(self.machine)  # type: ignore[assignment]
        ring.set_bell(0)
        return ring

    def explore(self, programs: list[Program], check: Callable[[list[list[Any]]], None]) -> None:
        self.machine.explore(programs, check)
        assert self.machine.states > 20


def message(number: int) -> bytes:
    return b'{"seq":%d,%s' % (number, bytes([ord("`") + number]) * 14)


def line_of(number: int) -> bytes:
    return b'{"seq": %8d,%s' % (number, bytes([ord("`") + number]) * 14)


def store(ring: Ring, number: int) -> None:
    assert ring.store(number, message(number))


def taken_lines(ring: Ring) -> Iterator[bytes]:
    """Looks once."""
    position = ring.taken
    try:
        line = ring.peek()
    except ValueError:
        line = b"a line without an end"
    if line is not None:
        ring.advance(position, True)
        yield line


def finds(explore: Callable[[], None], *, is_broken: bool) -> None:
    if not is_broken:
        explore()
        return
    with pytest.raises(AssertionError):
        explore()
