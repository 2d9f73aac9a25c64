"""Starts a process, and ends it with all that it started. Knows nothing of sessions."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..base import system
from ..base.unpatched import unpatched
from ..wire.names import WORKER_MARK_VARIABLE
from ..wire.waits import KILL_WAIT_S, TERMINATE_GRACE_S
from .ending import kill_all
from .identity import Identity, all_stats, send_signal, wait_for_ends
from .log_forwarder import LogForwarder
from .tree import has_mark, with_descendants
from .worker_log import LogSize, create_log, log_size, log_tail

__all__ = ["WorkerProcess", "child_class"]


_REAP_S: Final = 0.005  # how often to look whether a killed child has ended, if no descriptor is left to wait on
_UNKNOWN: Final = 1 << 16  # no exit status: the program ignores SIGCHLD, or its own handler has reaped the child
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
        """As Popen's, but ``_UNKNOWN`` where Popen says 0 of a child that somebody else has reaped."""
        popen: Any = super()
        code: int | None = popen.poll() if self.is_patched else popen._internal_poll(_deadstate=_UNKNOWN)
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


class _Starter:
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


class WorkerProcess:
    """A process that this one started, in a session of its own, its output in a log. Made by :meth:`spawn`.

    In a forked child of this process, the methods only report; they end nothing.

    Attributes:
        program: that was run.
        log_path: the file with its output.
        pid: its number.
        identity: tells it from later processes of the same pid.
        on_end: called after its tree was ended.
        killed: the processes of its tree that had to be killed, and so could not clean up.
    """

    on_end: Callable[[], None] | None = None

    def __init__(self, child: subprocess.Popen[bytes], program: str, log_path: str, mark: str) -> None:
        self._child = child
        self._mark = mark
        self._owner_pid = os.getpid()
        self._is_forced = False
        # Popen.poll says None while another thread is reaping. Reentrant, because a signal handler may ask too.
        self._reap_lock = threading.RLock()
        self._forwarder: LogForwarder | None = None
        self.killed: set[Identity] = set()
        self.program = program
        self.log_path = log_path
        self.pid = child.pid
        # A child keeps its pid until it is reaped. It is gone already only if the application ignores SIGCHLD.
        self.identity = Identity.of(child.pid) or Identity.local(child.pid, 0)

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: str,
        log_link: str = "",
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
        mark: str = "",
        quiet: bool = True,
    ) -> WorkerProcess:
        """Start a program, without a shell.

        Args:
            argv: the program and its arguments.
            env: its whole environment; one variable is added that marks its tree.
            log_path: where stdout and stderr go; a new file, 0600, which replaces one that is there.
            log_link: a symlink to the log is made here; "" for none. If no file can be made at ``log_path``, the log is
                here itself.
            cwd: its current directory; None for this process's.
            pass_fds: descriptors that it inherits under the same numbers; no others.
            mark: the value of that variable, different for each process; "" to make one.
            quiet: False also copies its output to this process's stderr.

        Raises:
            SystemLimit: too many open files or processes, or too little memory.
            OSError: a system call failed; no process is left.
        """
        mark = mark or f"{os.getpid()}-{os.urandom(8).hex()}"

        def start(log_fd: int) -> Child:
            kind = child_class()
            make = partial(
                kind,
                list(argv),
                env={**env, WORKER_MARK_VARIABLE: mark},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=tuple(pass_fds),
                close_fds=True,
                start_new_session=True,  # so that Ctrl-C at the terminal reaches only the controller
            )
            return make() if kind.is_patched else _Starter(make).start()

        return cls.logged(start, argv[0], log_path=log_path, log_link=log_link, mark=mark, quiet=quiet)

    @classmethod
    def logged(
        cls,
        start: Callable[[int], Child],
        program: str,
        *,
        log_path: str,
        log_link: str = "",
        mark: str,
        quiet: bool = True,
    ) -> WorkerProcess:
        """Start a program in another way than :meth:`spawn` does; the other arguments and the errors are the same.

        Args:
            start: gets the descriptor of the log, and starts the program, or makes a spare become it.
            program: the program.
            log_path: see :meth:`spawn`.
            log_link: see :meth:`spawn`.
            mark: the value of the variable that marks its tree.
            quiet: see :meth:`spawn`.
        """
        child: Child | None = None
        try:
            log_path, log_fd = create_log(log_path, log_link)
            try:
                child = start(log_fd)
            finally:
                system.close(log_fd)
            worker = cls(child, program, log_path, mark)
        except BaseException as error:
            if child is not None:
                child.end()
            if isinstance(error, OSError):
                system.check_limit(error, program)
                system.check_processes(error, program)
            raise
        if not quiet:
            try:
                worker._forwarder = LogForwarder(log_path, from_start=True)
            except BaseException:
                worker.terminate_tree(grace_s=0)
                raise
        return worker

    def __del__(self) -> None:
        if (forwarder := getattr(self, "_forwarder", None)) is not None and os.getpid() == self._owner_pid:
            forwarder.stop()

    def forward_log(self, is_wanted: bool) -> None:
        """Begin or end to copy what the worker writes from now on to this process's stderr."""
        if is_wanted and self._forwarder is None:
            self._forwarder = LogForwarder(self.log_path, from_start=False)
        elif not is_wanted and self._forwarder is not None:
            forwarder, self._forwarder = self._forwarder, None
            forwarder.stop(join_s=1.0)

    @property
    def exit_code(self) -> int | None:
        """Its exit status, negative if a signal ended it; None while it lives, or if the status is unknown."""
        code = self._poll()
        return None if code == _UNKNOWN else code

    def _poll(self) -> int | None:
        """As ``exit_code``, but ``_UNKNOWN`` if it has ended and its status is unknown."""
        if os.getpid() != self._owner_pid:
            return None  # a forked child cannot wait for its sibling
        with self._reap_lock:
            code = self._child.poll()
        if code is not None and self._forwarder is not None:
            self._forwarder.stop()
        return code

    @property
    def has_ended_by_itself(self) -> bool | None:
        """Whether it has ended, and neither a signal nor :meth:`terminate_tree` has ended it; None if unknown."""
        code = self._poll()
        if code == _UNKNOWN and not self._is_forced:
            return None
        return code is not None and code >= 0 and not self._is_forced

    def is_alive(self) -> bool:
        """Whether it has not ended. Also right in a forked child."""
        return self.identity.is_alive() if os.getpid() != self._owner_pid else self._poll() is None

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end, up to ``timeout_s``. Returns whether it has ended. May be interrupted and called again."""
        if self.is_alive():
            wait_for_ends([self.identity], time.monotonic() + timeout_s)
        return not self.is_alive()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its output, as :func:`~.worker_log.log_tail` finds them."""
        return log_tail(self.log_path, lines)

    def log_size(self) -> LogSize:
        """How large its log is, and how much of its output the log has dropped."""
        return log_size(self.log_path)

    def terminate_tree(self, grace_s: float = TERMINATE_GRACE_S) -> None:
        """End the worker and every process it started: SIGTERM, ``grace_s`` seconds, SIGKILL to what is left.

        These are its descendants and the members of its session; it may be gone already. A resource tracker of
        ``multiprocessing`` gets the time to clean up after the others. An interrupt during the grace period leads
        straight to SIGKILL.
        """
        if os.getpid() != self._owner_pid:
            return
        if self.is_alive():
            self._is_forced = True  # a worker that gets SIGTERM may end with status 0
        try:
            tree = self._tree(())
        except OSError:
            # For example no descriptor is left to read /proc. The worker itself can be ended without one.
            with self._reap_lock:
                self._child.kill()
            deadline = time.monotonic() + KILL_WAIT_S
            while self._poll() is None and time.monotonic() < deadline:  # Popen.wait would make up a status
                time.sleep(_REAP_S)
            raise
        try:
            for identity in tree:
                send_signal(identity, signal.SIGTERM)
            wait_for_ends(tree, time.monotonic() + grace_s)
        finally:
            if os.getpid() == self._owner_pid:  # else a signal handler has forked meanwhile
                self._kill_tree(tree)

    def _kill_tree(self, tree: list[Identity]) -> None:
        deadline = time.monotonic() + KILL_WAIT_S

        def rest() -> list[Identity]:
            nonlocal tree
            tree = self._tree(tree)
            self.killed.update(tree)
            return tree

        kill_all(rest, deadline)
        self.wait(max(0.0, deadline - time.monotonic()))
        self.forward_log(False)
        if self.on_end is not None:
            self.on_end()

    def _tree(self, known: Iterable[Identity]) -> list[Identity]:
        """The living among ``known``, the worker, its session, and all their descendants."""
        stats = all_stats()
        members = {identity.pid for identity in known if identity.is_alive()}
        is_own_pid = self._poll() is None  # until it is reaped, no other process can have its pid
        if is_own_pid:
            members.add(self.pid)
        for pid, seen in stats.items():
            # The leader of another session may have a dead worker's pid. Then only the mark tells its members.
            if seen.session != self.pid or seen.is_ended:
                continue
            if is_own_pid or has_mark(Identity.local(pid, seen.start_ticks), self._mark):
                members.add(pid)
        return [
            Identity.local(pid, stats[pid].start_ticks)
            for pid in with_descendants(members, stats)
            if pid in stats and not stats[pid].is_ended
        ]
