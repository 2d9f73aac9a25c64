"""Makes SIGINT and SIGTERM end a worker, whatever its controller did to them. Never decides what the end is like.

A child that a handler forks gets back what these signals did before, so that they end it as they end any program. A
handler in Python would not: it runs only when the interpreter gets to it, and what it raises can be caught.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..base.fork_safety import at_fork
from ..base.unpatched import unpatched
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


class _Replaced:
    """What a signal did before :func:`stop_signals`, and the handler that it has there."""

    def __init__(self, number: int, handler: Callable[[int, Any], None]) -> None:
        self.number = number
        self.handler = handler
        self.previous: Any = signal.getsignal(number)

    def restore(self) -> None:
        """Let the signal do what it did, unless somebody has given it another handler since. Only the main thread."""
        if signal.getsignal(self.number) is self.handler:
            signal.signal(self.number, signal.SIG_DFL if self.previous is None else self.previous)  # None: one of C


_replaced: list[_Replaced] = []  # while stop_signals' block runs; that of an inner block comes first
_masks: dict[int, set[int]] = {}  # by thread that forks: what it had blocked before
_get_ident: Final[Any] = unpatched("_thread", "get_ident")


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

    own = [_Replaced(number, stop) for number in (signal.SIGINT, signal.SIGTERM)]
    _replaced[:0] = own
    try:
        for replaced in own:
            signal.signal(replaced.number, stop)
        yield
    finally:
        for replaced in own:
            replaced.restore()
        _replaced[:] = [replaced for replaced in _replaced if replaced not in own]


def _before_fork() -> None:
    """Block the signals until the child has restored their handlers: one that came earlier would be lost there."""
    if _replaced and hasattr(signal, "pthread_sigmask"):
        me, mask = _get_ident(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
        _masks.setdefault(me, mask)
        signal.pthread_sigmask(signal.SIG_BLOCK, [replaced.number for replaced in _replaced])
        _masks.setdefault(me, mask)  # again, for a signal handler that has forked before the signals were blocked


def _after_in_parent() -> None:
    me = _get_ident()
    if (mask := _masks.get(me)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _masks.pop(me, None)


def _after_in_child() -> None:
    for replaced in _replaced:
        replaced.restore()
    _replaced.clear()
    _after_in_parent()
    _masks.clear()  # of threads that are not in the child


at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
