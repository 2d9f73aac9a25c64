"""Watches one process for its death, from a thread. Signals none."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Final, Protocol

from ..wire.waits import POLL_S
from .identity import Identity, open_pidfd

__all__ = ["PeerWatch", "Watched"]

_LOOK_MS: Final = 1000  # how often to look at what has no descriptor


class Watched(Protocol):
    """Something else that the watch's thread looks at.

    Attributes:
        fd: readable when there is something to look at; -1 to look every second.
    """

    fd: int

    def look(self) -> None:
        """Look. Runs in the watch's thread; never raises for what is there."""


class PeerWatch:
    """Calls back once when a process ends, from a thread of its own.

    The callback runs in the watch's thread, also when the peer is dead already. It must not wait for a lock that a
    caller of :meth:`stop` holds, because ``stop`` waits for the callback to return. A forked child has no watch: there
    ``stop`` only closes descriptors.

    Args:
        identity: the peer.
        on_death: called at most once, and never begun after :meth:`stop`.
        also: something else to look at while the peer lives; None for nothing.

    Attributes:
        deaths: empty until the watch has seen the peer's death.
    """

    def __init__(self, identity: Identity, on_death: Callable[[], None], also: Watched | None = None) -> None:
        self.identity = identity
        self._also = also
        self._on_death = on_death
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._is_stopped = False
        self.deaths: list[Identity] = []
        self._stop_event = threading.Event()  # for the polling thread; the pidfd's thread waits on _wake
        self._pidfd = self._wake = -1
        try:
            self._pidfd = -1 if (fd := open_pidfd(identity)) is None else fd
        except ProcessLookupError:
            self.deaths.append(identity)
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
        """Whether the watch has seen the peer's death."""
        return bool(self.deaths)

    def stop(self) -> None:
        """End the watch. After this the callback does not run (unless it made this call) and never will."""
        if os.getpid() != self._owner_pid:
            # The thread is the parent's, and a thread of the parent may have held the lock at the fork: touch neither.
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
            if self.deaths or self._wait_for_end():
                with self._lock:
                    self.deaths.append(self.identity)
                    if self._is_stopped:
                        return
                self._on_death()
        finally:
            with self._lock:  # stop() must not write to a number that is another file's by now
                self._close()

    def _wait_for_end(self) -> bool:
        """True when the peer ended, False when stopped."""
        also = self._also
        if self._pidfd < 0:
            while self.identity.is_alive():
                if self._stop_event.wait(POLL_S):
                    return False
                if also is not None:
                    also.look()
            return True
        pidfd = self._pidfd
        while not self._is_stopped:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.register(self._wake, select.POLLIN)
            if also is not None and also.fd >= 0:
                poller.register(also.fd, select.POLLIN)
            found = {fd for fd, _ in poller.poll(_LOOK_MS if also is not None and also.fd < 0 else None)}
            if pidfd in found:
                return True
            if also is not None and self._wake not in found:
                also.look()
        return False

    def _close(self) -> None:
        # Forget the numbers first, then close: a child that is forked in between must not close them a second time.
        fds, self._pidfd, self._wake = (self._pidfd, self._wake), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)
