"""What the compiled fast paths work on: one side's endpoint of a channel and of a transfer. Imports nothing of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from . import FreeLists, Mirror, Ring, Semaphore, SentResults

__all__ = ["ChannelParts", "TensorParts"]


class ChannelParts(NamedTuple):
    """One side of a channel.

    Attributes:
        endpoint: the page that this side writes, the page that it reads, the doorbell that it rings after a message,
            the doorbell that it waits for, and the longest single sleep in seconds, because a ring may be lost.
        status: the mapped status page.
        status_mirror: shows the status to people.
        by_hand: requests that somebody wrote by hand; the worker's fast path leaves them to the slow path.
    """

    endpoint: tuple[Ring, Ring, Semaphore, Semaphore, float]
    status: memoryview
    status_mirror: Mirror
    by_hand: list[bytes]


class TensorParts(NamedTuple):
    """One side of a transfer.

    Attributes:
        endpoint: the pool of this side's segments; the peer's segments that are mapped here, by name; this side's
            segments that the message in flight names; and whether received tensors are private, of numpy and of torch.
        tags: on the worker's side, where the tensor of each tag is; empty on the controller's side.
        sent: on the worker's side, the results of responses that the controller has not consumed.
        links: on the controller's side, by weak references to segments of other pools: tuples whose first item is the
            name by which the worker can open the segment, or "". What is in use stays.
    """

    endpoint: tuple[FreeLists, dict[str, Any], list[Any], tuple[bool, bool]]
    tags: dict[str, Any]
    sent: SentResults | None = None
    links: dict[Any, Any] | None = None
