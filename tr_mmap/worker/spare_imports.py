"""What a spare imports before it knows its session: what any worker needs. To import this module is all its use."""

from __future__ import annotations

from ..channel.kinds import channel_kind
from ..transfer.kinds import import_transfer
from . import functions  # noqa: F401

__all__: list[str] = []

_CHANNEL = "mapped"  # that of nearly all sessions

channel_kind(_CHANNEL)
import_transfer(_CHANNEL)
