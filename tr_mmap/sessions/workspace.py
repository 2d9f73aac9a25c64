"""Where sessions are: finds the place, gives each name to one owner, sweeps what dead processes left. Starts none.

``<root>/python_session/tr_session_<id>/`` is a session. It appears by rename, with its manifest already inside. It is
removed by rename too, to ``.gone-…`` beside it (see :mod:`.reclaim`). So no process ever sees half of one.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..base import system
from ..base.fork_safety import this_process
from ..base.identifiers import check_session_id, is_session_id
from ..errors import BadMessage, HostilePath, OutOfSpace, SessionInUse, TRException
from ..processes.identity import Identity
from ..processes.life_lock import LifeLock
from ..protocol.legacy import LEGACY_FORBIDDEN_MODE
from ..wire.names import (
    CONTROLLER_LOCK_FILE,
    DEFAULT_ROOT_PREFIX,
    GONE_PREFIX,
    NEW_PREFIX,
    POOL_PREFIX,
    SESSION_PREFIX,
    SESSIONS_DIR,
    SHM_DIR,
    WORKSPACE_VARIABLE,
)
from ..wire.waits import CLAIM_RETRY_S, CLAIM_WAIT_S, ORPHAN_WAIT_S
from . import manifest as manifests
from .manifest import Manifest
from .reclaim import (
    NotReclaimable,
    aside,
    discard,
    is_being_made,
    parse_leftover,
    reclaim,
    require_dead,
    require_own,
    with_living_controller,
)

__all__ = ["SweepReport", "Workspace", "release_sessions_of", "sweep"]


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did.

    Attributes:
        removed: ids of the sessions that are gone.
        kept: id of each session that is still there, and why.
    """

    removed: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


