"""Where things are in a segment, and how large segments are."""

from __future__ import annotations

from typing import Final

from ..native.words import LAYOUT, LEASE, LEASE_FREE, LEASE_HELD, LEASE_PINNED, SEQ
from ..tsr.header import SEQ_RETIRED

__all__ = [
    "HEAD_NBYTES",
    "LAYOUT",
    "LEASE",
    "LEASE_FREE",
    "LEASE_HELD",
    "LEASE_PINNED",
    "PAYLOAD_OFFSET",
    "SEQ",
    "SEQ_RETIRED",
    "class_nbytes",
]

# The payload begins on the second memory page, so that the reader can map the header for writing (its lease) and the
# payload for reading only.
HEAD_NBYTES: Final = 4096
PAYLOAD_OFFSET: Final = HEAD_NBYTES

_MIN_CLASS_NBYTES: Final = 4096  # a memory page
_STEPS_PER_OCTAVE_LOG2: Final = 3  # 8 sizes between powers of two: at most 12.5 % of a segment is unused


def class_nbytes(nbytes: int) -> int:
    """Payload capacity of the smallest size class that holds ``nbytes``; powers of two are classes."""
    if nbytes <= _MIN_CLASS_NBYTES:
        return _MIN_CLASS_NBYTES
    step = max(_MIN_CLASS_NBYTES, 1 << ((nbytes - 1).bit_length() - 1 - _STEPS_PER_OCTAVE_LOG2))
    return (nbytes + step - 1) // step * step
