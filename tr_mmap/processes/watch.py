"""Watches one process for its death, from a thread. Signals none."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Final, Protocol

from ..base import system
from ..base.background import Background, readable
from ..wire.waits import POLL_S
from .identity import Identity, open_pidfd
from .life_lock import LifeProbe

__all__ = ["PeerWatch", "Watched"]

_LOOK_S: Final = 1.0  # how often to look at what has no descriptor, and to call what is to be called each second


class Watched(Protocol):
    """Something else that the watch's thread looks at.

    Attributes:
        fd: readable when there is something to look at; -1 to look every second.
        due_s: when to look in any case, by the monotonic clock.
    """

    fd: int
    due_s: float

    def look(self) -> None:
        """Look. Runs in the watch's thread. Must not raise, whatever it finds."""


class PeerWatch:
    """Calls back once when a process ends, from a thread of its own.

    The callback runs in the watch's thread, also when the peer is dead already. It must not wait for a lock that a
    caller of :meth:`stop` holds, because ``stop`` waits for the callback to return. A forked child has no watch: there
    ``stop`` only closes descriptors. While the parent forks, there is no thread; the next one looks first.

    If the system has no thread left, or an error has ended the thread, nobody calls back. Then each use of
    :attr:`is_dead` looks at the peer.

    Args:
        identity: the peer.
        on_death: called at most once, and never begun after :meth:`stop`.
        also: something else to look at while the peer lives; None for nothing.
        each_second: called about once a second while the peer lives, and when the thread wakes for another reason. It
            must not raise.
        lock_path: the peer's life lock, which tells of its death where its pid has no meaning; "" if there is none.
        next_peer: called when a peer has ended, from the thread that found it: the process to watch then, or None if
            that end is the death to call back for.

    Attributes:
        deaths: empty until the watch has seen the peer's death.
    """

    def __init__(
        self,
        identity: Identity,
        on_death: Callable[[], None],
        also: Watched | None = None,
        *,
        each_second: Callable[[], None] | None = None,
        lock_path: str = "",
        next_peer: Callable[[], Identity | None] | None = None,
    ) -> None:
        self.identity = identity
        self._next_peer = next_peer
        self._also = also
        self._each_second = each_second
        self._on_death = on_death
        self._owner_pid = os.getpid()
        self.deaths: list[Identity] = []
        self._pidfd: system.OwnFile | None = None
        self._probe: LifeProbe | None = None
        try:
            if (fd := open_pidfd(identity)) is not None:
                self._pidfd = system.OwnFile(fd)
        except ProcessLookupError:
            if next_peer is None:
                self.deaths.append(identity)
        try:
            if not identity.is_judgeable() and lock_path:
                self._probe = LifeProbe(lock_path)  # now, because a sweep may remove the name
            self._background = Background(self._watch)
        except BaseException:
            self._close()
            raise

    @property
    def has_thread(self) -> bool:
        """Whether a thread watches; if not, ask :attr:`is_dead` often."""
        return self._background.has_thread

    @property
    def is_dead(self) -> bool:
        """Whether the watch has seen the peer's death."""
        if not self.deaths and not self._background.has_thread and os.getpid() == self._owner_pid and self._has_ended():
            self.deaths.append(self.identity)
        return bool(self.deaths)

    def stop(self) -> None:
        """End the watch. After this the callback does not run (unless it made this call) and never will."""
        self._background.stop()
        if not self._background.is_running():
            self._close()

    def _watch(self, background: Background) -> bool:
        """Wait for the peer's end, and call back. Returns whether there is nothing more to watch."""
        while not self.deaths and not self._has_ended():
            if background.has_to_return:
                return False
            self._sleep(background)
        if not background.begin_last():
            return False
        try:
            if not self.deaths:
                self.deaths.append(self.identity)
            self._on_death()
        finally:
            self._close()
        return True

    def _sleep(self, background: Background) -> None:
        """Sleep until there may be something new, and look at what is watched beside the peer."""
        also, pidfd = self._also, self._pidfd
        timeout_s = None if pidfd is not None else POLL_S
        if timeout_s is None and (self._each_second is not None or (also is not None and also.fd < 0)):
            timeout_s = _LOOK_S
        if also is not None and also.due_s < math.inf:
            left_s = max(0.0, also.due_s - time.monotonic())
            timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
        fds = [-1 if pidfd is None else pidfd.fd, -1 if also is None else also.fd]
        background.sleep(timeout_s, *[fd for fd in fds if fd >= 0])
        if background.has_to_return:
            return
        if also is not None:
            also.look()
        if self._each_second is not None:
            self._each_second()

    def _has_ended(self) -> bool:
        while self._has_peer_ended():
            following = None if self._next_peer is None else self._next_peer()
            if following is None:
                return True
            self.identity = following
            pidfd, self._pidfd = self._pidfd, None
            if pidfd is not None:
                pidfd.close()
            try:
                if (fd := open_pidfd(following)) is not None:
                    self._pidfd = system.OwnFile(fd)
            except ProcessLookupError:
                pass  # the next look finds that
        return False

    def _has_peer_ended(self) -> bool:
        if (pidfd := self._pidfd) is not None:
            if pidfd.is_open():
                return bool(readable([pidfd.fd], 0))
            self._pidfd = None  # the program has closed it
        if not self.identity.is_alive():
            return True
        return self._probe is not None and self._probe.is_free()

    def _close(self) -> None:
        pidfd, self._pidfd = self._pidfd, None
        probe, self._probe = self._probe, None
        if pidfd is not None:
            pidfd.close()
        if probe is not None:
            probe.close()