class Workspace:
    """A directory of sessions.

    Args:
        root: absolute; need not exist.
        is_default: the library chose the place. So it checks that the place is private, and removes it when it is
            empty.
        folder: the name of the folder of sessions in it.
        is_project: it belongs to a project of the original framework (:mod:`.projects`). There this user's group may
            write, because such a program makes directories by its umask, and the folder stays when it is empty.

    Attributes:
        sessions: path of the folder of sessions.
    """

    def __init__(
        self, root: str, *, is_default: bool = False, folder: str = SESSIONS_DIR, is_project: bool = False
    ) -> None:
        self.root = _absolute(root)
        self.is_default = is_default
        self.is_project = is_project
        self.sessions = os.path.join(self.root, folder)
        self._forbidden_mode = LEGACY_FORBIDDEN_MODE if is_project else 0o022
        self._has_made_folder = not is_project

    def levels_to_remove(self) -> int:
        """How many of the directories above a session are removed when they are empty: the folder, the workspace."""
        if self.is_project:
            return int(self._has_made_folder or not system.exists(self.sessions))
        return 2 if self.is_default else 1

    @classmethod
    def locate(cls, environ: Mapping[str, str] = os.environ, *, is_made: bool = True) -> Workspace:
        """``TR_WORKSPACE``, else a private directory in shared memory, else one in the directory for temporary files.

        Args:
            environ: the environment.
            is_made: whether to make the directory if it is missing.

        Raises:
            HostilePath: the place is not a directory that this user can trust and use.
        """
        workspace = cls.at(environ.get(WORKSPACE_VARIABLE, "") or _default_root())
        if is_made:
            workspace._make_root()
        return workspace

    @classmethod
    def at(cls, root: str) -> Workspace:
        """The workspace in that directory. It may be the default one: a worker is told the path of that one too."""
        chosen = _absolute(root)
        return cls(chosen, is_default=chosen == _default_root())

    def session_dir(self, session_id: str) -> str:
        """The directory of the session of that name; it need not exist.

        Raises:
            BadMessage: the id may not name a session.
        """
        check_session_id(session_id)
        return os.path.join(self.sessions, SESSION_PREFIX + session_id)

    def find(self, session_id: str) -> str:
        """The directory of the session of that name: this user's own, or not there at all.

        Raises:
            BadMessage: the id may not name a session.
            HostilePath: another user could write to the directory, or to the one above it.
        """
        path = self.session_dir(session_id)
        try:
            _check_private(self.sessions, self._forbidden_mode)
            _check_private(path)
        except FileNotFoundError:
            pass
        return path

    def claim(self, session_id: str, manifest: Manifest, lock: LifeLock | None = None) -> str:
        """Become the owner of a session. Removes first what a dead owner left under the name.

        Args:
            session_id: the session's name.
            manifest: of the new session.
            lock: takes the lock of the session's controller, by which processes in other containers judge it. If None,
                they can never judge the session, and so never remove it.

        Returns:
            The session's directory, new, with the manifest in it.

        Raises:
            SessionInUse: another process has the name, or its owner cannot be judged.
            BadMessage: the id may not name a session, or the manifest is another session's.
            HostilePath: the place is not a directory that this user can trust and use.
            OSError: a system call failed; nothing of a new session is left.
        """
        path = self.session_dir(session_id)
        if manifest.session_id != session_id:
            raise BadMessage(f"the manifest is of session {manifest.session_id!r}", detail=session_id)
        deadline, owner = time.monotonic() + CLAIM_WAIT_S, this_process.mark
        while True:
            is_free, vanished = False, None
            try:
                if self._place(path, manifest, lock):
                    _claimed[self.sessions] = self
                    return path
                is_free = reclaim(path, require_dead)
                kept = NotReclaimable("other processes take the name again and again", may_pass=True)
            except FileNotFoundError as error:  # another process's release removed the empty parents at this moment
                kept, vanished = NotReclaimable(f"{error.filename} keeps vanishing", may_pass=True), error
            except NotReclaimable as found:
                kept = found.detached()
            except HostilePath:
                raise  # another user's directory is not ours to remove
            except BaseException:
                if this_process.mark is owner:  # else a signal handler has forked: it is for the parent to do
                    self.remove_if_empty()
                raise
            if time.monotonic() >= deadline and kept.end_orphan(deadline + ORPHAN_WAIT_S - CLAIM_WAIT_S):
                deadline = time.monotonic() + CLAIM_WAIT_S
                continue
            if kept.is_own():
                raise SessionInUse(
                    f"session {session_id!r} is in use by this very process: another session object has the name "
                    f"({path}); close() that object, choose another session_id, or start with replace=True",
                    session_id=session_id,
                    pid=kept.pid,
                )
            if not kept.may_pass or time.monotonic() >= deadline:
                if vanished is not None and system.exists(self.root):  # it is like /proc, in which nobody can make one
                    raise _unusable(self.root, "is a directory in which no directory can be made") from vanished
                raise SessionInUse(
                    f"session {session_id!r} is in use: {kept.reason} ({path}); end that process, choose another "
                    "session id, or remove the directory if you know that nothing uses it (a session that uses it "
                    "would fail)",
                    session_id=session_id,
                    pid=kept.pid,
                )
            if not is_free:
                time.sleep(CLAIM_RETRY_S)

    def release(self, session_id: str) -> bool:
        """Remove a session of this process, or a dead one, and the directories that are then empty.

        Returns:
            Whether it is gone, also if it was gone before; False if another living process owns it.

        Raises:
            OSError: a system call failed; the session is still there, and may be released again.
        """
        path = self.session_dir(session_id)
        deadline = time.monotonic() + CLAIM_WAIT_S
        while True:
            try:
                reclaim(path, require_own)
                break
            except NotReclaimable as kept:
                if isinstance(kept.__cause__, OSError):
                    raise kept.__cause__ from None
                if not kept.may_pass or time.monotonic() >= deadline:
                    return False
                time.sleep(CLAIM_RETRY_S)
        self.remove_if_empty()
        return True

    def sweep(self, *, ends_orphans: bool = False, at_most: int | None = None) -> SweepReport:
        """Remove the sessions whose controller and worker have both ended, with their semaphores, and half-made ones.

        A session that lives, is another user's or cannot be judged stays. Any number of sweepers may run at once.

        Args:
            ends_orphans: whether to wait a few seconds for workers whose controller has ended, and then kill them.
            at_most: how many names to look at, chosen at random; None for all.

        Returns:
            Which sessions were removed, and why others were not.

        Raises:
            HostilePath: the directory of sessions is not this user's own.
        """
        report = SweepReport()
        orphans: dict[str, NotReclaimable] = {}
        living: dict[Identity, bool] = {}
        try:
            _check_private(self.sessions, self._forbidden_mode)
            names = system.list_dir(self.sessions)
        except FileNotFoundError:
            names = []
        if at_most is not None and len(names) > at_most:
            import random  # here, because there are rarely so many

            names = random.sample(names, at_most)
        names = sorted(names)
        for name in names:
            path = os.path.join(self.sessions, name)
            if leftover := parse_leftover(name):
                user = Identity.local(int(leftover[2]), int(leftover[3]))
                # What this process was removing too: that may have failed, and two removals at once do no harm.
                is_ours = leftover[1] == GONE_PREFIX and user == Identity.current()
                if is_ours or (not user.is_alive() and not is_being_made(path)):
                    system.remove_tree(path)
            elif name.startswith(SESSION_PREFIX) and is_session_id(session_id := name.removeprefix(SESSION_PREFIX)):
                try:
                    if (first_look := with_living_controller(path, living)) is not None:
                        raise first_look
                    if reclaim(path, require_dead):
                        report.removed.append(session_id)
                except NotReclaimable as kept:
                    report.kept[session_id] = kept.detached().reason
                    if kept.orphan is not None:
                        orphans[session_id] = kept
                except OSError as error:
                    report.kept[session_id] = f"it cannot be examined or removed ({error.strerror})"
        if ends_orphans and orphans:
            deadline = time.monotonic() + ORPHAN_WAIT_S
            if True in [kept.end_orphan(deadline) for kept in orphans.values()]:
                again = self.sweep()
                return SweepReport(report.removed + again.removed, again.kept)
        self.remove_if_empty()
        return report

    def release_of(self, controllers: Container[Identity]) -> None:
        """Remove the sessions of some controllers: this process, or processes that have ended.

        A session whose worker lives stays: that worker removes it. What cannot be removed stays for a sweep.
        """
        try:
            names = system.list_dir(self.sessions)
        except OSError:
            return
        for name in names:
            path = os.path.join(self.sessions, name)
            try:
                if leftover := parse_leftover(name):
                    if Identity.local(int(leftover[2]), int(leftover[3])) in controllers:
                        system.remove_tree(path)
                elif name.startswith(SESSION_PREFIX) and manifests.peek_controller(path) in controllers:
                    self.release(name.removeprefix(SESSION_PREFIX))
            except (TRException, OSError):
                continue
        self.remove_if_empty()

    def remove_pools_of(self, controller: Identity) -> None:
        """Remove the directories of a process's segments here; the process has ended."""
        try:
            names = system.list_dir(self.sessions)
        except OSError:
            return
        for name in names:
            found = parse_leftover(name)
            if found and found[1] == POOL_PREFIX and Identity.local(int(found[2]), int(found[3])) == controller:
                system.remove_tree(os.path.join(self.sessions, name))
        self.remove_if_empty()

    def _place(self, path: str, manifest: Manifest, lock: LifeLock | None) -> bool:
        """Put a new session at ``path``; False if the name is taken."""
        owner = this_process.mark
        self._make_root()
        try:
            system.make_dir(self.sessions)
            self._has_made_folder = True
        except FileExistsError:
            pass
        _check_private(self.sessions, self._forbidden_mode)
        if system.exists(path):  # rename(2) would replace an empty directory
            return False
        temporary = aside(path, NEW_PREFIX)
        with system.SpareDescriptors() as spare:
            system.make_dir(temporary)
            try:
                if lock is not None:
                    lock.take(os.path.join(temporary, CONTROLLER_LOCK_FILE))  # before any other process can judge us
                manifests.write(temporary, manifest)
                system.rename(temporary, path, owner=owner)
            except BaseException as error:
                spare.free()
                if this_process.mark is not owner:  # a signal handler has forked: all of it is the parent's
                    raise
                if lock is not None:
                    lock.drop()
                discard(temporary)
                if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    return False
                raise
        return True

    def _make_root(self) -> None:
        while True:
            try:
                system.make_dir(self.root)
            except FileExistsError:
                pass
            except OutOfSpace:
                raise
            except OSError as error:
                raise _unusable(self.root, f"cannot be made ({error.strerror})") from error
            if not self.is_default:
                if not system.is_usable_dir(self.root):
                    raise _unusable(self.root, "is not a directory that this user may write")
                _check_shared(self.root, self._forbidden_mode)
                return
            try:
                _check_private(self.root)
                return
            except FileNotFoundError:  # another process's release removed it at this moment
                continue

    def remove_if_empty(self) -> None:
        """Remove the folder of sessions if it is empty, and the default workspace with it."""
        if not self._has_made_folder:
            return
        try:
            system.remove_dir(self.sessions)
            if self.is_default:
                system.remove_dir(self.root)
        except OSError:  # we may not remove anything there: an empty directory does no harm
            pass


