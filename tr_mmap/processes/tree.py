"""Finds what a worker started: which processes descend from which, and which bear the worker's mark. Signals none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from ..base import system
from ..wire.limits import MAX_ENVIRON_NBYTES
from ..wire.names import WORKER_MARK_VARIABLE
from .identity import ON_LINUX, Identity, Stat

__all__ = ["has_mark", "may_have_mark", "with_descendants"]


def with_descendants(pids: Iterable[int], stats: Mapping[int, Stat]) -> set[int]:
    """These processes, and all that descend from them according to ``stats``."""
    found = set(pids)
    while True:
        children = {pid for pid, seen in stats.items() if seen.parent in found and pid not in found}
        if not children:
            return found
        found |= children


def has_mark(process: Identity, mark: str) -> bool:
    """Whether a living process was started with this mark in its environment; False where that cannot be read."""
    wanted = f"{WORKER_MARK_VARIABLE}={mark}".encode()
    # The environment was certainly this process's only if it still lives: then it had the pid at the read too.
    return wanted in _environment_of(process.pid) and process.is_alive()


def may_have_mark(process: Identity, mark: str) -> bool:
    """Whether a process was perhaps started with this mark: it has it, or nothing can be read.

    The environment of a process that is just ending is empty, and that of others may be unreadable.
    """
    environment = _environment_of(process.pid)
    return not any(environment) or f"{WORKER_MARK_VARIABLE}={mark}".encode() in environment


def _environment_of(pid: int) -> list[bytes]:
    if not ON_LINUX:
        return _environment_portable(pid)
    try:
        fd = system.open_file(f"/proc/{pid}/environ")
    except OSError:
        return []
    try:
        return system.read_all(fd, MAX_ENVIRON_NBYTES).split(b"\0")
    except OSError:
        return []
    finally:
        system.close(fd)


def _environment_portable(pid: int) -> list[bytes]:
    import psutil  # here, because it takes 15 ms

    try:
        return [os.fsencode(f"{name}={value}") for name, value in psutil.Process(pid).environ().items()]
    except (psutil.Error, OSError):
        return []
