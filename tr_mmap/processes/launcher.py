"""Finds the process that started this one, for a worker whose session has no manifest. Signals none."""

from __future__ import annotations

import os
from typing import Final

from ..base import system
from .identity import Identity, all_stats

__all__ = ["find_launcher"]

_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ksh", "mksh", "ash", "busybox", "fish", "csh", "tcsh"})


def find_launcher() -> Identity | None:
    """The process whose death should end this one; None if there is none.

    This is the parent. If the parent is a shell, a program may have started us through it (``system(3)``); then this
    is the shell's parent, if both belong to the same session of processes. If they do not, the shell is a terminal's:
    a person started us, and there is none. There is also none if the launcher has ended already, because the parent is
    then init or another process that adopts orphans. Without one, this process lives until it is told to end. Off Linux
    this is always the parent, because only Linux's /proc tells a shell.
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
