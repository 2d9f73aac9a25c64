"""Ends what a contained process has forked, where forking was granted; also processes in sessions of their own.

A process whose parent has ended becomes a child of the contained process; if that has ended too, of the zygote. The
zygote ends all of these. If something outside kills the zygote itself, they live on.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Collection
from typing import Final

try:
    from . import _kernel
except ImportError:  # there was no compiler
    _kernel = None  # type: ignore[assignment]

__all__ = ["MAKERS", "adopt", "end_all"]

MAKERS: Final = frozenset({"fork", "vfork", "clone", "clone3"})  # the system calls that make processes
_PR_SET_CHILD_SUBREAPER: Final = 36
_WALL: Final = 0x40000000  # of waitpid: also wait for children whose end sends another signal than SIGCHLD
_MAX_ROUNDS: Final = 1000  # bounds the time that a process which forks without end can cost the zygote
_PARENT: Final = 1  # index of the parent among the fields after the name in /proc/PID/stat


def adopt() -> None:
    """Become the parent of descendants whose own parents end."""
    if _kernel is not None:
        _kernel.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    else:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_all(proc: int, known: Collection[int]) -> None:
    """End all children of this process except the known ones, and then those that become its children by that.

    Args:
        proc: a descriptor of /proc.
        known: pids of the children to leave.
    """
    for _ in range(_MAX_ROUNDS):
        found = [pid for pid in _children(proc) if pid not in known]
        if not found:
            return
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stop all first, so that none forks while others are killed
            for pid in found:
                os.kill(pid, number)
        for pid in found:
            os.waitpid(pid, _WALL)


def _children(proc: int) -> list[int]:
    own = os.getpid()
    try:
        fd = os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return []  # no descriptor is left; the next call tries again
    try:
        return [int(name) for name in os.listdir(fd) if name.isdigit() and _parent(proc, name) == own]
    finally:
        os.close(fd)


def _parent(proc: int, name: str) -> int:
    try:
        fd = os.open(f"{name}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return 0  # it has ended
    try:
        return int(os.read(fd, 4096).rpartition(b")")[2].split()[_PARENT])
    except (OSError, IndexError):
        return 0
    finally:
        os.close(fd)
