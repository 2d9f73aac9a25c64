"""Makes the controller's fast path: a request and its response in one call of the extension. Sends nothing itself.

The fast path writes the same bytes to the same places as the slow path. It leaves to the slow path all that is new,
rare or wrong: texts with control characters, a layout that was not seen before, an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import native
from ..channel.interface import Channel
from ..protocol.messages import Response
from ..protocol.named_values import pack
from ..transfer.interface import ControllerTransfer

__all__ = ["Traffic", "controller_fast_path"]


class Traffic(NamedTuple):
    """What the fast path shares with ``in_flight.py``, in the order of its arguments."""

    sending: native.TurnWords
    consuming: native.TurnWords
    in_flight: dict[int, native.Pending]
    unannounced: dict[str, int]
    tagged: dict[str, Any]
    left: list[Any]
    aside: dict[int, Response]
    counters: native.Counters


def controller_fast_path(
    channel: Channel, transfer: ControllerTransfer, deaths: list[Any], traffic: Traffic
) -> native.ControllerFastPath | None:
    """The fast path to one worker; None if there is none. To be called after ``transfer.worker_started``.

    Args:
        channel: to the worker.
        transfer: of the session.
        deaths: gets an element when the worker has ended.
        traffic: the session's requests.
    """
    of_channel, of_transfer = channel.fast_path_parts(), transfer.fast_path_parts()
    if of_channel is None or of_transfer is None:
        return None
    endpoint = (*of_channel.endpoint, *of_transfer.endpoint)
    fields = (*endpoint, deaths, Response, pack, of_channel.status_mirror, *traffic)
    return native.ControllerFastPath(*fields, {} if of_transfer.links is None else of_transfer.links)
