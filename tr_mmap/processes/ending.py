"""Kills a tree of processes, those that clean up after the others last. Finds none by itself.

Python's ``multiprocessing`` (joblib's too) has a process that removes semaphores and shared memory when those that use
them are gone: the resource tracker. It reads a pipe, which ends with the last of them, cleans up, and ends by itself.
It ignores SIGTERM for that. If it is killed together with the others, what it would remove stays for ever.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Final

from ..base import system
from ..wire.limits import MAX_ENVIRON_NBYTES
from ..wire.names import RESOURCE_TRACKER
from ..wire.waits import TRACKER_GRACE_S
from .identity import ON_LINUX, Identity, send_signal, wait_for_ends

__all__ = ["is_tracker", "kill_all"]

_TRACKER: Final = RESOURCE_TRACKER.encode()


def is_tracker(process: Identity) -> bool:
    """Whether it is a resource tracker, which ends by itself when all that use it are dead."""
    return _TRACKER in _arguments_of(process.pid)


def kill_all(find: Callable[[], list[Identity]], deadline: float) -> None:
    """Kill processes until there are none; resource trackers once they had time to clean up after the others.

    Args:
        find: returns those that still live. Called again and again, because a process may fork while it is killed.
        deadline: until when to try, in seconds of the monotonic clock.
    """
    has_waited = False
    while (found := find()) and time.monotonic() < deadline:
        others = [each for each in found if not is_tracker(each)]
        if not others and not has_waited:
            has_waited = True
            if wait_for_ends(found, min(deadline, time.monotonic() + TRACKER_GRACE_S)):
                continue
        for each in others or found:
            send_signal(each, signal.SIGKILL)
        wait_for_ends(others or found, deadline)


def _arguments_of(pid: int) -> bytes:
    if not ON_LINUX:
        return _arguments_portable(pid)
    try:
        return system.peek(f"/proc/{pid}/cmdline", MAX_ENVIRON_NBYTES)
    except OSError:
        return b""


def _arguments_portable(pid: int) -> bytes:
    import psutil  # here, because it takes 15 ms

    try:
        return " ".join(psutil.Process(pid).cmdline()).encode("utf-8", "replace")
    except (psutil.Error, OSError):
        return b""
