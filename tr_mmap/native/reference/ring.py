"""A mapped ring of messages: one side appends them, the other takes them. Never knows what a message means.

``tr_mmap.channel.mapped`` describes the bytes of a ring.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import compress, starmap
from operator import and_, call, setitem
from typing import Any, Final

from ...wire.messages import (
    BLANK_NUMBER,
    MAX_MESSAGE_SEQ,
    MESSAGE_NUMBER_OFFSET,
    MESSAGE_REST_OFFSET,
    MIRROR_DELAY_S,
    NUMBER_DIGITS,
    RING_BELL_OFFSET,
    RING_CANCEL_OFFSET,
    RING_DONE_OFFSET,
    RING_NBYTES,
    RING_SLOT_NBYTES,
    RING_SLOTS,
    RING_WITHDRAWN,
    RING_WORDS_NBYTES,
)
from ...wire.waits import MAX_SPIN_US
from .mirror import Mirror
from .semaphore import Semaphore, check_slice, check_time, longest_sleep_s

__all__ = ["Ring", "has_as_many_colons"]

_WORD_NBYTES: Final = 8
_BLANK_WORD: Final = int.from_bytes(BLANK_NUMBER.encode(), "little")
_MOST_STORES: Final = 8  # at once
_BELL_WORD: Final = RING_BELL_OFFSET // _WORD_NBYTES
_CANCEL_WORDS: Final = RING_CANCEL_OFFSET // _WORD_NBYTES

# Of the process that imported this module. In a forked child it is empty, and the child's own rings have another one.
_process = [True] * _MOST_STORES

_Store = tuple[Callable[..., None], Any, Any, Any]  # setitem or setattr, and its arguments


def _disown() -> None:
    """In a forked child: the rings that there are belong to the parent."""
    global _process
    _process.clear()
    _process = [True] * _MOST_STORES


os.register_at_fork(after_in_child=_disown)


class Ring:
    """A ring of messages that is mapped as a writable buffer.

    Args:
        buffer: the mapping of the whole file.

    Attributes:
        stored: how many messages this side has stored.
        taken: how many messages this side has taken.
        stored_seq: the number of the last message that was stored; 0 before.
        waiters: how many threads are in :meth:`sleep`.
        is_ordered: no number may be below that of the last store.
    """

    __slots__ = (
        "_bell",
        "_bell_key",
        "_buffer",
        "_last_line",
        "_latest",
        "_mirrors",
        "_process",
        "_rejected",
        "_seen",
        "_should_spin",
        "_spin_s",
        "_turn",
        "_words",
        "is_ordered",
        "stored",
        "stored_seq",
        "taken",
        "waiters",
    )

    def __init__(self, buffer: Any) -> None:
        self._buffer = memoryview(buffer)
        if len(self._buffer) < RING_NBYTES:
            raise ValueError(f"an aligned buffer of at least {RING_NBYTES} bytes is needed")
        self._words = self._buffer.cast("Q")
        self._process = _process
        self.stored = self.taken = 0
        self._turn: list[bool] = []  # of the operation that has begun last
        self._seen = [_BLANK_WORD] * RING_SLOTS  # the number of the last message that was taken from each slot
        self._latest = RING_WORDS_NBYTES  # the offset of the slot of the last message that was stored or taken
        self._last_line = b""  # the last line that was looked at
        self._rejected: bytes | None = None  # a line in the next slot that the peer has not signed
        self._spin_s = 0.0  # how long sleep() polls for a message before it sleeps, at most
        self._should_spin = False  # the last message came within that time, so sleep() polls for the next one
        self._bell = -1
        self._bell_key = (0, 0)  # of its file
        self.stored_seq = 0
        self.is_ordered = False
        self.waiters = 0
        self._mirrors: tuple[Mirror, ...] = ()

    @staticmethod
    def _slot_of(position: int) -> int:
        """The offset of the slot of a position."""
        return RING_WORDS_NBYTES + position % RING_SLOTS * RING_SLOT_NBYTES

    def _number_in(self, slot: int) -> int:
        return self._words[(slot + MESSAGE_NUMBER_OFFSET) // _WORD_NBYTES]

    def store(self, seq: int, text: bytes) -> bool:
        """Append a message: a JSON object, whose first member is its number.

        Returns:
            False, and nothing was stored, if ``is_ordered`` and the number is below that of the last store, or if this
            is a forked child of the process that made the ring.

        Raises:
            ValueError: the number has more than 8 digits, or the text is longer than a slot.
        """
        comma = text.find(b",")
        text = text[comma:] + b"\n" if comma >= 0 else b"}\n"
        if not 1 <= seq <= MAX_MESSAGE_SEQ or len(text) > RING_SLOT_NBYTES - MESSAGE_REST_OFFSET:
            raise ValueError("the number has more than 8 digits, or the message is longer than a slot")
        number = int.from_bytes(b"%*d" % (NUMBER_DIGITS, seq), "little")
        while True:
            turn = self._begin()
            if not self._process:  # a signal handler may have forked while the message was prepared
                return False
            if (
                self.is_ordered
                and self.stored_seq
                and 0 < (self.stored_seq - seq) % MAX_MESSAGE_SEQ < MAX_MESSAGE_SEQ // 2
            ):
                return False
            position = self.stored
            slot = self._slot_of(position)
            word, rest = (slot + MESSAGE_NUMBER_OFFSET) // _WORD_NBYTES, slot + MESSAGE_REST_OFFSET
            stores: list[_Store] = [
                (setitem, self._words, word, _BLANK_WORD),
                (setitem, self._buffer, slice(rest, rest + len(text)), text),
                (setitem, self._words, word, number),
                (setattr, self, "stored", position + 1),
                (setattr, self, "stored_seq", seq),
                (setattr, self, "_latest", slot),
            ]
            if self._finish(stores, map(and_, turn, self._process)):
                return True

    def _begin(self) -> list[bool]:
        """Begin to store, in the middle of which a signal handler may do the same.

        What the handler does counts: it takes the turn of the interrupted operation, which begins again.
        """
        self._turn.clear()
        self._turn = turn = [True] * _MOST_STORES
        return turn

    @staticmethod
    def _finish(stores: list[_Store], turn: Iterable[bool]) -> bool:
        """Do all stores of an operation, or none if another one has taken its turn. Returns whether they were done.

        This is one call of C code, so no signal handler runs between the stores.
        """
        return bool(deque(starmap(call, compress(stores, turn)), maxlen=1))

    def _number_at(self, position: int) -> int:
        """The number of a message that was not taken; 0 if there is none, or if it is being stored."""
        number = self._number_in(self._slot_of(position))
        return 0 if number in (self._seen[position % RING_SLOTS], _BLANK_WORD) else number

    def has_message(self) -> bool:
        """Whether a message waits to be taken."""
        return self._number_at(self.taken) != 0

    def _line_in(self, slot: int) -> tuple[bytes, bool]:
        """The line in a slot, and whether it has an end."""
        line, end, _ = self._buffer[slot : slot + RING_SLOT_NBYTES].tobytes().partition(b"\n")
        return line, bool(end)

    def peek(self) -> bytes | None:
        """The next message's line without its newline; None if there is none, or while it is being stored.

        Raises:
            ValueError: the message has no end.
        """
        number = self._number_at(self.taken)
        if not number:
            return None
        slot = self._slot_of(self.taken)
        line, has_end = self._line_in(slot)
        if self._number_in(slot) != number or line == self._rejected:
            return None
        self._last_line = line
        if not has_end:
            raise ValueError("the message has no end")
        return line

    def advance(self, position: int, is_done: bool) -> bool:
        """Take the message at a position, unless it was taken meanwhile.

        Args:
            position: ``taken`` at the time of :meth:`peek`.
            is_done: whether this side is done with it, and with all before it.

        Returns:
            Whether this call has taken it.
        """
        slot, place, is_taken = self._slot_of(position), position % RING_SLOTS, False
        number = self._number_in(slot)
        if self.taken == position:  # no call is between this and the last store, so no signal handler
            self._seen[place] = number
            self._latest = slot
            self.taken, is_taken = position + 1, True
        if is_done:
            self.all_done()
        return is_taken

    def all_done(self) -> None:
        """Tell the peer that this side is done with all messages that it has taken."""
        self._words[RING_DONE_OFFSET // _WORD_NBYTES] = self.taken

    @property
    def done_by_peer(self) -> int:
        """How many messages the peer is done with."""
        return self._words[RING_DONE_OFFSET // _WORD_NBYTES]

    # Each side stores one word and then looks at the other's. A lock is a fence between the two.

    def ring_bell(self) -> None:
        """Wake the peer if it sleeps on the bell. To be called after a message was stored."""
        _fence()
        if self._bell < 0 or not self._process or not self._words[_BELL_WORD]:
            return
        self._words[_BELL_WORD] = 0
        try:
            if _key_of(self._bell) == self._bell_key:  # else the program has closed it, and opened another file
                os.write(self._bell, b"!")
        except OSError:
            pass  # it is full: then it was rung already

    def set_bell(self, fd: int) -> None:
        """Name the descriptor by which :meth:`ring_bell` wakes the peer; -1 for none."""
        try:
            self._bell_key = _key_of(fd)
            self._bell = fd
        except OSError:
            self._bell = -1

    def arm(self) -> bool:
        """Let the peer ring the bell after its next message.

        Returns:
            Whether a message is there already, for which it may not ring.
        """
        self._words[_BELL_WORD] = 1
        _fence()
        return self._is_next_there()

    def cancel(self, position: int) -> bool:
        """Say that nobody wants the answer to the message of a position.

        Returns:
            Whether the peer had not begun with it, and now will not.
        """
        return self._cancel(position, 0)

    def withdraw(self, position: int) -> bool:
        """Take the message of a position back, unless it was cancelled. The peer's handler never learns of it.

        Returns:
            Whether the peer had not begun with it, and now will not.
        """
        return self._cancel(position, RING_WITHDRAWN)

    def _cancel(self, position: int, withdrawn: int) -> bool:
        word = _CANCEL_WORDS + position % RING_SLOTS
        said = self._words[word]
        # A later message may have come round to the slot of one that the peer is not done with, and may be cancelled.
        if not self._process or said & ~RING_WITHDRAWN > position + 1:
            return False
        if not withdrawn or said != position + 1:
            self._words[word] = position + 1 + withdrawn
        _fence()
        return self.done_by_peer <= position

    def is_cancelled(self, position: int) -> bool:
        """Whether the peer has cancelled the message of a position, which was taken."""
        _fence()
        return self._words[_CANCEL_WORDS + position % RING_SLOTS] == position + 1

    def is_withdrawn(self, position: int) -> bool:
        """Whether the peer has taken the message of a position back, which was taken."""
        _fence()
        return self._words[_CANCEL_WORDS + position % RING_SLOTS] == position + 1 + RING_WITHDRAWN

    def next_seq(self) -> int:
        """The number of the next message; 0 if there is none, or if it is no number."""
        digits = self._number_in(self._slot_of(self.taken)).to_bytes(_WORD_NBYTES, "little").lstrip(b" ")
        return int(digits) if digits.isdigit() else 0

    def has_stored(self, seq: int) -> bool:
        """Whether one of the last messages that this side has stored has a number."""
        number = int.from_bytes(b"%*d" % (NUMBER_DIGITS, seq), "little")
        return any(self._number_in(self._slot_of(slot)) == number for slot in range(RING_SLOTS))

    def _is_next_there(self) -> bool:
        """Whether :meth:`peek` would give a message."""
        return self.has_message() and self._line_in(self._slot_of(self.taken))[0] != self._rejected

    def sleep(self, semaphore: Semaphore, timeout_s: float, slice_s: float, stop: Callable[[], bool]) -> bool:
        """Sleep until a message is there, the time is over, or ``stop`` says so.

        Args:
            semaphore: the peer posts it after each message.
            timeout_s: how long to sleep, in seconds.
            slice_s: the longest single sleep in seconds, because a ring may be lost.
            stop: called before each sleep; True ends it all.

        Returns:
            Whether a message is there.

        Raises:
            ValueError: a time is NaN, or ``slice_s`` is no positive number.
        """
        check_time(timeout_s)
        slice_s = check_slice(slice_s)
        self.waiters += 1
        try:
            began_s, waited_s, left_s = time.monotonic(), 0.0, timeout_s
            while not self._is_next_there() and left_s > 0 and not stop():
                if self._spin_s and self._should_spin:
                    self._spin(min(self._spin_s, left_s))
                    if self._is_next_there():
                        break
                self._sleep(semaphore, min(left_s, longest_sleep_s(slice_s, waited_s)))
                waited_s = time.monotonic() - began_s
                left_s = timeout_s - waited_s
            self._should_spin = time.monotonic() - began_s <= self._spin_s
        finally:
            self.waiters -= 1
        return self._is_next_there()

    def _newest_slot(self) -> int:
        """The slot of the newest message that is there or was taken."""
        slot = self._latest
        for position in range(self.taken, self.taken + RING_SLOTS):
            if not self._number_at(position):
                break
            slot = self._slot_of(position)
        return slot

    def newest(self) -> bytes:
        """The line of the newest message, which may have been taken or not; whole or not."""
        return self._line_in(self._newest_slot())[0]

    def newest_seq(self) -> int:
        """The number of that message; 0 if there is none, or if it is no number."""
        digits = self._number_in(self._newest_slot()).to_bytes(_WORD_NBYTES, "little").lstrip(b" ")
        return int(digits) if digits.isdigit() else 0

    def latest(self) -> memoryview:
        """The slot of the last message that was stored or taken."""
        return self._buffer[self._latest : self._latest + RING_SLOT_NBYTES]

    def set_spin(self, us: float) -> None:
        """Let :meth:`sleep` poll for a message before it sleeps, except after a message that took longer to come.

        Args:
            us: for how many microseconds at most; values above 1000 count as 1000.

        Raises:
            ValueError: it is NaN.
        """
        self._spin_s = min(max(check_time(us), 0.0), MAX_SPIN_US) / 1e6
        self._should_spin = True

    def _spin(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while not self.has_message() and time.monotonic() < until_s:
            pass

    def set_mirrors(self, mirrors: tuple[Mirror, ...]) -> None:
        """Let :meth:`sleep` keep mirrors up to date while no message comes."""
        self._mirrors = mirrors

    def _sleep(self, semaphore: Semaphore, sleep_s: float) -> None:
        """Sleep until the semaphore is posted.

        A sleep that lasts shows first what the mirrors lack; a burst of messages writes none of them.
        """
        if sleep_s > MIRROR_DELAY_S and any(mirror.is_stale for mirror in self._mirrors):
            if semaphore.sleep(MIRROR_DELAY_S):
                return
            for mirror in self._mirrors:
                mirror.update()
            sleep_s -= MIRROR_DELAY_S
        semaphore.sleep(sleep_s)

    def reject(self) -> None:
        """Ignore the line that :meth:`peek` has given. The peer's own can be taken, even if it has the same number."""
        self._rejected = self._last_line


def _fence() -> None:
    """Let no load after this one come before a store before it: to take a lock is an atomic exchange."""
    threading.Lock().acquire(False)


def _key_of(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def has_as_many_colons(line: bytes, values: tuple[object, ...]) -> bool:
    """Whether a message's line has as many colons as a tuple has true values; ``protocol/messages.py`` says why."""
    return line.count(b":") == sum(map(bool, values))
