"""The live line of a segment's header: the words by which its owner and its reader coordinate. See ``tr_mmap.tsr``.

Plain stores of Python; their order is right on x86 only, which keeps stores in order by itself.
"""

from __future__ import annotations

import os
import threading
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

__all__ = ["LeaseWords"]

# Even x86 may let a load overtake an earlier store to another word. Entering a lock is a locked instruction, a full
# memory barrier. It may be entered again by a signal handler that comes in between, and a fork frees it in the child.
_FENCE: Final = threading.RLock()
os.register_at_fork(after_in_child=_FENCE._at_fork_reinit)  # type: ignore[attr-defined]


class LeaseWords:
    """The live line of the segment that a writable buffer begins with."""

    __slots__ = ("_words",)

    def __init__(self, buffer: Any) -> None:
        self._words = memoryview(buffer).cast("B")[: LIVE_OFFSET + LIVE_NBYTES].cast("Q")

    def claim(self) -> int:
        """Owner: let no reader acquire the lease any more; the lease as it stands, or 2 (PINNED) if a guest came."""
        return self._withdraw(0)

    def retire(self) -> int:
        """Owner: give the segment up; the lease as it stands, or 2 (PINNED) if a guest came."""
        self._words[SEQ_COPY_WORD] = SEQ_RETIRED
        return self._withdraw(SEQ_RETIRED)

    def _withdraw(self, seq: int) -> int:
        words = self._words
        words[SEQ_WORD] = seq
        with _FENCE:
            pass
        return LEASE_PINNED if words[GUEST_WORD] else words[LEASE_WORD]

    def stamp(self, seq: int) -> None:
        """Owner: publish what is in the segment under a number."""
        words = self._words
        words[SEQ_COPY_WORD] = seq
        words[SEQ_WORD] = seq

    def acquire(self, seq: int) -> int:
        """Reader: hold the lease; the number of the layout, or 0 if another tensor is there by now."""
        words = self._words
        # The lease before seq is read: an owner that has not seen the lease yet has cleared seq already.
        words[LEASE_WORD] = LEASE_HELD
        with _FENCE:
            pass
        if words[SEQ_WORD] != seq or words[SEQ_COPY_WORD] != seq or seq in (0, SEQ_RETIRED):
            return 0
        return words[LAYOUT_WORD]
