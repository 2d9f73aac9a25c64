"""The lease protocol on the live line of a segment's header. Never touches another byte of the segment.

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
    LIVE_NBYTES,
    LIVE_OFFSET,
    SEQ_COPY_WORD,
    SEQ_RETIRED,
    SEQ_WORD,
)

__all__ = ["KEEPS_STORES_IN_ORDER", "LeaseWords"]

KEEPS_STORES_IN_ORDER: Final = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


def _fence() -> None:
    """A full memory barrier: even x86 may let a load overtake an earlier store to another word.

    Taking a lock is a locked instruction, which is such a barrier. Each call takes a lock of its own, so that no
    exception, signal handler or fork can leave one taken that another thread waits for.
    """
    allocate_lock().acquire()


class LeaseWords:
    """The live line of a segment.

    Args:
        buffer: a writable mapping that begins with the segment's header.
    """

    __slots__ = ("_words",)

    def __init__(self, buffer: Any) -> None:
        self._words = memoryview(buffer).cast("B")[: LIVE_OFFSET + LIVE_NBYTES].cast("Q")

    def claim(self) -> int:
        """Owner: from now on no reader can acquire the lease. Returns the lease, or 2 (PINNED) if a guest came.

        Always 2 on a machine that is not x86.
        """
        return self._clear_seq(0)

    def retire(self) -> int:
        """Owner: give the segment up for ever. Returns the lease, or 2 (PINNED) if a guest came."""
        self._words[SEQ_COPY_WORD] = SEQ_RETIRED
        return self._clear_seq(SEQ_RETIRED)

    def _clear_seq(self, seq: int) -> int:
        words = self._words
        words[SEQ_WORD] = seq
        _fence()
        return LEASE_PINNED if words[GUEST_WORD] or not KEEPS_STORES_IN_ORDER else words[LEASE_WORD]

    def stamp(self, seq: int) -> None:
        """Owner: publish the content of the segment under a number."""
        words = self._words
        words[SEQ_COPY_WORD] = seq
        words[SEQ_WORD] = seq

    def acquire(self, seq: int) -> int:
        """Reader: hold the lease. Returns the number of the layout, or 0 if the tensor of that number is gone."""
        words = self._words
        # Store the lease before seq is read. If the owner's check missed the lease, the owner had cleared seq before.
        words[LEASE_WORD] = LEASE_HELD
        _fence()
        if words[SEQ_WORD] != seq or words[SEQ_COPY_WORD] != seq or seq in (0, SEQ_RETIRED):
            return 0
        return words[LAYOUT_WORD]
