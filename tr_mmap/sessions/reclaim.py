"""Removing a session: who may, and how. By rename, so that no process ever sees half of one.

A sweeper holds the ``flock`` of the directory from judging it until it is renamed, and makes sure that the name still
means the directory that is locked: so of two sweepers one wins, and neither removes the session that a new owner put in
the place of the dead one.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable
from typing import Final

from ..base import system
from ..base.identifiers import is_doorbell_name
from ..errors import TRException
from ..processes.identity import Identity
from ..processes.orphans import end_heirs, end_orphan
from . import manifest as manifests
from .manifest import Manifest

__all__ = ["NotReclaimable", "aside", "discard", "require_dead", "require_own", "parse_leftover", "reclaim"]

parse_leftover = re.compile(r"\.(new|gone)-([0-9]{1,10})-([0-9]{1,20})-[0-9a-f]+").fullmatch  # of aside()

# What the system says of a path that is somebody else's or no session; all else is a call that failed.
_NOT_OURS: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EBUSY}
)


class NotReclaimable(Exception):
    """A session may not be removed: why, whose it is (0 if unknown), and whether waiting a little may help."""

    def __init__(self, reason: str, *, pid: int = 0, may_pass: bool = False, orphan: Manifest | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pid = pid
        self.may_pass = may_pass
        self.orphan = orphan  # of a session whose controller has ended and whose worker has not

    def end_orphan(self, deadline: float) -> bool:
        """Let the worker end until the monotonic clock says ``deadline``, then kill it; whether it has ended."""
        orphan = self.orphan
        return (
            orphan is not None and orphan.worker is not None and end_orphan(orphan.worker, orphan.worker_mark, deadline)
        )


def require_dead(manifest: Manifest | None, problem: str) -> None:
    """Raise NotReclaimable unless the session's processes have certainly ended."""
    if manifest is None:
        raise NotReclaimable(problem)
    if manifest.controller.is_alive():
        pid = manifest.controller.pid
        raise NotReclaimable(f"its controller, process {pid}, is alive", pid=pid)
    if manifest.worker is not None and manifest.worker != Identity.current() and manifest.worker.is_alive():
        # It is about to notice, and until then could write to, or remove, the directory that it takes for its own.
        pid = manifest.worker.pid
        why = f"its worker, process {pid}, is alive, its controller is not"
        raise NotReclaimable(why, pid=pid, may_pass=True, orphan=manifest)


def require_own(manifest: Manifest | None, _problem: str) -> None:
    """Raise NotReclaimable if the session is another living process's: a fork's child must not end its parent's."""
    if manifest is not None and manifest.controller != Identity.current():
        require_dead(manifest, "")


def aside(path: str, kind: str) -> str:
    """A name beside ``path`` that says which process uses it, so that a sweep can tell when that has ended."""
    own = Identity.current()
    name = f".{kind}-{own.pid}-{own.start_ticks}-{secrets.token_hex(8)}"
    return os.path.join(os.path.dirname(path), name)


def discard(temporary: str) -> None:
    """Remove what no other process has seen.

    Under another name first: removing takes a descriptor, and there may be none left; a later sweep of this process
    removes only what has such a name.
    """
    gone = aside(temporary, "gone")
    try:
        system.rename(temporary, gone)
    except OSError:
        gone = temporary  # the sweep that finds us dead removes it
    system.remove_tree(gone)


def reclaim(path: str, judge: Callable[[Manifest | None, str], None]) -> bool:
    """Remove a session and its semaphores if the judge does not object; whether this call did it.

    Raises:
        NotReclaimable: by the judge, or because this user may not remove it.
    """
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
            return False  # taken away since it was opened; what has the name now is somebody's new session
        manifest, problem = _examine(path)
        judge(manifest, problem)
        if manifest is not None and manifest.worker is not None and manifest.controller != Identity.current():
            end_heirs(manifest.worker, manifest.worker_mark)  # our own session's are ended with its worker
        # While the name is still taken: afterwards a new owner may have semaphores of the same names.
        for doorbell in manifest.doorbells if manifest is not None else ():
            _unlink_semaphore(doorbell)
        away = aside(path, "gone")
        system.rename(path, away)
        gone = away
    except FileNotFoundError:
        return False  # somebody who takes no lock was faster
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        raise NotReclaimable(f"it cannot be removed ({error.strerror})") from error
    finally:
        try:
            system.unlock_and_close_dir(fd)
        finally:
            if gone:
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
    return manifest, "" if manifest is not None else "it has no manifest"


def _unlink_semaphore(name: str) -> None:
    if not is_doorbell_name(name):  # a manifest may not make us remove another program's semaphores
        return
    import posix_ipc  # not on Windows, which has no named semaphores that outlive their users

    try:
        posix_ipc.unlink_semaphore(name)
    except (posix_ipc.ExistentialError, posix_ipc.PermissionsError):
        pass
