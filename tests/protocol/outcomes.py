"""What comes of reading a message or a status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tr_mmap.errors import BadMessage


def outcome(action: Callable[[], Any]) -> Any:
    """What it returns, or the BadMessage that it raises; anything else fails the test."""
    try:
        return action()
    except BadMessage as error:
        return error
