"""Makes SIGINT and SIGTERM end a worker, whatever its controller did to them. Never decides what the end is like."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..processes.lifeline import GRACE_S
from ..wire.names import WORKER_MARK_VARIABLE

__all__ = ["Stop", "restore_signals", "stop_signals"]

# What ends a worker, and by what it learns of its children's end. Others are the user's affair.
_NEEDED: Final = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGCHLD") if hasattr(signal, name)
]


class Stop(BaseException):
    """Raised by SIGINT and SIGTERM; a BaseException so that no handler's ``except Exception`` keeps it."""


def _inherited() -> tuple[set[int], set[int]]:
    """Which of the needed signals this process has inherited as blocked, and which as ignored.

    A controller of ours starts its worker with none. So whatever a worker with a mark blocks or ignores is its script's
    own wish.
    """
    if WORKER_MARK_VARIABLE in os.environ:
        return set(), set()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if hasattr(signal, "pthread_sigmask") else set()
    ignored = {number for number in _NEEDED if signal.getsignal(number) is signal.SIG_IGN}
    return {number for number in _NEEDED if number in blocked}, ignored


_blocked, _ignored = _inherited()  # now, before the worker's script changes it


def restore_signals() -> None:
    """Undo what this process inherited from another program that started it: signals that are blocked or ignored there.

    Without this, a worker of a program that blocks all signals could be ended by SIGKILL only, and its lifeline would
    end nothing. What the worker's script has blocked, ignored or handled itself stays.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*_blocked, GRACE_S])
    _blocked.clear()
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set handlers
    for number in _ignored:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    _ignored.clear()


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
