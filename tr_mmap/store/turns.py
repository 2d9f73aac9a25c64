"""Lets the thread of asyncio's loop have its turn while another thread of a store computes. Knows no stores.

A thread that wants Python's interpreter asks for it after 5 ms of waiting. It begins anew to wait whenever the thread
that has the interpreter lets go for a moment and takes it again, as each call of LMDB does: so it may wait for long.
"""

from __future__ import annotations

import threading
import time
from typing import Final

__all__ = ["be_polite", "give_way"]

_TURN_NS: Final = 1_000_000
_PAUSE_S: Final = 20e-6  # the system makes about 80 µs of it; as long as it takes to wake a thread


class _Turn(threading.local):
    """Of one thread: whether it gives way, and when next."""

    is_polite = False
    ends_ns = 0


_turn = _Turn()


def be_polite() -> None:
    """From now on this thread gives way."""
    _turn.is_polite = True


def give_way() -> None:
    """To be called between steps of work that is long, with no lock held: at times it waits a little."""
    if _turn.is_polite and time.monotonic_ns() > _turn.ends_ns:
        time.sleep(_PAUSE_S)
        _turn.ends_ns = time.monotonic_ns() + _TURN_NS
