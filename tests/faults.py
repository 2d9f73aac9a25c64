"""System calls that fail on demand, behind the one package that makes them.

What is replaced is not the functions of ``tr_mmap.base.system`` but what they call: ``os``, ``fcntl``, ``shutil`` and
libc as its modules see them, and the one call that the extension makes for it. So its own handling of errors is tested
too.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pytest
from support import check_open_files, open_files

from tr_mmap import OutOfSpace, TRException
from tr_mmap.base import system
from tr_mmap.base.system import dirents, fifos, files, memory, own_file, refusals

OLD, NEW = np.arange(1000.0), np.arange(2000.0)[::-1]
LARGE = np.arange(100_000.0)  # beyond 256 KiB a new segment is filled in another way

ERRNOS: Final = (errno.ENOSPC, errno.EIO, errno.EINTR, errno.EMFILE, errno.EACCES)

OS_CALLS: Final = (
    *("close", "fchmod", "fdatasync", "fstat", "fstatvfs", "fsync", "ftruncate", "link", "listdir", "lstat", "mkdir"),
    *("memfd_create", "mkfifo", "open", "pipe"),
    *("posix_fallocate", "pread", "preadv", "pwrite", "readlink", "replace", "rmdir", "stat", "statvfs", "symlink"),
    *("unlink", "write"),
)
FCNTL_CALLS: Final = ("fcntl", "flock", "lockf")
LIBC_CALLS: Final = ("fstatfs", "madvise", "renameat2")
_AFTER: Final = frozenset({"close"})  # Linux closes the descriptor whatever close(2) says


@dataclass(frozen=True)
class Plan:
    """Which calls fail: from the ``nth`` on (1 is the first), that one or all, with ``number``."""

    nth: int
    number: int
    is_forever: bool

    def __str__(self) -> str:
        return f"{errno.errorcode[self.number]} {'from' if self.is_forever else 'at'} call {self.nth}"


class Faults:
    """Counts the system calls of ``tr_mmap.base.system``, and makes some fail while a plan is armed.

    Calls on ``/proc`` neither count nor fail: how many there are depends on the machine.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan: Plan | None = None
        self._last_plan: Plan | None = None  # also after it was ended, for another thread that is in a call
        self.calls: list[str] = []  # since armed
        self.fired: list[str] = []
        self.has_fired = False  # since each_plan's last attempt began
        self._proc_fds: set[int] = set()
        for module in (files, dirents, fifos, own_file, refusals):
            calls = {name: self._os_call(name) for name in OS_CALLS}
            monkeypatch.setattr(module, "os", _Substitute(os, calls))
        monkeypatch.setattr(system, "close", self._os_call("close"))  # which is os.close itself
        for module in (files, memory, dirents):
            calls = {name: self._libc_call(name) for name in LIBC_CALLS}
            monkeypatch.setattr(module, "libc", _Substitute(memory.libc, calls))
        for name in ("map_file", "libc_mmap"):
            monkeypatch.setattr(memory, name, self._wrap("mmap", getattr(memory, name)))
        for module in (files, dirents):
            calls = {name: self._wrap(name, getattr(fcntl, name)) for name in FCNTL_CALLS}
            monkeypatch.setattr(module, "fcntl", _Substitute(fcntl, calls))
        # The extension's fast path makes its calls itself; whatever they say, the slow path is taken then.
        monkeypatch.setattr("tr_mmap.tsr.files.quick_load", lambda *_: None)
        # Imported where it is needed only.
        monkeypatch.setitem(sys.modules, "shutil", _Substitute(shutil, {"rmtree": self._rmtree}))

    def arm(self, plan: Plan | None) -> None:
        self._last_plan = plan or self._last_plan
        self.plan, self.calls, self.fired = plan, [], []

    def disarm(self) -> list[str]:
        """End the plan; the calls that it made fail."""
        self.plan = None
        return self.fired

    def _is_due(self, name: str) -> bool:
        self.calls.append(name)
        plan = self.plan
        if plan is None or len(self.calls) < plan.nth or (len(self.calls) > plan.nth and not plan.is_forever):
            return False
        self.fired.append(name)
        self.has_fired = True
        return True

    def _error(self) -> OSError:
        assert self._last_plan is not None
        return OSError(self._last_plan.number, os.strerror(self._last_plan.number) + " (injected)")

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if not self._is_due(name):
                return function(*arguments, **more)
            if name in _AFTER:
                function(*arguments, **more)
            raise self._error()

        return call

    def _os_call(self, name: str) -> Callable[..., Any]:
        function = getattr(os, name)
        counted = self._wrap(name, function)

        def call(*arguments: Any, **more: Any) -> Any:
            target = arguments[0] if arguments else None
            if target in self._proc_fds or (isinstance(target, str) and target.startswith("/proc")):
                result = function(*arguments, **more)
                if name == "open":
                    self._proc_fds.add(result)
                elif name == "close":
                    self._proc_fds.discard(target)
                return result
            return counted(*arguments, **more)

        return call

    def _libc_call(self, name: str) -> Callable[..., Any]:
        function = getattr(memory.libc, name)

        def call(*arguments: Any) -> Any:
            if not self._is_due(name):
                return function(*arguments)
            assert self.plan is not None
            ctypes.set_errno(self.plan.number)
            return -1

        return call

    def _rmtree(self, path: str, *, ignore_errors: bool) -> None:
        """Removes nothing when it fails; nobody is told, as the caller wants it."""
        assert ignore_errors
        if not self._is_due("rmtree"):
            shutil.rmtree(path, ignore_errors=True)


class _Substitute:
    """A module of which some functions are others."""

    def __init__(self, real: Any, others: dict[str, Any]) -> None:
        self.__dict__.update(others)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


def each_plan(faults: Faults, attempt: Callable[[Plan], None], numbers: Sequence[int] = ERRNOS) -> dict[str, int]:
    """Run ``attempt`` with every plan, n = 1, 2, ... until none of its calls fails; how often each call failed."""
    failed: dict[str, int] = {}
    for number in numbers:
        for is_forever in (False, True):
            nth = 0
            while True:
                nth += 1
                faults.has_fired = False
                attempt(plan := Plan(nth, number, is_forever))
                for name in faults.disarm()[:1]:
                    failed[name] = failed.get(name, 0) + 1
                if not faults.has_fired:
                    break
                assert nth < 1000, plan
    return failed


def attempt(action: Callable[[], Any], plan: Plan) -> bool:
    """Do it; whether it raised, which must be an error that a caller can expect."""
    try:
        action()
    except OutOfSpace as error:
        return error.needed_nbytes > 0 and error.free_nbytes >= 0 and plan.number == errno.ENOSPC
    except (OSError, TRException):
        return True
    return False


@pytest.fixture
def as_before() -> Iterator[None]:
    """No descriptor is lost."""
    before = open_files()
    yield
    gc.collect()
    check_open_files(before)
