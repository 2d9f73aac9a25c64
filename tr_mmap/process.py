"""Processes: identity, spawn, watch, stop. Knows nothing of sessions."""

from __future__ import annotations

import codecs
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from . import system
from .identity import POLL_S, Identity, all_stats, open_pidfd, send_signal, wait_for_ends
from .orphans import WORKER_MARK

__all__ = ["WORKER_MARK", "Identity", "PeerWatch", "WorkerProcess"]

LOG_TAIL_NBYTES: Final = 16 << 10  # what of a dead worker's output goes into an error: a traceback or two
KILL_S: Final = 2.0  # how long SIGKILL may take to show; a process in an uninterruptible wait is left to the kernel


class PeerWatch:
    """Calls back once when a process ends, from a thread of its own.

    The callback runs in the watch's thread, also when the peer is dead already. It must not wait for a lock that is
    held around :meth:`stop`, which waits for it to return. A fork's child has no watch: there ``stop`` only lets go.

    Args:
        identity: the peer.
        on_death: called at most once, and never begun after :meth:`stop`.

    Attributes:
        ends: empty until the watch has seen the peer's end.
    """

    def __init__(self, identity: Identity, on_death: Callable[[], None]) -> None:
        self.identity = identity
        self._on_death = on_death
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._is_stopped = False
        self.ends: list[Identity] = []
        self._stop_event = threading.Event()  # for the polling thread; the pidfd's thread waits on _wake
        self._pidfd = self._wake = -1
        try:
            self._pidfd = -1 if (fd := open_pidfd(identity)) is None else fd
        except ProcessLookupError:
            self.ends.append(identity)
        if self._pidfd >= 0:
            try:
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except BaseException:
                os.close(self._pidfd)
                raise
        self._thread = threading.Thread(target=self._run, name=f"tr_mmap-watch-{identity.pid}", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._close()
            raise

    @property
    def is_dead(self) -> bool:
        """Whether the watch has seen the peer's end."""
        return bool(self.ends)

    def stop(self) -> None:
        """End the watch. When this returns the callback is not running (unless it made this call) and never will."""
        if os.getpid() != self._owner_pid:
            # The thread is the parent's, and so may be whoever held the lock when we were forked: touch neither.
            self._close()
            return
        with self._lock:
            self._is_stopped = True
            self._stop_event.set()
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            if self.ends or self._wait_for_end():
                with self._lock:
                    self.ends.append(self.identity)
                    if self._is_stopped:
                        return
                self._on_death()
        finally:
            with self._lock:  # stop() must not write to a descriptor that is somebody else's by now
                self._close()

    def _wait_for_end(self) -> bool:
        """True when the peer ended, False when stopped."""
        if self._pidfd < 0:
            while self.identity.is_alive():
                if self._stop_event.wait(POLL_S):
                    return False
            return True
        pidfd, poller = self._pidfd, select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while not self._is_stopped:
            if any(fd == pidfd for fd, _ in poller.poll()):
                return True
        return False

    def _close(self) -> None:
        # Forget first, then close: a fork in between must not leave a child that closes the number a second time.
        fds, self._pidfd, self._wake = (self._pidfd, self._wake), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


class _LogForwarder:
    """Copies what is appended to a log to this process's stderr, from a thread, until stopped."""

    def __init__(self, path: str, *, from_start: bool) -> None:
        self._fd = system.open_private_file(path)
        self._position = 0 if from_start else system.file_nbytes(self._fd)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tr_mmap-log", daemon=True)
        self._thread.start()

    def stop(self, join_s: float = 0.0) -> None:
        self._is_stopped.set()
        if join_s and threading.current_thread() is not self._thread:
            self._thread.join(join_s)

    def _run(self) -> None:
        try:
            is_last = False
            while self._copy() and not is_last:
                is_last = self._is_stopped.wait(POLL_S)
        finally:
            system.close(self._fd)

    def _copy(self) -> bool:
        while data := system.read_all(self._fd, LOG_TAIL_NBYTES, self._position):
            self._position += len(data)
            try:
                sys.stderr.write(self._decoder.decode(data))
                sys.stderr.flush()
            except (OSError, ValueError, AttributeError):  # stderr is closed, or None under pythonw
                return False
        return True


class _Child(subprocess.Popen[bytes]):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        try:
            super().__init__(*arguments, **options)
        except BaseException:
            # Ctrl-C while it waits for execve(2), say: nobody would ever hear of that child.
            if getattr(self, "pid", None) is not None and self.returncode is None:
                self.end()
            raise

    def end(self) -> None:
        """End just this process, at once."""
        self.kill()
        self.wait()

    def __del__(self, *_: Any) -> None:
        # A forgotten worker is meant to end by itself when its controller does. Popen warns, then puts it on the
        # list of those to reap; only the latter is wanted.
        super().__del__(_warn=lambda *_args, **_kwargs: None)  # type: ignore[call-arg]


class WorkerProcess:
    """A process that this one started, in a session of its own, its output in a log. Made by :meth:`spawn`.

    A child of a fork may look at it, and does nothing to it.

    Attributes:
        log_path: where its output is.
        pid: its number.
        identity: who it is.
        on_end: called when its tree has been ended.
    """

    on_end: Callable[[], None] | None = None

    def __init__(self, child: subprocess.Popen[bytes], log_path: str, mark: str) -> None:
        self._child = child
        self._mark = mark
        self._owner_pid = os.getpid()
        self._reap_lock = threading.Lock()  # Popen.poll says None while another thread is reaping
        self._forwarder: _LogForwarder | None = None
        self.log_path = log_path
        self.pid = child.pid
        # A child keeps its number until it is reaped; gone already only if the application ignores SIGCHLD.
        self.identity = Identity.of(child.pid) or Identity.local(child.pid, 0)

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: str,
        pass_fds: Sequence[int] = (),
        mark: str = "",
        quiet: bool = True,
    ) -> WorkerProcess:
        """Start a program, without a shell.

        Args:
            argv: the program and its arguments.
            env: its whole environment; one variable is added that marks its tree.
            log_path: where stdout and stderr go; a new file, 0600, in place of an older one.
            pass_fds: descriptors that it inherits under the same numbers; no others.
            mark: the value of that variable; unlike any other.
            quiet: False also copies its output to this process's stderr.
        """
        mark = mark or f"{os.getpid()}-{secrets.token_hex(8)}"
        system.unlink(log_path)
        child: _Child | None = None
        try:
            log_fd = system.create_file(log_path)
            try:
                child = _Child(
                    list(argv),
                    env={**env, WORKER_MARK: mark},
                    stdin=subprocess.DEVNULL,
                    stdout=log_fd,
                    stderr=log_fd,
                    pass_fds=tuple(pass_fds),
                    close_fds=True,
                    start_new_session=True,  # Ctrl-C at the terminal is the controller's to deal with
                )
            finally:
                system.close(log_fd)
            worker = cls(child, log_path, mark)
        except BaseException:
            if child is not None:
                child.end()
            raise
        if not quiet:
            try:
                worker._forwarder = _LogForwarder(log_path, from_start=True)
            except BaseException:
                worker.terminate_tree(grace_s=0)
                raise
        return worker

    def __del__(self) -> None:
        if (forwarder := getattr(self, "_forwarder", None)) is not None and os.getpid() == self._owner_pid:
            forwarder.stop()

    def forward_log(self, is_wanted: bool) -> None:
        """Begin or end copying what the worker writes from now on to this process's stderr."""
        if is_wanted and self._forwarder is None:
            self._forwarder = _LogForwarder(self.log_path, from_start=False)
        elif not is_wanted and self._forwarder is not None:
            forwarder, self._forwarder = self._forwarder, None
            forwarder.stop(join_s=1.0)

    @property
    def exit_code(self) -> int | None:
        """Its exit status, negative if a signal ended it; None while it lives."""
        if os.getpid() != self._owner_pid:
            return None  # a fork's child cannot wait for its sibling
        with self._reap_lock:
            code = self._child.poll()
        if code is not None and self._forwarder is not None:
            self._forwarder.stop()
        return code

    def is_alive(self) -> bool:
        return self.identity.is_alive() if os.getpid() != self._owner_pid else self.exit_code is None

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; whether it has ended. May be interrupted, and called again."""
        if self.is_alive():
            wait_for_ends([self.identity], time.monotonic() + timeout_s)
        return not self.is_alive()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its output, from its last 16 KiB; "" if the log is gone."""
        try:
            fd = system.open_private_file(self.log_path)
        except OSError:
            return ""
        try:
            data = system.read_all(fd, LOG_TAIL_NBYTES, max(0, system.file_nbytes(fd) - LOG_TAIL_NBYTES))
        finally:
            system.close(fd)
        return "\n".join(data.decode("utf-8", errors="replace").splitlines()[-lines:]) if lines > 0 else ""

    def terminate_tree(self, grace_s: float = 1.0) -> None:
        """End the worker and every process it started: SIGTERM, ``grace_s`` seconds, SIGKILL to what is left.

        Those are its descendants and the members of its session. Nothing happens to what is gone already. An
        interrupt during the grace goes straight to SIGKILL.
        """
        if os.getpid() != self._owner_pid:
            return
        try:
            tree = self._tree(())
        except OSError:
            # No descriptor to look into /proc with, say. The worker itself can be ended without one.
            with self._reap_lock:
                self._child.kill()
            try:
                self._child.wait(KILL_S)
            except subprocess.TimeoutExpired:
                pass
            raise
        try:
            for identity in tree:
                send_signal(identity, signal.SIGTERM)
            wait_for_ends(tree, time.monotonic() + grace_s)
        finally:
            deadline = time.monotonic() + KILL_S
            # Again and again: a process that is being killed may have just forked.
            while (tree := self._tree(tree)) and time.monotonic() < deadline:
                for identity in tree:
                    send_signal(identity, signal.SIGKILL)
                wait_for_ends(tree, deadline)
            self.wait(max(0.0, deadline - time.monotonic()))
            self.forward_log(False)
            if self.on_end is not None:
                self.on_end()

    def _tree(self, known: Iterable[Identity]) -> list[Identity]:
        """The living among ``known``, the worker, its session, and all their descendants."""
        stats = all_stats()
        members = {identity.pid for identity in known if identity.is_alive()}
        is_own_pid = self.exit_code is None  # until it is reaped nobody else can have its number
        if is_own_pid:
            members.add(self.pid)
        for pid, seen in stats.items():
            # A dead worker's number may have passed to another session's leader: then only the mark tells.
            if seen.session == self.pid and not seen.is_ended and (is_own_pid or self._has_mark(pid)):
                members.add(pid)
        is_growing = True
        while is_growing:
            found = {pid for pid, seen in stats.items() if seen.parent in members and pid not in members}
            members |= found
            is_growing = bool(found)
        return [
            Identity.local(pid, stats[pid].start_ticks) for pid in members if pid in stats and not stats[pid].is_ended
        ]

    def _has_mark(self, pid: int) -> bool:
        import psutil

        try:
            return bool(psutil.Process(pid).environ().get(WORKER_MARK) == self._mark)
        except (psutil.Error, OSError):
            return False
