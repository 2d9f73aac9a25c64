"""An open POSIX semaphore: post, or sleep until it is posted. Never makes or removes one."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import threading
import time
from typing import Any, Final

from ...wire.waits import MAX_DRAINED_RINGS, MIN_SLICE_S, SIGNAL_SLICE_S, SIGNAL_SLICE_SHARE
from ..libc import libc
from ..posix_ipc_package import load_posix_ipc

posix_ipc: Any = None
_why_missing = ""
try:
    posix_ipc = load_posix_ipc()
except ImportError as _error:  # Semaphore() says so; all else works without it
    _why_missing = str(_error)

__all__ = ["Semaphore", "check_slice", "check_time", "longest_sleep_s"]

_MAX_SLEEP_S: Final = 1e6  # so that no timeout, infinity included, overflows the clock's seconds


def check_time(seconds: float) -> float:
    """A time to wait in seconds.

    Raises:
        TypeError, ValueError: it is not a number.
    """
    if math.isnan(seconds):
        raise ValueError("the time to wait is not a number (NaN)")
    return seconds


def check_slice(seconds: float) -> float:
    """The longest single sleep in seconds; a millisecond at least.

    Raises:
        TypeError, ValueError: it is not a positive number.
    """
    if not 0 < check_time(seconds) < math.inf:
        raise ValueError("slice_s, the longest single sleep, is a positive number of seconds")
    return max(seconds, MIN_SLICE_S)


def longest_sleep_s(slice_s: float, waited_s: float) -> float:
    """The longest single sleep of a wait; ``wire/waits.py`` gives the reasons.

    Args:
        slice_s: the longest one that the caller allows.
        waited_s: for how long the wait has lasted.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return slice_s
    return min(slice_s, max(SIGNAL_SLICE_S, waited_s * SIGNAL_SLICE_SHARE))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


# posix_ipc swallows what a signal handler raises during a wait, and waits by the wall clock, which may be set back.
# The C library does better from glibc 2.30 on. There we wait with it, on the semaphore that posix_ipc has open.
_sem_clockwait: Final[Any] = getattr(libc, "sem_clockwait", None)
_CLOCK_MONOTONIC: Final = 1  # linux/time.h
if _sem_clockwait is not None:
    _sem_clockwait.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec)]
    libc.sem_open.argtypes = [ctypes.c_char_p, ctypes.c_int]
    libc.sem_open.restype = ctypes.c_void_p
    libc.sem_close.argtypes = [ctypes.c_void_p]


class Semaphore:
    """An existing named semaphore.

    Raises:
        ImportError: posix_ipc is not installed, or cannot be loaded.
        OSError: there is none of that name, or this user may not open it.
    """

    __slots__ = ("_address", "_semaphore", "post")

    def __init__(self, name: str) -> None:
        self._address: int | None = None
        self._semaphore: Any = None
        if posix_ipc is None:
            raise ImportError(_why_missing, name="posix_ipc")
        try:
            self._semaphore = posix_ipc.Semaphore(name)
        except posix_ipc.Error as error:
            code = errno.EACCES if isinstance(error, posix_ipc.PermissionsError) else errno.ENOENT
            raise OSError(code, os.strerror(code)) from error
        self.post = self._semaphore.release
        """Raises OSError if it was posted 2**31 times and no process has waited."""
        # The C library gives one address for one name, so this is the semaphore that posix_ipc has just opened.
        if _sem_clockwait is not None:
            self._address = libc.sem_open(name.encode(), 0)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until posted; False when ``timeout_s`` is over. What a signal handler raises (Ctrl-C) comes at once.

        Raises:
            ValueError: the time is NaN.
        """
        began_s, waited_s = time.monotonic(), 0.0
        check_time(timeout_s)
        while True:
            if self.sleep(longest_sleep_s(timeout_s - waited_s, waited_s)):
                return True
            waited_s = time.monotonic() - began_s
            if not waited_s < timeout_s:
                return False

    def sleep(self, timeout_s: float) -> bool:
        """Sleep once until posted; False when the time is over."""
        # Posted already, perhaps more than once, for messages that we found without waiting: all these are one hint.
        count = min(self._semaphore.value, MAX_DRAINED_RINGS) if posix_ipc.SEMAPHORE_VALUE_SUPPORTED else 0
        if count:
            for _ in range(count):
                self._wait_by_wall_clock(0)
            return True
        timeout_s = min(max(timeout_s, 0.0), _MAX_SLEEP_S)
        if self._address is None or not timeout_s:
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

    def __del__(self) -> None:
        if self._address is not None:
            libc.sem_close(self._address)
        if self._semaphore is not None:
            self._semaphore.close()
