"""A thread of the system for one task, which is not there while the process forks. Knows no task.

Python 3.12 and later warn when a process with threads forks. So each of these threads ends just before a fork, and a
new one begins in the parent just after it; a child has none. And it is a thread of the system also where a program has
replaced Python's threads (see :mod:`.unpatched`), for it must run while the main thread waits in the C library.
"""

from __future__ import annotations

import os
import select
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

from .unpatched import is_builtin, unpatched

__all__ = ["Background", "readable"]

poll: Final[Any] = unpatched("select", "poll")
_POLLIN: Final[int] = getattr(select, "POLLIN", 1)  # there is no poll on Windows
_start_new_thread: Final[Any] = unpatched("_thread", "start_new_thread")
_new_lock: Final[Any] = unpatched("_thread", "allocate_lock")
_get_ident: Final[Any] = unpatched("_thread", "get_ident")
_sleep: Final[Any] = unpatched("time", "sleep")
_HAS_THREADS: Final = is_builtin(_start_new_thread) and poll is not None
_TASKS: Final = "/proc/self/task"
_LONGEST_S: Final = 2e6  # more milliseconds poll(2) does not take; whoever waits 23 days may wait for ever
_EXIT_WAIT_S: Final = 0.5  # for the kernel to remove a thread that has run to its end; takes microseconds


def readable(fds: Iterable[int], timeout_s: float | None) -> set[int]:
    """Which of the descriptors have something to be read; sleeps until one has, or until the time is over."""
    poller = poll()
    for fd in fds:
        poller.register(fd, _POLLIN)
    return {fd for fd, _ in poller.poll(None if timeout_s is None or timeout_s > _LONGEST_S else timeout_s * 1000)}


class _Thread:
    """One thread, from its start to its end."""

    __slots__ = ("_ended", "_ident", "_task")

    def __init__(self, run: Callable[[_Thread], None]) -> None:
        self._ended = _new_lock()
        self._ended.acquire()
        self._ident = 0
        self._task = 0
        _start_new_thread(self._run, (run,))

    def _run(self, run: Callable[[_Thread], None]) -> None:
        self._ident = _get_ident()
        self._task = unpatched("_thread", "get_native_id")()
        try:
            run(self)
        finally:
            self._ended.release()

    def is_current(self) -> bool:
        return bool(self._ident == _get_ident())

    def join(self, timeout_s: float = -1) -> bool:
        """Wait until it has run to its end; False when the time is over."""
        if not self._ended.acquire(timeout=timeout_s):
            return False
        self._ended.release()
        return True

    def wait_for_exit(self) -> None:
        """Wait until the kernel does not count it any more; it has run to its end already."""
        until_s = time.monotonic() + _EXIT_WAIT_S
        while os.path.exists(f"{_TASKS}/{self._task}") and time.monotonic() < until_s:
            _sleep(0.00002)


