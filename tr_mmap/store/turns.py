"""Lets the thread of asyncio's loop run while another thread of a store computes. Knows no stores.

A thread that waits for the interpreter's lock asks for it after 5 ms. It starts these 5 ms again whenever the other
thread releases the lock for a moment and takes it back. Each call of LMDB does that, so the wait may be long.
"""

from __future__ import annotations

import threading
import time
from typing import Final

__all__ = ["be_polite", "give_way"]

_TURN_NS: Final = 1_000_000
_PAUSE_S: Final = 20e-6  # the system makes about 80 µs of it, which is enough to wake the other thread


class _Turn(threading.local):
    """For each thread: whether it gives way, and when it does so next."""

    is_polite = False
    ends_ns = 0


_turn = _Turn()


def be_polite() -> None:
    """From now on this thread gives way."""
    _turn.is_polite = True


def give_way() -> None:
    """Call this between the steps of long work, with no lock held. In a polite thread it sleeps once a millisecond."""
    if _turn.is_polite and time.monotonic_ns() > _turn.ends_ns:
        time.sleep(_PAUSE_S)
        _turn.ends_ns = time.monotonic_ns() + _TURN_NS
