"""Who started this process, for a worker whose controller left no manifest. Linux's /proc, else the parent."""

from __future__ import annotations

import os
from typing import Final

from ..base import system
from .identity import Identity, all_stats

__all__ = ["find_launcher"]

_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ksh", "mksh", "ash", "busybox", "fish", "csh", "tcsh"})


def find_launcher() -> Identity | None:
    """The process whose end means that nobody wants this one any more; None if there is none to tell.

    That is the parent. A shell only passes on a program's wish (``system(3)``), so then it is what started the shell,
    within the same session of processes: beyond that it is a terminal, where a person started us. A process whose
    starter has ended already belongs to init, or to another that adopts orphans, and lives until it is told.
    """
    stats = all_stats()
    pid, session = os.getppid(), None
    while pid > 1 and (seen := stats.get(pid)) is not None and not seen.is_ended:
        if session not in (None, seen.session):
            break
        if _name_of(pid) not in _SHELLS:
            return Identity.local(pid, seen.start_ticks)
        pid, session = seen.parent, seen.session
    return None


def _name_of(pid: int) -> str:
    try:
        fd = system.open_file(f"/proc/{pid}/comm")
    except OSError:
        return ""
    try:
        return system.read_all(fd, 64).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    finally:
        system.close(fd)
