"""Removes a session, by rename, so that no process ever sees half of one. Never removes one before it is judged.

A sweeper holds the ``flock`` of the directory from the judgement until the rename, and checks that the name still
belongs to the locked directory. So of two sweepers one wins, and neither removes a session that a new owner has put in
place of the dead one.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from typing import Final, Self

from ..base import system
from ..base.fork_safety import this_process
from ..base.identifiers import is_doorbell_name
from ..errors import TRException
from ..native.semaphore_names import unlink_semaphore
from ..processes.identity import Identity
from ..processes.life_lock import LifeProbe, is_alive
from ..processes.orphans import end_heirs, end_orphan
from ..processes.worker_log import remove_log
from ..wire.names import CONTROLLER_LOCK_FILE, GONE_PREFIX, NEW_PREFIX, POOL_PREFIX, WORKER_LOCK_FILE
from . import manifest as manifests
from .manifest import Manifest

__all__ = [
    "NO_MANIFEST",
    "NotReclaimable",
    "aside",
    "discard",
    "is_being_made",
    "parse_leftover",
    "reclaim",
    "require_dead",
    "require_own",
    "with_living_controller",
]

NO_MANIFEST: Final = "it has no manifest"  # what a judge is told of a directory without one
_KINDS: Final = "|".join(map(re.escape, (NEW_PREFIX, GONE_PREFIX, POOL_PREFIX)))
parse_leftover = re.compile(rf"({_KINDS})([0-9]{{1,10}})-([0-9]{{1,20}})-[0-9a-f]+").fullmatch  # of aside()

# The errors for a path that is another user's or no session. Any other error means that a call failed.
_NOT_OURS: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EBUSY}
)


class NotReclaimable(Exception):
    """A session may not be removed.

    Attributes:
        reason: why.
        pid: of the process that uses it; 0 if unknown.
        owner: the controller, if it lives; else None.
        may_pass: whether it may help to wait a little.
        orphan: the manifest, if the controller has ended and the worker has not; else None.
        path: of the orphan's session; else "".
    """

    def __init__(
        self,
        reason: str,
        *,
        pid: int = 0,
        owner: Identity | None = None,
        may_pass: bool = False,
        orphan: Manifest | None = None,
        path: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pid = pid
        self.owner = owner
        self.may_pass = may_pass
        self.orphan = orphan
        self.path = path

    def detached(self) -> Self:
        """The same, without its traceback and cause.

        A frame that keeps it would be in a cycle with its traceback. The cycle would hold what the callers' frames
        hold, sessions among it, until the garbage collector runs.
        """
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    def is_own(self) -> bool:
        """Whether this process is the controller."""
        return self.owner is not None and self.owner.pid == os.getpid() and self.owner == Identity.current()

    def end_orphan(self, deadline: float) -> bool:
        """Let the worker end until the monotonic clock says ``deadline``, then kill it. Returns whether it is dead."""
        orphan = self.orphan
        if orphan is None or orphan.worker is None:
            return False
        return end_orphan(orphan.worker, orphan.worker_mark, deadline, os.path.join(self.path, WORKER_LOCK_FILE))


def require_dead(manifest: Manifest | None, problem: str, path: str) -> None:
    """Raise NotReclaimable unless the session's processes have certainly ended.

    Args:
        manifest: of the session; None if there is none that can be read.
        problem: why there is none.
        path: of the session's directory.
    """
    if manifest is None:
        raise NotReclaimable(problem)
    if is_alive(manifest.controller, os.path.join(path, CONTROLLER_LOCK_FILE)):
        raise _living(manifest.controller)
    worker = manifest.worker
    if worker is not None and worker != Identity.current() and is_alive(worker, os.path.join(path, WORKER_LOCK_FILE)):
        # The worker has not noticed yet. Until then it may write to the directory, or remove it as its own session's.
        why = f"its worker, process {worker.pid}{_where(worker)}, is alive, its controller is not"
        raise NotReclaimable(why, pid=worker.pid, may_pass=True, orphan=manifest, path=path)


def require_own(manifest: Manifest | None, _problem: str, path: str) -> None:
    """Raise NotReclaimable if the session is another living process's. A forked child must not end its parent's."""
    if manifest is not None and manifest.controller != Identity.current():
        require_dead(manifest, "", path)


def with_living_controller(path: str, known: dict[Identity, bool]) -> NotReclaimable | None:
    """Why a session stays if its controller lives: a cheap first look, which takes no lock. Else None.

    Args:
        path: of the session's directory.
        known: which controllers live; what this call finds is added.
    """
    controller = manifests.peek_controller(path)
    if controller is None:
        return None
    is_living = known.get(controller)
    if is_living is None:
        if controller.is_judgeable():
            is_living = known[controller] = controller.is_alive()
        else:
            is_living = is_alive(controller, os.path.join(path, CONTROLLER_LOCK_FILE))
    return _living(controller) if is_living else None


def is_being_made(path: str) -> bool:
    """Whether the maker of a half-made session certainly lives, perhaps in another namespace of pids."""
    lock = os.path.join(path, CONTROLLER_LOCK_FILE)
    probe = LifeProbe(lock)
    try:
        return not probe.is_free() and system.exists(lock)
    finally:
        probe.close()


def _living(controller: Identity) -> NotReclaimable:
    why = f"its controller, process {controller.pid}{_where(controller)}, is alive"
    return NotReclaimable(why, pid=controller.pid, owner=controller)


def _where(process: Identity) -> str:
    return "" if process.is_judgeable() else " of another container or namespace of pids"


def aside(path: str, prefix: str) -> str:
    """A name beside ``path`` that says which process uses it, so that a sweep can tell when that process has ended."""
    own = Identity.current()
    name = f"{prefix}{own.pid}-{own.start_ticks}-{os.urandom(8).hex()}"
    return os.path.join(os.path.dirname(path), name)


def discard(temporary: str) -> None:
    """Remove a half-made session, which no other process has seen.

    Rename it to ``.gone-…`` first: to remove it takes a descriptor, and there may be none left. A later sweep by this
    process removes only what has such a name.
    """
    gone = aside(temporary, GONE_PREFIX)
    try:
        system.rename(temporary, gone)
    except OSError:
        gone = temporary  # the sweep that finds us dead removes it
    system.remove_tree(gone)


def reclaim(path: str, judge: Callable[[Manifest | None, str, str], None]) -> bool:
    """Remove a session and its semaphores, unless the judge objects.

    Args:
        path: of the session's directory.
        judge: raises NotReclaimable to object; :func:`require_dead` or :func:`require_own`.

    Returns:
        Whether this call removed it.

    Raises:
        NotReclaimable: the judge objects, or this user may not remove it.
        OSError: a system call failed.
    """
    owner = this_process.mark
    try:
        fd = system.open_dir(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        raise NotReclaimable(f"it is not a directory of this user's ({error.strerror})") from error
    gone = ""
    try:
        if not system.try_lock_dir(fd):
            raise NotReclaimable("another process is examining or removing it", may_pass=True)
        if not system.is_same_file(fd, path):
            return False  # removed since we opened it; the name now belongs to another process's new session
        manifest, problem = _examine(path)
        judge(manifest, problem, path)
        if manifest is not None and manifest.worker is not None and manifest.controller != Identity.current():
            end_heirs(manifest.worker, manifest.worker_mark)  # those of our own session end with its worker
        # Before the rename: after it, a new owner may have semaphores of the same names.
        for doorbell in manifest.doorbells if manifest is not None else ():
            _unlink_semaphore(doorbell)
        if manifest is not None:
            remove_log(manifest.log)
        away = aside(path, GONE_PREFIX)
        system.rename(path, away)
        gone = away
    except FileNotFoundError:
        return False  # a process that takes no lock was faster
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        raise NotReclaimable(f"it cannot be removed ({error.strerror})") from error
    finally:
        try:
            system.unlock_and_close_dir(fd, owner)
        finally:
            if gone and this_process.mark is owner:
                system.remove_tree(gone)
    return True


def _examine(path: str) -> tuple[Manifest | None, str]:
    """The manifest, or why there is nothing to judge by."""
    if os.name == "posix" and (owner := system.status(path).st_uid) != os.geteuid():
        return None, f"it belongs to user {owner}"
    try:
        manifest = manifests.read(path)
    except TRException as error:
        return None, str(error)
    return manifest, "" if manifest is not None else NO_MANIFEST


def _unlink_semaphore(name: str) -> None:
    if not is_doorbell_name(name):  # a manifest may not make us remove another program's semaphores
        return
    try:
        unlink_semaphore(name)
    except (OSError, ImportError):  # ImportError: posix_ipc is missing here, but not where it was made
        pass
