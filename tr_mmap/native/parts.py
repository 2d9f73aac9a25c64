"""What the compiled fast path works on. Imports nothing of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from . import FreeLists, MessagePage, Semaphore

__all__ = ["ChannelParts", "TensorParts"]


class ChannelParts(NamedTuple):
    """One side of a channel.

    Attributes:
        out: the page that this side writes.
        own: the page that this side reads.
        peer_doorbell: rung after each message.
        own_doorbell: waited for.
        slice_s: the longest single sleep, for a ring may be lost.
        status: the mapped status file.
    """

    out: MessagePage
    own: MessagePage
    peer_doorbell: Semaphore
    own_doorbell: Semaphore
    slice_s: float
    status: memoryview


class TensorParts(NamedTuple):
    """One side of a transfer.

    Attributes:
        pool: of this side's segments.
        mapped: the peer's segments that are mapped here, by name.
        held: this side's segments that the message in flight names.
        tags: what names a tensor on the worker's side; empty on the controller's.
    """

    pool: FreeLists
    mapped: dict[str, Any]
    held: list[Any]
    tags: dict[str, Any]