_claimed: Final[dict[str, Workspace]] = {}  # where this process has had sessions; by the folder of sessions


def release_sessions_of(controllers: Container[Identity], workspace: Workspace | None = None) -> None:
    """Do :meth:`Workspace.release_of` wherever this process has had sessions.

    Args:
        controllers: this process, or processes that have ended.
        workspace: where to look too.
    """
    for each in [*([] if workspace is None else [workspace]), *_claimed.values()]:
        each.release_of(controllers)


def sweep(root: str | None = None) -> SweepReport:
    """Remove what dead processes left in a workspace; see :meth:`Workspace.sweep`.

    A worker whose controller has ended ends by itself. If it has not ended after a few seconds, this kills it.

    Args:
        root: of the workspace; None for this user's.

    Returns:
        Which sessions were removed, and why others were not.

    Raises:
        HostilePath: the place is not a directory that this user can trust and use.
    """
    return (Workspace(root) if root is not None else Workspace.locate()).sweep(ends_orphans=True)


def _default_root() -> str:
    if system.is_usable_dir(SHM_DIR):
        parent = SHM_DIR
    else:
        import tempfile  # here, because Linux has the other place

        parent = tempfile.gettempdir()
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return os.path.join(parent, f"{DEFAULT_ROOT_PREFIX}{user}")


