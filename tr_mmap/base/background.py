"""A thread of the system for one task, which is not there while the process forks. Knows no task.

Python 3.12 and later warn when a process with threads forks. So each of these threads ends just before a fork, and a
new one begins in the parent just after it; a child has none. (Python 3.13.0 counts threads only when these have begun
again, so it warns all the same.) It is a thread of the system also in a program that has replaced Python's threads (see
:mod:`.unpatched`), because it must run while the main thread waits in the C library.

There is no lock, because a signal handler may fork, or stop a task, in the middle of any method here. What must be done
in one step is done without a call: the interpreter runs signal handlers, and switches threads, only after a call or at
the end of a loop's pass.
"""

from __future__ import annotations

import os
import select
import signal
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

from . import system
from .fork_safety import at_fork, for_each
from .unpatched import is_builtin, unpatched

__all__ = ["Background", "readable"]

poll: Final[Any] = unpatched("select", "poll")
_POLLIN: Final[int] = getattr(select, "POLLIN", 1)  # there is no poll on Windows
_POLLOUT: Final[int] = getattr(select, "POLLOUT", 4)
_start_new_thread: Final[Any] = unpatched("_thread", "start_new_thread")
_new_lock: Final[Any] = unpatched("_thread", "allocate_lock")
_get_ident: Final[Any] = unpatched("_thread", "get_ident")
_sleep: Final[Any] = unpatched("time", "sleep")
_read: Final[Any] = unpatched("os", "read")  # eventlet's waits until there is something, whatever the descriptor says
_write: Final[Any] = unpatched("os", "write")
_HAS_THREADS: Final = is_builtin(_start_new_thread) and poll is not None
_SIGPIPE: Final = [signal.SIGPIPE] if hasattr(signal, "SIGPIPE") else []  # blocked in these threads: EPIPE is enough
_TASKS: Final = "/proc/self/task"
_LONGEST_S: Final = 2e6  # poll(2) takes no more milliseconds; a wait of 23 days may as well have no limit
_PAUSE_S: Final = 1.0  # how long a fork waits for a thread to end; a thread that is there then does little harm
_BEGIN_S: Final = 1.0  # for a new thread to come to our code; takes microseconds, and one that lacks memory never does
_EXIT_WAIT_S: Final = 0.5  # for the kernel to remove a thread that has run to its end; takes microseconds


def readable(fds: Iterable[int], timeout_s: float | None) -> set[int]:
    """Which of the descriptors have something to be read; sleeps until one has, or until the time is over."""
    return _ready(dict.fromkeys(fds, _POLLIN), timeout_s)


def _ready(wanted: dict[int, int], timeout_s: float | None) -> set[int]:
    """Which of the descriptors have one of their events, or an error; sleeps until one has, or the time is over."""
    poller = poll()
    for fd, events in wanted.items():
        poller.register(fd, events)
    return {fd for fd, _ in poller.poll(None if timeout_s is None or timeout_s > _LONGEST_S else timeout_s * 1000)}


class _Wake:
    """Wakes a task from its sleep. Its descriptors are closed when nobody uses it any more."""

    __slots__ = ("_files", "_writing", "reading")

    def __init__(self) -> None:
        self._files: list[system.OwnFile] = []
        # An eventfd can be read after a write to itself.
        if hasattr(os, "eventfd"):
            self.reading = self._writing = _make_eventfd()
            self._files.append(system.OwnFile(self.reading))
            return
        self.reading, self._writing = system.make_pipe()
        self._files += [system.OwnFile(self.reading), system.OwnFile(self._writing)]
        for fd in (self.reading, self._writing):
            os.set_blocking(fd, False)

    def wake(self) -> bool:
        """Let the sleep end, or the next one if there is none. Returns False if the program has closed our files."""
        if not self._files[-1].is_open():
            return False  # a write would go to somebody else's file
        try:
            _write(self._writing, b"\1\0\0\0\0\0\0\0")  # an eventfd takes 8 bytes
        except BlockingIOError:
            pass  # so full that it is awake
        return True

    def reset(self) -> None:
        """Forget earlier wakes, so that the next sleep does not end at once."""
        try:
            if self._files[0].is_open():
                _read(self.reading, 4096)
        except BlockingIOError:
            pass  # there was nothing

    def __del__(self) -> None:
        for file in self._files:
            file.close()


