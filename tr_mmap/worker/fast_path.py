"""Makes the worker's fast path: a request and its response in one call of the extension. Receives nothing itself.

The fast path writes the same bytes to the same places as the slow path. It leaves to the slow path all that is new,
rare or wrong.
"""

from __future__ import annotations

from typing import Any

from .. import native
from ..channel.interface import Channel
from ..protocol.messages import Request, TensorRef
from ..transfer.interface import WorkerTransfer
from .reply import Reply

__all__ = ["worker_fast_path"]


def worker_fast_path(channel: Channel, transfer: WorkerTransfer, deaths: list[Any]) -> native.WorkerFastPath | None:
    """The fast path for the controller's requests; None if there is none.

    Args:
        channel: of the session.
        transfer: of the session.
        deaths: gets an element when the controller has ended.
    """
    of_channel, of_transfer = channel.fast_path_parts(), transfer.fast_path_parts()
    if of_channel is None or of_transfer is None or of_transfer.sent is None:
        return None
    return native.WorkerFastPath(
        *of_channel.endpoint,
        *of_transfer.endpoint,
        of_channel.status,
        of_channel.status_mirror,
        of_channel.by_hand,
        of_transfer.tags,
        deaths,
        Request,
        TensorRef,
        Reply,
        of_transfer.sent,
    )
