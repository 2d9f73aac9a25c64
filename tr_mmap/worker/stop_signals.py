"""Makes SIGINT and SIGTERM end a worker. Never decides what the worker does at its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Stop", "stop_signals"]


class Stop(BaseException):
    """Raised by SIGINT and SIGTERM; a BaseException so that no handler's ``except Exception`` keeps it."""


@contextmanager
def stop_signals(is_first: Callable[[], bool]) -> Iterator[None]:
    """Have SIGINT and SIGTERM raise :class:`Stop` in the block. In another thread than the main one, changes nothing.

    Args:
        is_first: notes that a signal came, and returns whether it is the first one; only the first one raises.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:  # noqa: ARG001 - the signature is Python's
        if is_first():
            raise Stop

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
