"""A doorbell: a named semaphore that says "look again". A hint, never a lock, so any count in it is harmless."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import sys
import time
from typing import Any, Final

import posix_ipc

from .. import system
from ..errors import HostilePath, OutOfSpace

__all__ = ["Doorbell", "is_doorbell_name"]

is_doorbell_name = re.compile(r"/tr_[A-Za-z0-9_.-]{1,240}").fullmatch  # no message has us use another program's

_SEMAPHORE_DIR = "/dev/shm"  # where glibc keeps them
_MIN_SEMAPHORE_NBYTES = 32  # sizeof(sem_t) on 64-bit Linux


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


# posix_ipc swallows what a signal handler raises during a wait, and waits by the wall clock, which somebody may turn
# back. So where the C library can do better (glibc 2.30), we wait by it, on the semaphore that posix_ipc has open.
_libc: Final = ctypes.CDLL(None, use_errno=True)
_sem_clockwait: Final[Any] = getattr(_libc, "sem_clockwait", None)
_CLOCK_MONOTONIC: Final = 1  # linux/time.h
if _sem_clockwait is not None:
    _sem_clockwait.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec)]
    _libc.sem_open.argtypes = [ctypes.c_char_p, ctypes.c_int]
    _libc.sem_open.restype = ctypes.c_void_p
    _libc.sem_close.argtypes = [ctypes.c_void_p]


class Doorbell:
    """One semaphore. Ringing twice before anyone looks wakes twice; the second look finds nothing."""

    __slots__ = ("_address", "_semaphore", "name", "ring")

    def __init__(self, name: str, flags: int) -> None:
        self.name = name
        self._semaphore = posix_ipc.Semaphore(name, flags, mode=0o600, initial_value=0)
        self.ring = self._semaphore.release
        # The C library gives one address for one name, so this is the semaphore that posix_ipc has just opened.
        self._address = None if _sem_clockwait is None else _libc.sem_open(name.encode(), 0)

    @classmethod
    def create(cls, name: str) -> Doorbell:
        """Make a doorbell.

        Raises:
            OutOfSpace: there is no room where the system keeps semaphores.
        """
        try:
            return cls(name, posix_ipc.O_CREX)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            free = system.free_nbytes(_SEMAPHORE_DIR)
            raise OutOfSpace(
                f"no room for a semaphore in {_SEMAPHORE_DIR}, {free} bytes are free; free space there",
                needed_nbytes=_MIN_SEMAPHORE_NBYTES,
                free_nbytes=free,
            ) from error

    @classmethod
    def open(cls, name: str) -> Doorbell:
        """Open the peer's doorbell.

        Raises:
            HostilePath: its file is not ours alone, or too short to be one; ringing it would be SIGBUS.
            posix_ipc.ExistentialError: it is gone.
        """
        if sys.platform == "linux":
            path = f"{_SEMAPHORE_DIR}/sem.{name.lstrip('/')}"
            try:
                info = os.lstat(path)
            except FileNotFoundError:
                info = None
            if info is not None and not (
                stat.S_ISREG(info.st_mode)
                and info.st_size >= _MIN_SEMAPHORE_NBYTES
                and info.st_uid == os.geteuid()
                and not info.st_mode & 0o022
            ):
                raise HostilePath(f"{path} is not a semaphore of ours", path=path, reason="kind, size, owner or mode")
        return cls(name, 0)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until rung; False when the time is over. What a signal handler raises, Ctrl-C say, comes at once."""
        if self._address is None:
            return self._wait_by_wall_clock(timeout_s)
        until_s = time.monotonic() + timeout_s
        seconds = int(until_s)
        until = _Timespec(seconds, int((until_s - seconds) * 1e9))
        if _sem_clockwait(self._address, _CLOCK_MONOTONIC, until) == 0:
            return True
        return ctypes.get_errno() != errno.ETIMEDOUT  # else a handler ran and did not raise: look again

    def _wait_by_wall_clock(self, timeout_s: float) -> bool:
        try:
            self._semaphore.acquire(timeout_s)
        except posix_ipc.BusyError:
            return False
        except posix_ipc.SignalError:
            return True
        return True

    def unlink(self) -> None:
        """Remove the name; both open ends go on working, and nothing is left if both die."""
        try:
            posix_ipc.unlink_semaphore(self.name)
        except posix_ipc.ExistentialError:
            pass

    def close(self) -> None:
        address, self._address = self._address, None
        if address is not None:
            _libc.sem_close(address)
        self._semaphore.close()