def _make_eventfd() -> int:
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        system.check_descriptors(error, "an eventfd")
        raise


class _Thread:
    """One thread, from its start to its end. It may die before any code of ours runs in it, for lack of memory.

    Attributes:
        has_begun: it runs the task, or has run it.
        is_lost: :meth:`join` has waited for its begin in vain; it never runs the task.
    """

    __slots__ = ("_ended", "_ident", "_is_claimed", "_run", "_task", "has_begun", "is_lost")

    def __init__(self, run: Callable[[_Thread], None]) -> None:
        self.has_begun = False
        self.is_lost = False
        self._run = run
        self._ended = _new_lock()
        self._ended.acquire()
        self._is_claimed = _new_lock()  # by the thread, which then runs; or by join(), and then it never runs
        self._ident = 0
        self._task = 0

    def run(self) -> None:
        """What the thread does."""
        if not self._is_claimed.acquire(False):
            return
        try:
            if _SIGPIPE and hasattr(signal, "pthread_sigmask"):
                # If the program has restored its default action, a write to a pipe that nobody reads ends the process.
                signal.pthread_sigmask(signal.SIG_BLOCK, _SIGPIPE)
            self._ident = _get_ident()
            self._task = unpatched("_thread", "get_native_id")()
            self._run(self)
        finally:
            self._ended.release()

    def is_current(self) -> bool:
        return bool(self._ident == _get_ident())

    def join(self, timeout_s: float = -1) -> bool:
        """Wait until it has run to its end, or will never run; False when the time is over."""
        first_s = _BEGIN_S if timeout_s < 0 else min(timeout_s, _BEGIN_S)
        if not self._ended.acquire(timeout=first_s):
            if self._is_claimed.acquire(False):
                self.is_lost = True
            elif not self._ended.acquire(timeout=-1 if timeout_s < 0 else timeout_s - first_s):
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
        task: gets this object. Sleeps only in :meth:`sleep` and :meth:`wait_writable`, and returns when
            :attr:`has_to_return` is true; returns True if it is done, so that it is not called again. After a fork it
            is called anew.

    Attributes:
        has_thread: a thread runs the task, or will after a fork. If it is False, no thread could be started, or the
            task has raised: then nothing is done in the background.

    Raises:
        SystemLimit: too many open files, or the system has no thread left.
    """

    def __init__(self, task: Callable[[Background], bool]) -> None:
        self.has_thread = _HAS_THREADS
        self._task = task
        self._owner_pid = os.getpid()
        self._forking: set[int] = set()  # the threads that fork now; a set, because a hook may be lost or run twice
        self._is_stopped = False
        self._is_last = False
        self._is_done = not _HAS_THREADS
        self._thread: _Thread | None = None
        self._wake: _Wake | None = None
        if not _HAS_THREADS:
            return
        self._wake = _Wake()
        _members.add(self)
        try:
            self._begin()
        except BaseException as error:
            self.stop(join_s=0.0)
            if type(error) is RuntimeError:  # that of start_new_thread, which does not tell the cause
                raise system.thread_refused() from error
            raise

    # -- for the task ---------------------------------------------------------------------------------------------

    @property
    def has_to_return(self) -> bool:
        """Whether the task must return now: it was stopped, or the process forks."""
        return self._is_stopped or bool(self._forking)

    def sleep(self, timeout_s: float | None, *fds: int) -> set[int]:
        """Sleep until one of the descriptors can be read, the time is over, or the task must return.

        Returns:
            The descriptors that can be read.
        """
        return self._sleep(timeout_s, dict.fromkeys(fds, _POLLIN))

    def wait_writable(self, fd: int) -> bool:
        """Sleep until the descriptor takes a write, or the task must return. Returns whether it takes one."""
        return bool(self._sleep(None, {fd: _POLLOUT}))

    def _sleep(self, timeout_s: float | None, wanted: dict[int, int]) -> set[int]:
        wake = self._wake
        if wake is None or self.has_to_return:
            return set()
        found = _ready({wake.reading: _POLLIN, **wanted}, timeout_s)
        if wake.reading in found and not self.has_to_return:
            wake.reset()
            if self.has_to_return:  # since the look above: reset() may have taken that wake
                wake.wake()
        return found & set(wanted)

    def begin_last(self) -> bool:
        """Say that the task ends by itself from here on; a fork does not wait for that, :meth:`stop` does.

        Returns:
            False if the task must return instead, and be done later or not at all.
        """
        self._is_last = True  # before the look: a fork that begins after the look sees this
        if self.has_to_return:
            self._is_last = False
        return self._is_last

    # -- for its owner --------------------------------------------------------------------------------------------

    def stop(self, join_s: float = -1) -> None:
        """End the task; it does not run after this call, unless it makes the call. In a forked child, only forget it.

        Args:
            join_s: how long to wait for its end, in seconds; -1 for as long as it takes.
        """
        if os.getpid() != self._owner_pid:
            self._close()
            return
        self._is_stopped = True  # before the look: a thread that begins after the look sees this at its end
        thread = self._thread
        if thread is None:
            self._close()
            return
        if (wake := self._wake) is not None and not wake.wake():
            join_s = 0.0  # nothing can wake the thread; it ends when it wakes by itself
        if not thread.is_current() and thread.join(join_s) and thread.is_lost:
            self._thread = None
            self._close()

    def wake(self) -> None:
        """Let the task's sleep end, or its next one."""
        wake = self._wake
        if wake is not None and os.getpid() == self._owner_pid:
            wake.wake()

    def is_running(self) -> bool:
        """Whether a thread runs the task now."""
        return self._thread is not None and os.getpid() == self._owner_pid

    # -- around a fork --------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """End the thread, but not the task. One that does not end in time is there at the fork, which does no harm."""
        self._forking.add(_get_ident())
        thread, wake = self._thread, self._wake
        if thread is None or wake is None or self._is_last or thread.is_current():
            return
        if wake.wake() and thread.join(_PAUSE_S):
            if thread.is_lost:
                self._thread = None
            else:
                thread.wait_for_exit()

    def resume(self) -> None:
        """Begin a new thread after :meth:`pause`, if that has ended the thread. May be called again, or without it."""
        self._forking.discard(_get_ident())
        self._begin_if_possible()

    def _begin_if_possible(self) -> None:
        try:
            self._begin()
        except RuntimeError:  # the system has no thread left
            self._is_done, self.has_thread = True, False
            self._close()

    def _begin(self) -> None:
        """Begin a thread, if there has to be one and is none."""
        wake = self._wake
        if wake is None:
            return
        if not self.has_to_return:
            wake.reset()
            if self.has_to_return:  # since the look above: reset() may have taken that wake
                wake.wake()
        thread = _Thread(self._run)
        # No call from here to that of the start: so there are never two threads, nor one that is noted and not begun.
        if self._thread is not None or self._is_stopped or self._is_done or self._forking:
            return
        try:
            self._thread = thread
            _start_new_thread(thread.run, ())
        except BaseException:
            # The system has no thread left; or it has begun one, and then a signal handler raised.
            if self._thread is thread and not thread.has_begun:
                self._thread = None
            raise

    def _run(self, thread: _Thread) -> None:
        if self._thread is thread:
            thread.has_begun = True
        if not thread.has_begun:
            return
        is_done = has_failed = True
        try:
            is_done = self._task(self)
            has_failed = False
        finally:
            if has_failed:
                self.has_thread = False
            self._thread = None  # before the look at what stop() says: it has closed nothing if it saw a thread
            if is_done or self._is_stopped:
                self._is_done = True
                self._close()
            else:
                self._begin_if_possible()  # the fork may be over by now

    def _close(self) -> None:
        self._task = _no_task  # the task may refer to an object that refers to us: no cycle for the garbage collector
        self._wake = None


def _no_task(_: Background) -> bool:
    return True


_members: weakref.WeakSet[Background] = weakref.WeakSet()


def _all() -> list[Background]:
    """All that are this process's."""
    while True:
        try:
            return [member for member in _members if member._owner_pid == os.getpid()]
        except RuntimeError:  # another thread has just added one
            continue


def _before_fork() -> None:
    # One that begins after this is not in the list: it is a thread at the fork, which does no harm.
    for_each(_all(), Background.pause)


def _after_in_parent() -> None:
    for_each(_all(), Background.resume)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)  # once: what is not paused is only a thread at the fork
at_fork(after_in_parent=_after_in_parent)