def _absolute(root: str) -> str:
    try:
        return system.absolute(root)
    except FileNotFoundError:
        raise _unusable(root, "is relative, and this process's current directory has been removed") from None


def _unusable(path: str, reason: str) -> HostilePath:
    return HostilePath(
        f"{path} {reason}; set TR_WORKSPACE to a directory of your own, in a directory that exists",
        path=path,
        reason=reason,
    )


def _check_private(path: str, forbidden_mode: int = 0o022) -> None:
    """Raise HostilePath unless it is this user's directory and no other may write it; FileNotFoundError if gone."""
    info = system.status(path)
    if stat.S_ISLNK(info.st_mode):
        raise _unusable(path, "is a symlink")
    if not stat.S_ISDIR(info.st_mode):
        raise _unusable(path, "is not a directory")
    if os.name != "posix":  # pragma: no cover - Windows has no modes
        return
    if info.st_uid != os.geteuid():
        raise _unusable(path, f"belongs to user {info.st_uid}")
    if info.st_mode & forbidden_mode:
        raise _unusable(path, f"may be written by {_writers(forbidden_mode)}")


def _check_shared(path: str, forbidden_mode: int) -> None:
    """Raise HostilePath if another user could rename what we make in the directory that this user chose."""
    if os.name != "posix":  # pragma: no cover - Windows has no modes
        return
    info = system.status(os.path.realpath(path))  # a symlink of the user's own choice is followed
    if info.st_uid not in (0, os.geteuid()):
        raise _unusable(path, f"belongs to user {info.st_uid}")
    if info.st_mode & forbidden_mode and not info.st_mode & stat.S_ISVTX:
        who = _writers(forbidden_mode)
        raise _unusable(path, f"may be written by {who}, and has no sticky bit (chmod go-w, or chmod +t)")


def _writers(forbidden_mode: int) -> str:
    return "group or others" if forbidden_mode & 0o020 else "everybody"
