"""Ends workers that outlive their controller, and processes that outlive their worker. Never ends an unproved process.

A worker watches its controller and ends within seconds after it, even if a handler runs in Python. Before it ends, it
ends the processes that it started. It can do neither while native code holds the interpreter's lock: then the kernel
ends it (see :mod:`.lifeline`), or a sweep does, which also ends the processes that it left. A process that made a
session of its own (``setsid``) and whose parent is gone is not recognised, and stays.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from ..wire.names import WORKER_MARK_VARIABLE
from ..wire.waits import KILL_WAIT_S, POLL_S
from .ending import is_tracker, kill_all
from .identity import Identity, all_stats, send_signal, wait_for_ends
from .life_lock import is_alive
from .tree import has_mark, may_have_mark, with_descendants

__all__ = ["end_heirs", "end_orphan", "end_own_children"]

# Between SIGTERM and SIGKILL. A sweep waits some seconds for the worker, and the worker waits for this.
_CHILD_GRACE_S: Final = 0.5


def end_orphan(worker: Identity, mark: str, deadline: float, lock_path: str = "") -> bool:
    """Wait for the worker of a dead controller to end, then kill it. Returns whether it has ended.

    A worker in another namespace of pids cannot be killed from here, only waited for.

    Args:
        worker: from the session's manifest.
        mark: from there too; the controller gave it to this worker alone. A process without it is not killed.
        deadline: until when it may end by itself, in seconds of the monotonic clock.
        lock_path: of the lock that it holds for life.
    """
    if not worker.is_judgeable():
        while is_alive(worker, lock_path) and time.monotonic() < deadline:
            time.sleep(POLL_S / 10)
        return not is_alive(worker, lock_path)
    # One that is being killed has no environment any more: wait for it too, but kill only what shows the mark.
    if mark and may_have_mark(worker, mark) and not wait_for_ends([worker], deadline) and has_mark(worker, mark):
        send_signal(worker, signal.SIGKILL)
        wait_for_ends([worker], time.monotonic() + KILL_WAIT_S)
    return not worker.is_alive()


def end_heirs(worker: Identity, mark: str) -> None:
    """Kill what a dead worker left in its session of processes: the processes that bear its mark.

    Args:
        worker: from the session's manifest.
        mark: from there too.
    """
    if mark and not worker.is_alive() and worker.is_judgeable():
        kill_all(lambda: _kin(worker.pid, mark), time.monotonic() + KILL_WAIT_S)


def end_own_children(mark: str) -> set[Identity]:
    """End what this process has started, but only if it is a worker that a controller gave that mark.

    A worker that a person starts by hand, or that is part of a larger program, has children that are not ours to end.

    Returns:
        The processes that it has ended.
    """
    pid = os.getpid()
    ended: set[Identity] = set()

    def rest() -> list[Identity]:
        found = _own_kin(pid, mark)
        ended.update(found)
        return found

    if mark and os.environ.get(WORKER_MARK_VARIABLE) == mark and hasattr(os, "getsid") and os.getsid(0) == pid:
        if found := rest():
            for each in found:
                send_signal(each, signal.SIGTERM)
            wait_for_ends(found, time.monotonic() + _CHILD_GRACE_S)
        kill_all(rest, time.monotonic() + KILL_WAIT_S)
    return ended


def _own_kin(pid: int, mark: str) -> list[Identity]:
    """As :func:`_kin`, but no resource tracker: it ends by itself, and not before this process has ended."""
    return [each for each in _kin(pid, mark) if not is_tracker(each)]


def _kin(session: int, mark: str) -> list[Identity]:
    """The living members of a session of processes that bear the mark, and their descendants, but not its leader."""
    stats = {pid: seen for pid, seen in all_stats().items() if not seen.is_ended}
    # If this process is the leader, its descendants certainly belong to it, with or without the mark.
    found = {os.getpid()} & {session}
    for pid, seen in stats.items():
        if seen.session == session and pid != session and has_mark(Identity.local(pid, seen.start_ticks), mark):
            found.add(pid)
    return [Identity.local(pid, stats[pid].start_ticks) for pid in with_descendants(found, stats) if pid != session]
