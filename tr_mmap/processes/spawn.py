"""Starts a process, and ends it with all that it started. Knows nothing of sessions."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from ..base import system
from ..wire.names import WORKER_MARK_VARIABLE
from ..wire.waits import KILL_WAIT_S, TERMINATE_GRACE_S
from .child import UNKNOWN, Starter, child_class
from .ending import kill_all
from .identity import Identity, all_stats, send_signal, wait_for_ends
from .log_forwarder import LogForwarder
from .tree import has_mark, with_descendants
from .worker_log import LogSize, create_log, log_size, log_tail

if TYPE_CHECKING:
    from .child import Child

__all__ = ["WorkerProcess"]

_REAP_S: Final = 0.005  # how often to look whether a killed child has ended, if no descriptor is left to wait on


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
            return make() if kind.is_patched else Starter(make).start()

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
        return None if code == UNKNOWN else code

    def _poll(self) -> int | None:
        """As ``exit_code``, but ``UNKNOWN`` if it has ended and its status is unknown."""
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
        if code == UNKNOWN and not self._is_forced:
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

    def terminate_tree(self, grace_s: float = TERMINATE_GRACE_S, dump_s: float = 0.0) -> None:
        """End the worker and every process it started: SIGTERM, ``grace_s`` seconds, SIGKILL to what is left.

        These are its descendants and the members of its session; it may be gone already. A resource tracker of
        ``multiprocessing`` gets the time to clean up after the others. An interrupt during the grace period leads
        straight to SIGKILL. Before all that the worker has ``dump_s`` seconds to write into its log where it is.
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
            if dump_s:
                self._dump(dump_s)
            for identity in tree:
                send_signal(identity, signal.SIGTERM)
            wait_for_ends(tree, time.monotonic() + grace_s)
        finally:
            if os.getpid() == self._owner_pid:  # else a signal handler has forked meanwhile
                self._kill_tree(tree)

    def _dump(self, dump_s: float) -> None:
        """Have Python's faulthandler, which every worker runs with, write the stacks into the log; that ends it."""
        with self._reap_lock, suppress(OSError):  # the number is its own until it was reaped
            if self._poll() is None:
                _forbid_core_file(self.pid)
        send_signal(self.identity, signal.SIGABRT)
        wait_for_ends([self.identity], time.monotonic() + dump_s)

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


def _forbid_core_file(pid: int) -> None:
    """Have the kernel write none when a signal ends that process: the file would be as large as its memory."""
    import resource  # here, because only this needs it

    if hasattr(resource, "prlimit"):
        _, hard = resource.prlimit(pid, resource.RLIMIT_CORE)
        # core(5): a limit of 1 forbids the file also where a program takes it from a pipe; there, 0 does not.
        resource.prlimit(pid, resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))
