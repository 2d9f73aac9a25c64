"""Workers that outlive their controller, and what a worker started that outlives it. Ends only what it has proved to be
one of these.

A worker watches its controller and follows it within seconds, whatever its handler does in Python; before it goes it
ends the processes that it started. Native code that holds the interpreter's lock keeps it from both: then the kernel
ends it (see :mod:`.lifeline`), or whoever sweeps does, who also ends what it left. Processes that made a session of
their own (``setsid``) and whose parents are gone belong to nobody here, and stay.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from ..wire.names import WORKER_MARK_VARIABLE
from ..wire.waits import KILL_WAIT_S
from .identity import Identity, all_stats, send_signal, wait_for_ends
from .tree import has_mark, with_descendants

__all__ = ["end_heirs", "end_orphan", "end_own_children"]

_CHILD_GRACE_S: Final = (
    0.5  # between SIGTERM and SIGKILL; a sweep waits some seconds for the worker, which waits for this
)


def end_orphan(worker: Identity, mark: str, deadline: float) -> bool:
    """Let the worker of a dead controller end, or kill it; whether it has ended.

    Args:
        worker: from the session's manifest.
        mark: from there too; what the controller gave just this worker. A process without it is left alone.
        deadline: by the monotonic clock, until when it may end by itself.
    """
    if mark and has_mark(worker, mark) and not wait_for_ends([worker], deadline):
        send_signal(worker, signal.SIGKILL)
        wait_for_ends([worker], time.monotonic() + KILL_WAIT_S)
    return not worker.is_alive()


def end_heirs(worker: Identity, mark: str) -> None:
    """End what a dead worker started and left in its session of processes: those that bear its mark, at once.

    Args:
        worker: from the session's manifest.
        mark: from there too.
    """
    if mark and not worker.is_alive() and worker.is_judgeable():
        _end_all(worker.pid, mark, grace_s=0.0)


def end_own_children(mark: str) -> None:
    """End what this process has started; only if it is a worker that a controller gave that mark.

    A worker that somebody runs by hand, or within a larger program, has children that are none of ours.
    """
    pid = os.getpid()
    if mark and os.environ.get(WORKER_MARK_VARIABLE) == mark and hasattr(os, "getsid") and os.getsid(0) == pid:
        _end_all(pid, mark, grace_s=_CHILD_GRACE_S)


def _end_all(session: int, mark: str, *, grace_s: float) -> None:
    """SIGTERM, ``grace_s`` seconds, SIGKILL to a session's members that bear the mark, and to their descendants."""
    if grace_s and (found := _kin(session, mark)):
        for each in found:
            send_signal(each, signal.SIGTERM)
        wait_for_ends(found, time.monotonic() + grace_s)
    deadline = time.monotonic() + KILL_WAIT_S
    while (found := _kin(session, mark)) and time.monotonic() < deadline:  # again: one may have just forked
        for each in found:
            send_signal(each, signal.SIGKILL)
        wait_for_ends(found, deadline)


def _kin(session: int, mark: str) -> list[Identity]:
    """The living members of a session of processes that bear the mark, and their descendants, but not its leader."""
    stats = {pid: seen for pid, seen in all_stats().items() if not seen.is_ended}
    # The leader's descendants are sure to be its own if the leader is this process.
    found = {os.getpid()} & {session}
    for pid, seen in stats.items():
        if seen.session == session and pid != session and has_mark(Identity.local(pid, seen.start_ticks), mark):
            found.add(pid)
    return [Identity.local(pid, stats[pid].start_ticks) for pid in with_descendants(found, stats) if pid != session]
