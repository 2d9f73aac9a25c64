"""Which process one is, told from all others that had or will have its pid. Knows nothing of workers or sessions.

A pid alone identifies no process, because the kernel reuses it. All code that judges or signals a process uses its
:class:`Identity` and, on Linux, a pidfd that was checked against it. So a stranger's process that got the number is
never taken for the peer and never signalled. A process that cannot be judged counts as alive.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Iterable
from typing import Annotated, Final, NamedTuple

import msgspec

from ..base import system
from ..base.background import readable
from ..wire.waits import POLL_S

__all__ = ["ON_LINUX", "Identity", "Stat", "all_stats", "open_pidfd", "send_signal", "wait_for_ends"]

_MAX_PID: Final = 2**31 - 1
ON_LINUX: Final = sys.platform == "linux"


class Stat(NamedTuple):
    """What the system says of a process; all fields are from the same moment."""

    start_ticks: int
    is_ended: bool  # a zombie, or being removed
    parent: int
    session: int


def _stat(pid: int) -> Stat | None:
    """The stat of a process; None if there is none of that number, or none that we may see."""
    if not ON_LINUX:
        return _stat_portable(pid)
    try:
        text = system.peek(f"/proc/{pid}/stat", 4096)
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # ProcessLookupError: it ended after the open
        return None
    # proc(5): the second field is the name in parentheses, and the name may hold spaces and parentheses itself, so
    # count from the last ")". Field 3 (state) comes next: 4 is the parent, 6 the session, 22 the start in ticks.
    fields = text[text.rindex(b")") + 1 :].split()
    # A living process has a zombie's state if its main thread ended before the others (field 20 counts the threads).
    is_ended = fields[0] in (b"Z", b"X", b"x") and int(fields[17]) <= 1
    return Stat(int(fields[19]), is_ended, int(fields[1]), int(fields[3]))


def _stat_portable(pid: int) -> Stat | None:
    import psutil  # here, because it takes 15 ms

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            is_ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            session = os.getsid(pid) if hasattr(os, "getsid") else 0
            return Stat(int(process.create_time() * 100), is_ended, process.ppid(), session)
    except psutil.ZombieProcess:  # macOS says nothing else about one
        return Stat(0, True, 0, 0)
    except (psutil.Error, OSError):
        return None


def all_stats() -> dict[int, Stat]:
    """Every process that we may see, by pid."""
    if ON_LINUX:
        pids = [int(name) for name in system.list_dir("/proc") if name.isdigit()]
    else:
        import psutil

        pids = psutil.pids()
    return {pid: seen for pid in pids if (seen := _stat(pid)) is not None}


@functools.cache
def _boot_id() -> str:
    """The boot that start ticks count from; "" if they count from another moment, or if it cannot be read."""
    try:
        fd = system.open_file("/proc/sys/kernel/random/boot_id")
    except OSError:
        return ""
    try:
        return system.read_all(fd, 64).decode("ascii").strip()
    finally:
        system.close(fd)


@functools.lru_cache(maxsize=1)
def _pid_namespace(_own_pid: int) -> int:
    """The numbering that our pid belongs to; 0 if unknown. Cached by pid: a fork after unshare(2) has another one."""
    try:
        return int(system.link_target("/proc/self/ns/pid").strip("pid:[]"))
    except (OSError, ValueError):
        return 0


class Identity(msgspec.Struct, frozen=True):
    """One process, told from all others that had or will have its pid.

    Attributes:
        pid: its number, 1 or more.
        start_ticks: when it started, in clock ticks after boot (off Linux: hundredths of a second since 1970).
        boot_id: the boot that the ticks count from; "" where the system has none.
        pid_namespace: the numbering that the pid belongs to (containers may share a directory and not their pids);
            0 where unknown.
    """

    pid: Annotated[int, msgspec.Meta(ge=1, le=_MAX_PID)]
    start_ticks: Annotated[int, msgspec.Meta(ge=0)]
    boot_id: str
    pid_namespace: int = 0

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The process that has that pid now, also a zombie; None if there is none, or none that we may see."""
        seen = _stat(pid) if 0 < pid <= _MAX_PID else None
        return None if seen is None else cls.local(pid, seen.start_ticks)

    @classmethod
    def local(cls, pid: int, start_ticks: int) -> Identity:
        """A process of this boot and this numbering of pids."""
        return cls(pid, start_ticks, _boot_id(), _pid_namespace(os.getpid()))

    @classmethod
    def current(cls) -> Identity:
        """This process."""
        # Without a readable /proc any start time will do: our pid is taken, so other processes judge us alive.
        return cls.of(os.getpid()) or cls.local(os.getpid(), 0)

    def is_judgeable(self) -> bool:
        """Whether its pid has a meaning here: it belongs to our numbering of pids, or that is unknown."""
        own = _pid_namespace(os.getpid())
        return 0 < self.pid <= _MAX_PID and (0 in (own, self.pid_namespace) or own == self.pid_namespace)

    def is_alive(self) -> bool:
        """False only if exactly this process has certainly ended; a zombie has ended."""
        boot_id = _boot_id()
        if boot_id and self.boot_id and boot_id != self.boot_id:
            return False
        if not self.is_judgeable():
            return True
        try:
            seen = _stat(self.pid)
        except OSError:  # no descriptor is left, say
            seen = None
        if seen is not None:
            return not seen.is_ended and seen.start_ticks == self.start_ticks
        return _is_pid_taken(self.pid)


def _is_pid_taken(pid: int) -> bool:
    """Whether any process has the number; for processes whose /proc entry is hidden from us."""
    if os.name != "posix":  # pragma: no cover - os.kill would end the process there
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def open_pidfd(identity: Identity) -> int | None:
    """A pidfd of exactly that process; None if no pidfd can be opened here.

    Raises:
        ProcessLookupError: it has ended.
    """
    if not hasattr(os, "pidfd_open") or not identity.is_judgeable():
        return None
    try:
        fd: int | None = os.pidfd_open(identity.pid)
    except OSError:  # it has ended; or no such system call, forbidden in this sandbox, or out of descriptors
        fd = None
    # After opening, not before: if the process lives now, its pid was not reused before we opened it.
    if identity.is_alive():
        return fd
    if fd is not None:
        os.close(fd)
    raise ProcessLookupError(f"process {identity.pid} has ended")


def wait_for_ends(identities: Iterable[Identity], deadline: float) -> bool:
    """Wait until all have ended, at most until the monotonic clock says ``deadline``. Returns whether all have."""
    for identity in identities:
        try:
            fd = open_pidfd(identity)
        except ProcessLookupError:
            continue
        if fd is None:
            while identity.is_alive():
                if time.monotonic() >= deadline:
                    return False
                time.sleep(POLL_S / 10)
            continue
        try:
            if not readable([fd], max(0.0, deadline - time.monotonic())):
                return False
        finally:
            os.close(fd)
    return True


def send_signal(identity: Identity, number: int) -> None:
    """Signal exactly that process; nothing happens if it is gone or not ours to signal."""
    try:
        fd = open_pidfd(identity)
        if fd is None:
            if identity.is_judgeable() and identity.is_alive():
                os.kill(identity.pid, number)
            return
        try:
            signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)
    except (ProcessLookupError, PermissionError):
        pass
