"""What each side of a session holds in shared memory. Counts nothing itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PoolStats", "ReaderStats"]


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool holds: that of a session, or the one that the sessions of this process share.

    Attributes:
        segments: how many there are; many small ones may be in one file.
        nbytes: payload capacity of their files together, in bytes.
        free_nbytes: capacity of the segments that have no hold on this side (readers may have views of some).
        published: tensors published since the start.
        copied_nbytes: bytes copied into segments since the start; a loan adds none.
        created: segments made since the start; all other publications used a segment again.
        leased: segments that a reader has a view of, or may have for ever. They are not filled again until the views
            are gone, though this side may hold them no more.
        leased_nbytes: their capacity.
    """

    segments: int
    nbytes: int
    free_nbytes: int
    published: int
    copied_nbytes: int
    created: int
    leased: int
    leased_nbytes: int


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """What a process has mapped of the other side's segments.

    Attributes:
        segments: how many; those that it has not used for long are unmapped.
        nbytes: their payload capacity together, in bytes.
        leased: those of which it has views.
        leased_nbytes: their capacity.
    """

    segments: int = 0
    nbytes: int = 0
    leased: int = 0
    leased_nbytes: int = 0
