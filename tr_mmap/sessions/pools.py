"""The pool of this process in a workspace, and its directory: from the first tensor on until the last session ends.

``.pool-<pid>-<start ticks>-<hex>`` is beside the sessions, and every sweep removes it when its process has ended. The
process holds the lock of ``controller.lock`` in it, by which other containers judge it.
"""

from __future__ import annotations

import os
import re
import threading
from typing import Final

from ..base import system
from ..base.fork_safety import at_fork, this_process
from ..errors import SessionNotStarted
from ..processes.life_lock import LifeLock
from ..shm.pool import SegmentPool
from ..transfer.shared import PoolAccess
from ..wire.names import CONTROLLER_LOCK_FILE, POOL_PREFIX, SEGMENT_PREFIX
from .reclaim import aside, discard
from .workspace import Workspace

__all__ = ["path_of_pool", "process_pool"]

_pools: dict[str, PoolAccess] = {}  # by the folder of sessions
_lock = threading.RLock()


def _forked_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # a thread of the parent may have held the other one
    _pools.clear()


at_fork(after_in_child=_forked_in_child)


def process_pool(workspace: Workspace) -> PoolAccess | None:
    """The pool of this process, for a session of a workspace; None if this system cannot have one.

    Args:
        workspace: where the session is.
    """
    try:
        if not system.has_open_locks():
            return None
    except OSError:  # there is no descriptor left: the session's start says so
        return None
    with _lock:
        known = _pools.get(workspace.sessions)
        if known is None or known.pool.is_closed:
            known = _pools[workspace.sessions] = _new(_Directory(workspace))
        return known


def _new(directory: _Directory) -> PoolAccess:
    pool = SegmentPool(directory.path, SEGMENT_PREFIX, has_lines=True, make_directory=directory.make)
    pool.hands_on = True
    return PoolAccess(pool, directory.path, directory.remove)


class _Directory:
    """The directory of a pool."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._owner = this_process.mark
        self._lock = LifeLock()
        self.path = aside(os.path.join(workspace.sessions, "pool"), POOL_PREFIX)

    def make(self) -> None:
        """Make it, unless it was made.

        Raises:
            SessionNotStarted: somebody has removed the folder of sessions.
            OutOfSpace, OSError: a system call failed; nothing is left.
        """
        if self._lock.is_held:
            return
        try:
            system.make_dir(self.path)
        except FileExistsError:
            pass  # this is a signal handler's call, in the middle of this method
        except FileNotFoundError:
            raise SessionNotStarted(
                f"{self._workspace.sessions} was removed while a session lived there; close() this session, and start "
                "another"
            ) from None
        lock_path = os.path.join(self.path, CONTROLLER_LOCK_FILE)
        try:
            if not self._lock.is_held:
                self._lock.take(lock_path)
        except BaseException:
            if not self._lock.is_held:
                system.unlink(lock_path, owner=self._owner)
                if this_process.mark is self._owner:  # else a signal handler has forked: it is for the parent to do
                    system.remove_dir(self.path)  # if it is empty: a handler's call may have used it
            raise

    def remove(self) -> None:
        """Remove it, and the folders that are then empty.

        Raises:
            OSError: a system call failed; it is still there.
        """
        if this_process.mark is not self._owner:
            return
        try:
            system.close(system.open_dir(self.path))  # what removes it cannot say that there are no descriptors
            discard(self.path)
        except FileNotFoundError:
            pass
        self._lock.drop()
        self._workspace.remove_if_empty()


_is_pool_name: Final = re.compile(rf"{re.escape(POOL_PREFIX)}[0-9]{{1,10}}-[0-9]{{1,20}}-[0-9a-f]{{1,64}}").fullmatch


def path_of_pool(session_directory: str, name: str) -> str:
    """The directory of the pool that a session's manifest names; "" if it names none, or the name is no pool's."""
    return os.path.join(os.path.dirname(session_directory), name) if _is_pool_name(name) else ""
