"""Makes the controller's fast path: a request and its response in one call of the extension. Sends nothing itself.

The fast path writes the same bytes to the same places as the slow path. It leaves to the slow path all that is new,
rare or wrong: texts with escapes, tags that were not announced, a layout that was not seen before, an error.
"""

from __future__ import annotations

from typing import Any

from .. import native
from ..channel.interface import Channel
from ..protocol.messages import Response
from ..transfer.interface import ControllerTransfer

__all__ = ["controller_fast_path"]


def controller_fast_path(
    channel: Channel, transfer: ControllerTransfer, deaths: list[Any]
) -> native.ControllerFastPath | None:
    """The fast path to one worker; None if there is none. To be called after ``transfer.worker_started``.

    Args:
        channel: to the worker.
        transfer: of the session.
        deaths: gets an element when the worker has ended.
    """
    of_channel, of_transfer = channel.fast_path_parts(), transfer.fast_path_parts()
    if of_channel is None or of_transfer is None:
        return None
    status_mirror = of_channel.status_mirror
    return native.ControllerFastPath(*of_channel.endpoint, *of_transfer.endpoint, deaths, Response, status_mirror)
