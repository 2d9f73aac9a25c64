"""The parts of a channel and of a transfer that the compiled fast paths work on. Does nothing with them."""

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
        peer_doorbell: this side rings it after each message.
        own_doorbell: this side waits for it.
        slice_s: the longest single sleep in seconds, because a ring may be lost.
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
        pool: the free lists of this side's segments.
        mapped: the peer's segments that this side has mapped, by name.
        held: this side's segments that the message in flight names.
        tags: on the worker's side, where the tensor of each tag is; empty on the controller's side.
    """

    pool: FreeLists
    mapped: dict[str, Any]
    held: list[Any]
    tags: dict[str, Any]
