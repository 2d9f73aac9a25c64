"""Finds the process that started this one, for a worker whose session has no manifest. Signals none."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Collection, Mapping
from typing import Final

from ..base import system
from .identity import ON_LINUX, Identity, Stat, all_stats
from .tree import with_descendants

__all__ = ["find_launchers"]

_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ksh", "mksh", "ash", "busybox", "fish", "csh", "tcsh"})
_STDOUT_AND_STDERR: Final = ("1", "2")


def find_launchers() -> list[Identity]:
    """The processes that started this one: it should end when all of them have ended. Empty if a person started it.

    Usually this is the parent. If the parent is a shell, a program may have started us through it (``system(3)``). Then
    this is the shell's parent, if both belong to the same session of processes. If they do not, the shell is a
    terminal's: a person started us.

    A program may also have let a shell start us in the background (``system("worker &")``). Then the shell has gone,
    and some process has adopted us: init, or a subreaper (prctl(2)), so that the parent's name tells nothing. But we
    are still in the program's process group, and the program is older than we are. So the launchers are the older
    members of the group, see :func:`_elders`. A process that joins the group later does not count. If the group has no
    older member, the program has ended already. Then the list has one process, which is dead.

    Without a launcher, this process lives until it is told to end. Off Linux this is always the parent, because only
    Linux's /proc tells a shell.
    """
    while True:
        parent = os.getppid()
        found = _launchers_below(parent)
        if os.getppid() == parent:  # else the shell has gone in the middle, and another process has adopted us
            return found


def _launchers_below(parent: int) -> list[Identity]:
    """The launchers, if that process is still our parent."""
    stats = all_stats()
    if ON_LINUX and _is_adopted(parent, stats):
        if found := _elders(stats):
            return found
        if os.getpgrp() != os.getpid() and (parent <= 1 or _name_of(parent) not in _SHELLS):
            # The process that began the group has ended. While the group lives, no other process gets its number.
            return [Identity.local(os.getpgrp(), 0)]
    pid, session = parent, None
    while pid > 1 and (seen := stats.get(pid)) is not None and not seen.is_ended:
        if session not in (None, seen.session):
            break
        if _name_of(pid) not in _SHELLS:
            return [Identity.local(pid, seen.start_ticks)]
        pid, session = seen.parent, seen.session
    return []


def _is_adopted(pid: int, stats: Mapping[int, Stat]) -> bool:
    """Whether the parent is perhaps not the process that started us."""
    group = os.getpgrp()
    seen = stats.get(pid)
    if pid <= 1 or seen is None or seen.is_ended:
        return True
    if group == os.getpid():
        return False  # nobody older is in the group
    if _group_of(pid) != group:
        return True  # a child begins in its parent's group
    # A shell lets what it starts with "&" ignore this signal, and no program does that to a child. If the parent is no
    # shell, that shell has gone, and another process has adopted us.
    is_by_shell = signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN and not _ignores_quit(pid)
    return is_by_shell and _name_of(pid) not in _SHELLS


def _elders(stats: Mapping[int, Stat]) -> list[Identity]:
    """The members of our process group that are older than we are: the program that started us, and who is with it.

    With it are its shell script, the rest of its pipeline, and workers that it started before us. Some of these never
    end before we do: a process that reads our output to its end, and one that waits for such a reader. They and shells
    count only if no other member is there.
    """
    own = stats.get(os.getpid())
    if own is None:
        return []
    descendants = with_descendants([os.getpid()], stats)
    members = {
        pid
        for pid, seen in stats.items()
        if seen.session == own.session
        and not seen.is_ended
        and pid not in descendants
        and _group_of(pid) == os.getpgrp()
        and _is_older(pid, seen, own)
    }
    readers = _readers_of_our_output(members)
    counted = members - readers - {pid for pid in members if _name_of(pid) in _SHELLS}
    for pid in readers:
        while (pid := stats[pid].parent) in members:
            # Waits for the reader perhaps; unless it is the program itself, which has made the reader for its output.
            if counted & with_descendants([pid], stats) - {pid}:
                counted.discard(pid)
    return [Identity.local(pid, stats[pid].start_ticks) for pid in sorted(counted or members)]


def _is_older(pid: int, seen: Stat, own: Stat) -> bool:
    if seen.start_ticks != own.start_ticks:
        return seen.start_ticks < own.start_ticks
    # In the same hundredth of a second: of two workers of one program only one may wait for the other's end.
    return pid < os.getpid() or seen.parent != own.parent


def _readers_of_our_output(members: Collection[int]) -> set[int]:
    """Those that read a pipe in which we, or another such reader, may write: ``program | grep | tee``."""
    written = _pipes_of(os.getpid(), _STDOUT_AND_STDERR, is_reading=False)
    readers: set[int] = set()
    while found := {pid for pid in members if pid not in readers and _pipes_of(pid, is_reading=True) & written}:
        readers |= found
        for pid in found:
            written |= _pipes_of(pid, _STDOUT_AND_STDERR, is_reading=False)
    return readers


def _pipes_of(pid: int, numbers: Collection[str] | None = None, *, is_reading: bool) -> set[str]:
    """The pipes that a process holds open in that direction; only by these descriptors, if some are given."""
    directory = f"/proc/{pid}/fd"
    found: set[str] = set()
    try:
        for number in system.list_dir(directory) if numbers is None else numbers:
            target = system.link_target(f"{directory}/{number}")
            # The permissions of the link say in which direction the descriptor is open: proc(5).
            if target.startswith("pipe:") and system.status(f"{directory}/{number}").st_mode & (
                0o400 if is_reading else 0o200
            ):
                found.add(target)
    except OSError:  # it has ended, has closed that one, or is not ours to look at
        pass
    return found


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def _ignores_quit(pid: int) -> bool:
    found = re.search(rb"^SigIgn:\s*([0-9a-f]+)$", _read(f"/proc/{pid}/status"), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGQUIT - 1) & 1)


def _name_of(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").decode("utf-8", "replace").strip()


def _read(path: str) -> bytes:
    try:
        return system.peek(path, 4096)
    except OSError:
        return b""
