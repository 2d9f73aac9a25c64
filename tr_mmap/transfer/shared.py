"""A pool and the transfers that use it: those of all sessions of a process, or one. Never sends a message.

The transfers share the pool's lock. If a method of one was interrupted, the next method of any of them puts the pool
right, by the holds of all. Nobody holds the lock while a large tensor is copied, or while its file is made.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from ..errors import MissingTag, OutOfSpace, UnsupportedTensor
from ..native import drain
from ..shm.pool import SegmentPool
from ..shm.segment import Segment
from ..wire.header import MAX_READERS

__all__ = ["PoolAccess", "PoolUser", "in_one_piece"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_User = TypeVar("_User", bound="PoolUser")

# Each session of a pool has a worker, which needs a lease line. Some are to spare: children of workers that have ended
# may keep theirs.
_MAX_USERS: Final = MAX_READERS - 8


class PoolUser(Protocol):
    """A transfer, as its pool sees it.

    Attributes:
        access: to its pool.
    """

    access: PoolAccess

    def holds(self) -> Iterable[Segment]:
        """The segments that its tags and requests hold, each as often as it is held."""

    def repair_tags(self) -> None:
        """Put right what does not belong to the pool."""

    def catch_up(self) -> None:
        """Do what could not be done when another thread had the lock; called again if it is interrupted."""

    def remove_gone(self) -> None:
        """Remove the links to results of other workers that this process does not have any more."""


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
        late: users that have something to do as soon as the lock is free.
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
        self.late: deque[PoolUser] = deque()
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

    def leave(self, user: PoolUser) -> None:
        """A transfer uses the pool no more, and has forgotten what it held. The last one closes the pool.

        Raises:
            OSError: the pool's directory could not be removed; call this again.
        """
        with self.lock:
            if user in self._users:
                self.has_failed = True  # first, so that an interrupt leaves nothing held
                self._users.remove(user)
            if self._users:
                self.put_right()
                self.remove_gone()
                return
            self.pool.close()
        if self._on_unused is not None:
            self._on_unused()

    def put_right(self) -> None:
        """Repair the pool if that is needed, and if no method is in the middle of something: else a later one does."""
        if self.has_failed and not self.depth and not self.paused:
            self.repair()

    def remove_gone(self) -> None:
        """Let each user do so: a session has ended, and what another one was given of its results may be gone."""
        drain()
        for user in list(self._users):
            user.remove_gone()

    def when_free(self, method: Callable[..., Any], *arguments: Any) -> bool:
        """Call a method, unless this thread would have to wait for the lock. Returns whether it was called.

        The lock's owner may prepare a request, and be interrupted by a signal handler that waits for what this thread
        is doing. Handlers run in the main thread only. So that one may wait here, if only for a moment, because a loop
        may run in it; and an exception cannot come between any two steps of others.
        """
        if threading.get_ident() == threading.main_thread().ident:
            if self.depth and not self.lock._is_owned():  # type: ignore[attr-defined] # mypy does not know it
                return False
            method(*arguments)
            return True
        if not self.lock.acquire(blocking=False):
            return False
        try:
            method(*arguments)
        finally:
            self.lock.release()
        return True

    def catch_up(self) -> None:
        """Let each user do what it could not do when another thread had the lock."""
        while self.late:
            self.late[0].catch_up()
            self.late.popleft()

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


def in_one_piece(method: Callable[Concatenate[_User, _P], _R]) -> Callable[Concatenate[_User, _P], _R]:
    """Run a method of a user under the pool's lock. If an earlier one has failed, put the pool right first.

    A signal handler may raise between any two steps of a method, and then a segment may be held for ever, or not be
    held though it should be. It may also use the session itself, or another one; that call is part of the interrupted
    one.
    """

    @functools.wraps(method)
    def run(self: _User, *arguments: _P.args, **options: _P.kwargs) -> _R:
        access = self.access
        with access.lock:
            depth, is_whole = access.depth, False
            access.depth = depth + 1  # no handler runs between this and the try
            try:
                if access.has_failed and not depth and not access.paused:
                    access.repair()
                if access.late and not depth:
                    access.catch_up()
                result = method(self, *arguments, **options)
                is_whole = True
                return result
            except (MissingTag, UnsupportedTensor, OutOfSpace):
                is_whole = not depth  # the method has undone its steps; but a handler's call interrupts another method
                raise
            finally:
                access.depth = depth
                if not is_whole:
                    access.has_failed = True

    return run  # type: ignore[return-value] # mypy keeps the name `self` in one of the two types
