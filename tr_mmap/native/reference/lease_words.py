"""The lease protocol on the live line and the lease lines of a segment's header. Never touches another byte of it.

``tr_mmap.tsr`` specifies the words. These are plain stores of Python. Their order is right on x86 only, where the
processor keeps stores in order. On other machines an owner never fills a segment again: it cannot be sure that no
reader has it, so :meth:`LeaseWords.claim` and :meth:`LeaseWords.retire` say that one may.
"""

from __future__ import annotations

import platform
from _thread import allocate_lock
from typing import Any, Final

from ...wire.header import (
    GUEST_WORD,
    LAYOUT_WORD,
    LEASE_HELD,
    LEASE_PINNED,
    LEASE_WORD,
    LINE_NBYTES,
    LINE_WORDS,
    LINES_OFFSET,
    LINES_WORD,
    LIVE_NBYTES,
    LIVE_OFFSET,
    MAX_READERS,
    SEQ_COPY_WORD,
    SEQ_RETIRED,
    SEQ_WORD,
)

__all__ = ["KEEPS_STORES_IN_ORDER", "LeaseWords", "set_member"]

KEEPS_STORES_IN_ORDER: Final = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


def _fence() -> None:
    """A full memory barrier: even x86 may let a load overtake an earlier store to another word.

    Taking a lock is a locked instruction, which is such a barrier. Each call takes a lock of its own, so that no
    exception, signal handler or fork can leave one taken that another thread waits for.
    """
    allocate_lock().acquire()


class LeaseWords:
    """The live line of a segment, and its lease lines.

    Args:
        buffer: a writable mapping that begins with the segment's header; with one of the others, of its whole page.
        members: for an owner with readers that have lease lines: the page that says which lines have one.
        line: for such a reader: the number of its line. None for the session's own reader, whose lease is in the live
            line.

    Raises:
        ValueError: there is no such line, or the page of members is too small.
    """

    __slots__ = ("_lease_word", "_members", "_words")

    def __init__(self, buffer: Any, members: Any = None, line: int | None = None) -> None:
        if line is not None and not 0 <= line < MAX_READERS:
            raise ValueError(f"there is no lease line {line}")
        nbytes = LIVE_OFFSET + LIVE_NBYTES
        if members is not None or line is not None:
            nbytes = LINES_OFFSET + MAX_READERS * LINE_NBYTES
        self._words = memoryview(buffer).cast("B")[:nbytes].cast("Q")
        if len(self._words) * 8 < nbytes:
            raise ValueError("the buffer ends before the lease lines")
        self._members = None if members is None else memoryview(members).cast("B")[:MAX_READERS]
        if self._members is not None and len(self._members) < MAX_READERS:
            raise ValueError("the page of members is too small")
        self._lease_word = LEASE_WORD if line is None else LINES_WORD + line * LINE_WORDS

    def claim(self) -> int:
        """Owner: from now on no reader can acquire a lease. Returns the strongest lease, or 2 (PINNED) if a guest came.

        Always 2 on a machine that is not x86.
        """
        return self._clear_seq(0)

    def retire(self) -> int:
        """Owner: give the segment up for ever. Returns the strongest lease, or 2 (PINNED) if a guest came."""
        self._words[SEQ_COPY_WORD] = SEQ_RETIRED
        return self._clear_seq(SEQ_RETIRED)

    def _clear_seq(self, seq: int) -> int:
        words = self._words
        words[SEQ_WORD] = seq
        _fence()
        return LEASE_PINNED if words[GUEST_WORD] or not KEEPS_STORES_IN_ORDER else self.lease()

    def lease(self) -> int:
        """Owner: the strongest lease that a reader has now: 0 (FREE), 1 (HELD) or 2 (PINNED)."""
        words, members = self._words, self._members
        lease = words[LEASE_WORD]
        if members is None:
            return lease
        # A reader stores its member byte before its first lease, and clears it after the end of its last one.
        for line in range(MAX_READERS):
            if members[line]:
                lease = max(lease, words[LINES_WORD + line * LINE_WORDS])
        return lease

    def stamp(self, seq: int) -> None:
        """Owner: publish the content of the segment under a number."""
        words = self._words
        words[SEQ_COPY_WORD] = seq
        words[SEQ_WORD] = seq

    def acquire(self, seq: int) -> int:
        """Reader: hold the lease. Returns the number of the layout, or 0 if the tensor of that number is gone."""
        words = self._words
        # Store the lease before seq is read. If the owner's check missed the lease, the owner had cleared seq before.
        words[self._lease_word] = LEASE_HELD
        _fence()
        if words[SEQ_WORD] != seq or words[SEQ_COPY_WORD] != seq or seq in (0, SEQ_RETIRED):
            return 0
        return words[LAYOUT_WORD]


def set_member(page: Any, line: int, is_member: bool) -> None:
    """Set or clear the byte of a lease line on the page of readers, in order with all stores and loads before it.

    Raises:
        ValueError: there is no such line.
    """
    if not 0 <= line < MAX_READERS:
        raise ValueError(f"there is no lease line {line}")
    page[line] = int(is_member)
