"""A pool and the transfers that use it: those of all sessions of a process, or one. Never sends a message.

The transfers share the pool's lock. If a method of one was interrupted, the next method of any of them puts the pool
right, by the holds of all.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from ..shm.pool import SegmentPool
from ..shm.segment import Segment
from ..wire.header import MAX_READERS

__all__ = ["PoolAccess", "PoolUser"]

# Each session of a pool has a worker, which needs a lease line. Some are to spare: children of workers that have ended
# may keep theirs.
_MAX_USERS: Final = MAX_READERS - 8


class PoolUser(Protocol):
    """A transfer, as its pool sees it."""

    def holds(self) -> Iterable[Segment]:
        """The segments that its tags and requests hold, each as often as it is held."""

    def repair_tags(self) -> None:
        """Put right what does not belong to the pool."""


class PoolAccess:
    """A pool, its lock, and who uses it.

    Args:
        pool: made for this.
        on_unused: called when the last user has left, and the pool is closed; again if it raises and that user leaves
            again. None if the pool has one user only.

    Attributes:
        lock: guards the pool and the tags of its users.
        room: to be waited for while another thread may make room.
        depth: of the methods that the lock's owner is in: more than 1 in the call of a signal handler.
        paused: threads that are in the middle of a method, and have let others in.
        has_failed: a method has, so the pool is to be put right.
        directory: of a pool with several users; "" for one in its session's directory.
    """

    def __init__(self, pool: SegmentPool, directory: str = "", on_unused: Callable[[], None] | None = None) -> None:
        self.pool = pool
        self.directory = directory
        self.lock = threading.RLock()
        self.room = threading.Condition(self.lock)
        self.depth = 0
        self.paused = 0
        self.has_failed = False
        self._users: list[PoolUser] = []
        self._on_unused = on_unused
        pool.pause = self._pause

    def join(self, user: PoolUser) -> bool:
        """Let a transfer use the pool; False if it is closed, or has as many users as there may be."""
        with self.lock:
            if self.pool.is_closed or self.pool.is_foreign or len(self._users) >= _MAX_USERS:
                return False
            self._users.append(user)
            return True

    def leave(self, user: PoolUser, unfinished: Iterable[Segment]) -> None:
        """A transfer uses the pool no more, and has forgotten what it held. The last one closes the pool.

        Args:
            user: the transfer.
            unfinished: what it held for requests. Another thread may be in the middle of a copy into one of these, so
                they are never filled again.

        Raises:
            OSError: the pool's directory could not be removed; call this again.
        """
        with self.lock:
            if user in self._users:
                self._users.remove(user)
                if self._users:
                    for segment in unfinished:
                        self.pool.taint(segment)
                    self.repair()
                else:
                    self.pool.close()
            if not self.pool.is_closed:
                return
        if self._on_unused is not None:
            self._on_unused()

    def repair(self) -> None:
        """Put right how often each segment is held: once for each tag, and for each request that needs it.

        No other thread is in the middle of a method. But one may be on the fast path, which has no lock. So this first
        closes the fast path and then looks for a request; a thread first says that it has a request and then looks
        whether the fast path is open.
        """
        if self.pool.is_foreign:
            return
        self.pool.is_slow_path_running = True
        holds: Counter[Segment] = Counter()
        for user in list(self._users):
            holds.update(user.holds())
        self.pool.reconcile(holds)
        for user in list(self._users):
            user.repair_tags()
        self.has_failed = False

    def _pause(self, seconds: float) -> None:
        """Let other threads in for so long, because one of them may make room."""
        depth, self.depth = self.depth, 0
        self.paused += 1  # no handler runs between this and the try
        try:
            self.room.wait(seconds)
        finally:
            self.paused -= 1
            self.depth = depth
