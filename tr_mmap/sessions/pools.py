"""The pool of this process in a workspace: its directory, from the first session that uses it to the last.

``.pool-<pid>-<start ticks>-<hex>`` is beside the sessions, and every sweep removes it when its process has ended. The
process holds the lock of ``controller.lock`` in it, by which other containers judge it.
"""

from __future__ import annotations

import os
import re
import threading
from typing import Final

from ..base import system
from ..base.fork_safety import at_fork
from ..errors import TRException
from ..processes.life_lock import LifeLock
from ..shm.pool import SegmentPool
from ..transfer.shared import PoolAccess
from ..wire.names import CONTROLLER_LOCK_FILE, POOL_PREFIX, SEGMENT_PREFIX
from .reclaim import aside, discard, parse_leftover
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
    """The pool of this process, for a session of a workspace; None if there can be none.

    Args:
        workspace: where the session's directory is already.
    """
    with _lock:
        known = _pools.get(workspace.sessions)
        if known is not None and not known.pool.is_closed:
            return known
        try:
            made = _make(workspace)
        except (OSError, TRException):
            return None  # the session's own pool will say what is wrong, or the system lacks what a shared one needs
        _pools[workspace.sessions] = made
        return made


def _make(workspace: Workspace) -> PoolAccess:
    directory = aside(os.path.join(workspace.sessions, "pool"), POOL_PREFIX)
    lock = LifeLock()
    system.make_dir(directory)
    try:
        lock.take(os.path.join(directory, CONTROLLER_LOCK_FILE))
        pool = SegmentPool(directory, SEGMENT_PREFIX, has_lines=True)
    except BaseException:
        lock.drop()
        discard(directory)
        raise

    def remove() -> None:
        with _lock:
            if _pools.get(workspace.sessions) is made:
                del _pools[workspace.sessions]
        lock.drop()
        discard(directory)

    pool.hands_on = True
    made = PoolAccess(pool, directory, remove)
    return made


_is_pool_name: Final = re.compile(rf"{re.escape(POOL_PREFIX)}[0-9]+-[0-9]+-[0-9a-f]+").fullmatch


def path_of_pool(session_directory: str, name: str) -> str:
    """The directory of the pool that a session's manifest names; "" if it names none, or the name is no pool's."""
    if not _is_pool_name(name) or not parse_leftover(name):
        return ""
    return os.path.join(os.path.dirname(session_directory), name)