class Background:
    """Runs a task in a thread of its own until the task is done, or until :meth:`stop`.

    Args:
        task: gets this object. Sleeps only in :meth:`sleep`, and returns when :attr:`has_to_return` is true; returns
            True if it is done, so that it is not called again. After a fork it is called anew.

    Attributes:
        has_thread: a thread runs the task, or will after a fork. If it is False, no thread could be started: then
            nothing is done in the background.
    """

    def __init__(self, task: Callable[[Background], bool]) -> None:
        self.has_thread = _HAS_THREADS
        self._task = task
        self._owner_pid = os.getpid()
        self._lock = _new_lock()
        self._pauses = 0  # forks under way
        self._is_stopped = False
        self._is_last = False
        self._is_done = not _HAS_THREADS
        self._thread: _Thread | None = None
        self._reading = self._writing = -1
        if not _HAS_THREADS:
            return
        self._reading, self._writing = _make_wake()
        _members.add(self)
        try:
            with self._lock:  # the thread may run to its end before we know it
                self._thread = _Thread(self._run)
        except BaseException:
            self._close()
            raise

    # -- for the task ---------------------------------------------------------------------------------------------

    @property
    def has_to_return(self) -> bool:
        """Whether the task must return now: it was stopped, or the process forks."""
        return self._is_stopped or self._pauses > 0

    def sleep(self, timeout_s: float | None, *fds: int) -> set[int]:
        """Sleep until one of the descriptors can be read, the time is over, or the task must return.

        Returns:
            The descriptors that can be read.
        """
        if self.has_to_return:
            return set()
        return readable([self._reading, *fds], timeout_s) & set(fds)

    def begin_last(self) -> bool:
        """Say that the task ends by itself from here on; a fork does not wait for that, :meth:`stop` does.

        Returns:
            False if the task must return instead, and be done later or not at all.
        """
        with self._lock:
            self._is_last = not self.has_to_return
            return self._is_last

    # -- for its owner --------------------------------------------------------------------------------------------

    def stop(self, join_s: float = -1) -> None:
        """End the task; it does not run after this call, unless it makes the call. In a forked child, only forget it.

        Args:
            join_s: how long to wait for its end, in seconds; -1 for as long as it takes.
        """
        if os.getpid() != self._owner_pid:
            # The thread is the parent's, and a thread of the parent may have held the lock at the fork: touch neither.
            self._close()
            return
        with self._lock:
            self._is_stopped = True
            thread = self._thread
            if thread is None:
                self._close()
            else:
                self._wake()
        if thread is not None and not thread.is_current():
            thread.join(join_s)

    def is_running(self) -> bool:
        """Whether a thread runs the task now."""
        return self._thread is not None and os.getpid() == self._owner_pid

    # -- around a fork --------------------------------------------------------------------------------------------

    def is_pausable(self) -> bool:
        """Whether it is this process's, and runs or is paused by another thread's fork."""
        return os.getpid() == self._owner_pid and (self._thread is not None or self._pauses > 0)

    def pause(self) -> None:
        """End the thread, but not the task."""
        with self._lock:
            self._pauses += 1
            thread = self._thread
            if thread is None or self._is_last or thread.is_current():
                return
            self._wake()
        if thread.join():
            thread.wait_for_exit()

    def resume(self) -> None:
        """Begin a new thread after :meth:`pause`."""
        with self._lock:
            self._pauses -= 1
            if self._pauses or self._is_stopped or self._is_done or self._thread is not None:
                return
            if readable([self._reading], 0):
                os.read(self._reading, 4096)
            try:
                self._thread = _Thread(self._run)
            except RuntimeError:  # the system has no thread left
                self._is_done, self.has_thread = True, False
                self._close()

    def _run(self, _thread: _Thread) -> None:
        is_done = True
        try:
            is_done = self._task(self)
        finally:
            with self._lock:  # stop() must not write to a number that is another file's by now
                self._thread = None
                self._is_done = is_done or self._is_stopped
                if self._is_done:
                    self._close()

    def _wake(self) -> None:
        if self._writing >= 0:
            try:
                os.write(self._writing, b"\1\0\0\0\0\0\0\0")  # an eventfd takes 8 bytes
            except BlockingIOError:
                pass  # so full that it is awake

    def _close(self) -> None:
        self._task = _no_task  # a method of an object that has us: together they would wait for the garbage collector
        # Forget the numbers first, then close: a child that is forked in between must not close them a second time.
        fds, self._reading, self._writing = {self._reading, self._writing}, -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def _no_task(_: Background) -> bool:
    return True


def _make_wake() -> tuple[int, int]:
    """A descriptor that can be read after a write to the other; one and the same where there is eventfd(2)."""
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return fd, fd
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing


_members: weakref.WeakSet[Background] = weakref.WeakSet()
_paused: dict[int, list[Background]] = {}  # by the thread that forks


def _all() -> list[Background]:
    while True:
        try:
            return list(_members)
        except RuntimeError:  # another thread has just added one
            continue


def _before_fork() -> None:
    # One that begins after this is not in the list: it is a thread at the fork, which does no harm.
    mine = _paused[_get_ident()] = [member for member in _all() if member.is_pausable()]
    for member in mine:
        member.pause()


def _after_in_parent() -> None:
    for member in _paused.pop(_get_ident(), ()):
        member.resume()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_paused.clear)
