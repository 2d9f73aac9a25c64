"""A child process: its start, and what it had as exit status. Knows no log, and nothing of what a child starts."""

from __future__ import annotations

import functools
import os
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..base.unpatched import unpatched

__all__ = ["UNKNOWN", "Starter", "child_class"]

UNKNOWN: Final = 1 << 16  # no exit status: the program ignores SIGCHLD, or its own handler has reaped the child
_BEGIN_S: Final = 1.0  # how long a thread may take to begin
_SLICE_S: Final = 0.05  # how often a wait for a thread looks whether this is a forked child, which has no such thread
_IMPORTED: Final = subprocess.Popen
_start_new_thread: Final[Any] = unpatched("_thread", "start_new_thread")
_new_lock: Final[Any] = unpatched("_thread", "allocate_lock")


class _ChildMethods:
    """What :func:`child_class` adds to Popen."""

    # Whether Popen is gevent's. That reaps all children itself, and starts them only from a thread that has its loop.
    is_patched = False

    if TYPE_CHECKING:
        pid: int
        returncode: int | None
        kill: Callable[[], None]
        wait: Callable[..., int]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._owner_pid = os.getpid()
        try:
            super().__init__(*arguments, **options)  # Popen's
        except BaseException:
            # For example Ctrl-C during the wait for execve(2): the caller would never get this child.
            if self._is_left():
                self.end()
            raise

    def _is_left(self) -> bool:
        return getattr(self, "pid", None) is not None and self.returncode is None and os.getpid() == self._owner_pid

    def poll(self) -> int | None:
        """As Popen's, but ``UNKNOWN`` where Popen says 0 of a child that somebody else has reaped."""
        popen: Any = super()
        code: int | None = popen.poll() if self.is_patched else popen._internal_poll(_deadstate=UNKNOWN)
        return code

    def end(self) -> None:
        """End just this process, at once."""
        self.kill()
        self.wait()

    def __del__(self, *_: Any) -> None:
        # Nobody can end it any more: an exception came, before the caller had it. Popen's method would only warn.
        if not self.is_patched and self._is_left():
            self.end()


if TYPE_CHECKING:

    class Child(_ChildMethods, subprocess.Popen[bytes]):
        """A child process; its end is noticed also by a program that reaps children itself."""


def child_class() -> type[Child]:
    """The class of children, over the Popen that the program has now.

    gevent puts its own in place of Python's, and Python's cannot start anything after that. A program may do so when
    this module is imported already.
    """
    present = subprocess.Popen
    return _child_class(present if present.__module__ == "gevent.subprocess" else _IMPORTED)


@functools.cache
def _child_class(popen: type) -> type[Child]:
    return type("Child", (_ChildMethods, popen), {"is_patched": popen.__module__ != "subprocess"})


class Starter:
    """Starts a child from a thread of its own, in which no signal handler runs.

    A handler that raised after the fork, and before the child's number is noted, would leave a process of which nobody
    knows. The kernel suspends the thread that starts a child, so a signal often comes to just that moment.
    """

    def __init__(self, make: Callable[[], Child]) -> None:
        self._make = make
        self._owner_pid = os.getpid()
        self._ended = _new_lock()
        self._ended.acquire()
        self._turn = _new_lock()  # whoever acquires it makes the child
        self._has_begun = self._is_cancelled = self._is_done = False
        self._child: Child | None = None
        self._error: BaseException | None = None

    def start(self) -> Child:
        """Start it. If an exception comes meanwhile, no child is left."""
        try:
            try:
                _start_new_thread(self._run, ())
            except RuntimeError as error:
                if self._has_begun or error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise  # a signal handler raised it
                self._is_cancelled = True
                return self._make()  # the system has no thread left
            until_s = time.monotonic() + _BEGIN_S
            while not self._is_done:
                self._wait()
                if not self._has_begun and time.monotonic() > until_s and self._turn.acquire(False):
                    return self._make()  # the thread has died before its first step, for lack of memory
            if self._error is not None:
                raise self._error
            assert self._child is not None
            return self._child
        except BaseException:
            self._is_cancelled = True  # before the look: a thread that this misses starts nothing
            while self._has_begun and not self._is_done:
                try:
                    self._wait()
                except BaseException:
                    if os.getpid() != self._owner_pid:
                        break
            if self._child is not None and os.getpid() == self._owner_pid:
                self._child.end()
            raise
        finally:
            self._error = None  # its traceback has our frame: a cycle, which only the garbage collector frees

    def _wait(self) -> None:
        if self._ended.acquire(timeout=_SLICE_S):
            self._ended.release()
        if os.getpid() != self._owner_pid:
            raise ChildProcessError("this process was forked from the one that starts a worker, in the middle of that")

    def _run(self) -> None:
        if not self._turn.acquire(False):
            return
        self._has_begun = True
        try:
            if not self._is_cancelled:
                self._child = self._make()
        except BaseException as error:
            self._error = error
        finally:
            self._is_done = True
            self._ended.release()
