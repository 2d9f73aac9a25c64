"""How large segments are. Pure arithmetic."""

from __future__ import annotations

from ..wire.segments import MIN_CLASS_NBYTES, STEPS_PER_OCTAVE_LOG2

__all__ = ["class_nbytes"]


def class_nbytes(nbytes: int) -> int:
    """Payload capacity of the smallest size class that holds ``nbytes``; powers of two are classes."""
    if nbytes <= MIN_CLASS_NBYTES:
        return MIN_CLASS_NBYTES
    step = max(MIN_CLASS_NBYTES, 1 << ((nbytes - 1).bit_length() - 1 - STEPS_PER_OCTAVE_LOG2))
    return (nbytes + step - 1) // step * step
