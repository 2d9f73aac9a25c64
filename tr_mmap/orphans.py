"""Workers that outlive their controller. Ends no process that it has not proved to be one.

A worker watches its controller and follows it within seconds, whatever its handler does in Python. Only native code
that holds the interpreter's lock for ever keeps it from that, and then somebody else must end it.
"""

from __future__ import annotations

import signal
import time
from typing import Final

from . import system
from .identity import Identity, send_signal, wait_for_ends

__all__ = ["WORKER_MARK", "end_orphan"]

WORKER_MARK: Final = "TR_MMAP_WORKER"  # environment variable that says whose tree a process belongs to
_KILL_S: Final = 2.0  # how long SIGKILL may take to show
_MAX_ENVIRON_NBYTES: Final = 8 << 20  # more than the kernel lets a process start with


def end_orphan(worker: Identity, mark: str, deadline: float) -> bool:
    """Let the worker of a dead controller end, or kill it; whether it has ended.

    Args:
        worker: from the session's manifest.
        mark: from there too; what the controller gave just this worker. A process without it is left alone.
        deadline: by the monotonic clock, until when it may end by itself.
    """
    if mark and _has_mark(worker, mark) and not wait_for_ends([worker], deadline):
        send_signal(worker, signal.SIGKILL)
        wait_for_ends([worker], time.monotonic() + _KILL_S)
    return not worker.is_alive()


def _has_mark(worker: Identity, mark: str) -> bool:
    try:
        fd = system.open_file(f"/proc/{worker.pid}/environ")
    except OSError:
        return False
    try:
        environ = system.read_all(fd, _MAX_ENVIRON_NBYTES)
    except OSError:
        return False
    finally:
        system.close(fd)
    # Whose environment that was is certain only if the worker lives now: then it did before.
    return f"{WORKER_MARK}={mark}".encode() in environ.split(b"\0") and worker.is_alive()
