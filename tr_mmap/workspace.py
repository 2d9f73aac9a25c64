"""Where sessions live: places them, gives each name to one owner, removes what the dead left. Starts no process.

``<root>/python_session/tr_session_<id>/`` is a session. It appears with its manifest already inside, by rename, and
goes by rename too, to ``.gone-…`` beside it; nobody ever sees half of one. Who takes a directory away holds its
``flock`` from judging it until it is renamed, and makes sure that the name still means the directory that is locked:
so of two sweepers one wins, and none removes the session that a new owner put in the place of the dead one.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from . import manifest as manifests
from . import system
from .errors import BadMessage, BadTag, HostilePath, SessionInUse, TRException
from .identity import Identity
from .manifest import Manifest
from .orphans import end_heirs, end_orphan

__all__ = ["SweepReport", "Workspace", "check_session_id", "check_tag", "sweep"]

SHM_DIR: Final = "/dev/shm"
SESSIONS_NAME: Final = "python_session"  # the original framework's names
SESSION_PREFIX: Final = "tr_session_"
MAX_TAG_LENGTH: Final = 128  # with ".tsr" and a sequence number well under NAME_MAX (255)
MAX_SESSION_ID_LENGTH: Final = 64  # goes into semaphore names too, beside other parts
CLAIM_WAIT_S: Final = 2.0  # for another's sweep, and for a dead owner's worker to follow it: both take milliseconds
ORPHAN_WAIT_S: Final = 4.0  # what a dead controller's worker has to end in; it gives its last command two
_RETRY_S: Final = 0.005

_good_tag = re.compile(r"(?!\.)(?!(?:result|segment)_[0-9]+\Z)[A-Za-z0-9_.-]{1,128}").fullmatch
_good_session_id = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}").fullmatch
_good_semaphore = re.compile(r"/tr_[A-Za-z0-9_.-]{1,240}").fullmatch
_leftover = re.compile(r"\.(new|gone)-([0-9]{1,10})-([0-9]{1,20})-[0-9a-f]+").fullmatch

# What the system says of a path that is somebody else's or no session; all else is a call that failed.
_NOT_OURS: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EBUSY}
)

_CHARACTERS: Final = "letters, digits, '_', '-' and '.', not beginning with a dot"


def check_tag(tag: str) -> None:
    """Refuse what may not name a tensor.

    Raises:
        BadTag: too long, empty, has other characters, or is of the form that the library names its own files.
    """
    try:
        if _good_tag(tag):
            return
        is_reserved = re.fullmatch(r"(result|segment)_[0-9]+", tag) is not None
    except TypeError:
        raise BadTag(f"a tag is a str, not {type(tag).__name__}", tag=repr(tag)[:MAX_TAG_LENGTH]) from None
    if is_reserved:
        raise BadTag(f"the tag {tag!r} is one of the library's own names; choose another", tag=tag)
    shown = tag[:MAX_TAG_LENGTH]
    raise BadTag(f"{shown!r} is no tag: 1 to {MAX_TAG_LENGTH} characters, {_CHARACTERS}", tag=shown)


def check_session_id(session_id: str) -> None:
    """Refuse what may not name a session.

    Raises:
        BadMessage: too long, empty, or has other characters.
    """
    if not isinstance(session_id, str) or not _good_session_id(session_id):
        shown = repr(session_id)[: MAX_SESSION_ID_LENGTH + 2]
        raise BadMessage(
            f"{shown} is no session id: 1 to {MAX_SESSION_ID_LENGTH} characters, {_CHARACTERS}", detail=shown
        )


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did.

    Attributes:
        removed: ids of the sessions that are gone.
        kept: id of each session that is still there, and why.
    """

    removed: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


class _Kept(Exception):
    """A session may not be taken away: why, whose it is (0 if unknown), and whether waiting a little may help."""

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


def _judge_dead(manifest: Manifest | None, problem: str) -> None:
    """Raise _Kept unless the session's processes have certainly ended."""
    if manifest is None:
        raise _Kept(problem)
    if manifest.controller.is_alive():
        pid = manifest.controller.pid
        raise _Kept(f"its controller, process {pid}, is alive", pid=pid)
    if manifest.worker is not None and manifest.worker != Identity.current() and manifest.worker.is_alive():
        # It is about to notice, and until then could write to, or remove, the directory that it takes for its own.
        pid = manifest.worker.pid
        why = f"its worker, process {pid}, is alive, its controller is not"
        raise _Kept(why, pid=pid, may_pass=True, orphan=manifest)


def _judge_own(manifest: Manifest | None, _problem: str) -> None:
    """Raise _Kept if the session is another living process's: a fork's child must not end its parent's."""
    if manifest is not None and manifest.controller != Identity.current():
        _judge_dead(manifest, "")


class Workspace:
    """A directory of sessions.

    Args:
        root: absolute; need not exist.
        is_default: the library chose the place, so it trusts nothing there and removes it when it is empty.
    """

    def __init__(self, root: str, *, is_default: bool = False) -> None:
        self.root = os.path.abspath(root)
        self.is_default = is_default
        self._sessions = os.path.join(self.root, SESSIONS_NAME)

    @classmethod
    def locate(cls, environ: Mapping[str, str] = os.environ, *, is_made: bool = True) -> Workspace:
        """``TR_WORKSPACE``, else a private directory in shared memory, else one among temporary files.

        Args:
            environ: the environment.
            is_made: whether to make it if it is missing.

        Raises:
            HostilePath: the place is not a directory that this user can trust and use.
        """
        parent = SHM_DIR if system.is_usable_dir(SHM_DIR) else tempfile.gettempdir()
        user = os.getuid() if hasattr(os, "getuid") else "user"
        default = os.path.join(parent, f"tr_mmap-{user}")
        chosen = os.path.abspath(environ.get("TR_WORKSPACE", "") or default)
        workspace = cls(chosen, is_default=chosen == default)  # a worker is told the place, be it the default one
        if is_made:
            workspace._make_root()
        return workspace

    def session_dir(self, session_id: str) -> str:
        """Where the session of that name is, if it is."""
        check_session_id(session_id)
        return os.path.join(self._sessions, SESSION_PREFIX + session_id)

    def find(self, session_id: str) -> str:
        """Where the session of that name is; it is this user's own, or not there at all.

        Raises:
            HostilePath: another could write to it, or to what leads to it.
        """
        path = self.session_dir(session_id)
        try:
            _check_private(self._sessions)
            _check_private(path)
        except FileNotFoundError:
            pass
        return path

    def claim(self, session_id: str, manifest: Manifest) -> str:
        """Become the owner of a session: its directory, new and with its manifest in it.

        What a dead owner left under the name is removed first.

        Raises:
            SessionInUse: somebody else has the name, or nobody can say who.
            BadMessage: the id or the manifest is not right.
            OSError: a system call failed; nothing of a new session is left.
        """
        path = self.session_dir(session_id)
        if manifest.session_id != session_id:
            raise BadMessage(f"the manifest is of session {manifest.session_id!r}", detail=session_id)
        deadline = time.monotonic() + CLAIM_WAIT_S
        while True:
            is_free = False
            try:
                if self._place(path, manifest):
                    return path
                is_free = _take_away(path, _judge_dead)
                kept = _Kept("it changes hands all the time", may_pass=True)
            except FileNotFoundError as error:  # another's release removed the empty parents at this moment
                kept = _Kept(f"{error.filename} keeps vanishing", may_pass=True)
            except _Kept as found:
                kept = found
            except HostilePath:
                raise  # what others prepared is not ours to remove
            except BaseException:
                self._remove_if_empty()
                raise
            if time.monotonic() >= deadline and kept.end_orphan(deadline + ORPHAN_WAIT_S - CLAIM_WAIT_S):
                deadline = time.monotonic() + CLAIM_WAIT_S
                continue
            if not kept.may_pass or time.monotonic() >= deadline:
                raise SessionInUse(
                    f"session {session_id!r} is in use: {kept.reason} ({path}); end that process, choose another "
                    "session id, or remove the directory if you know that nothing uses it",
                    session_id=session_id,
                    pid=kept.pid,
                )
            if not is_free:
                time.sleep(_RETRY_S)

    def release(self, session_id: str) -> bool:
        """Remove a session of this process, or a dead one, and the directories that are empty then.

        Returns:
            Whether it is gone, be it before; False if another living process owns it.

        Raises:
            OSError: a system call failed; the session is there, and may be released again.
        """
        path = self.session_dir(session_id)
        deadline = time.monotonic() + CLAIM_WAIT_S
        while True:
            try:
                _take_away(path, _judge_own)
                break
            except _Kept as kept:
                if isinstance(kept.__cause__, OSError):
                    raise kept.__cause__ from None
                if not kept.may_pass or time.monotonic() >= deadline:
                    return False
                time.sleep(_RETRY_S)
        self._remove_if_empty()
        return True

    def sweep(self, *, ends_orphans: bool = False) -> SweepReport:
        """Remove the sessions whose controller and worker have both ended, with their semaphores, and half-made ones.

        Whatever lives, is another user's or cannot be judged stays. Any number of sweepers may run at once.

        Args:
            ends_orphans: whether to wait a few seconds for workers whose controller has ended, and then kill them.

        Raises:
            HostilePath: the directory of sessions is not this user's own.
        """
        report = SweepReport()
        orphans: dict[str, _Kept] = {}
        try:
            _check_private(self._sessions)
            names = sorted(system.list_dir(self._sessions))
        except FileNotFoundError:
            names = []
        for name in names:
            path = os.path.join(self._sessions, name)
            if leftover := _leftover(name):
                user = Identity.local(int(leftover[2]), int(leftover[3]))
                # Our own removals too: one may have failed, and of two at once neither minds the other.
                if not user.is_alive() or (leftover[1] == "gone" and user == Identity.current()):
                    system.remove_tree(path)
            elif name.startswith(SESSION_PREFIX) and _good_session_id(session_id := name.removeprefix(SESSION_PREFIX)):
                try:
                    if _take_away(path, _judge_dead):
                        report.removed.append(session_id)
                except _Kept as kept:
                    report.kept[session_id] = kept.reason
                    if kept.orphan is not None:
                        orphans[session_id] = kept
                except OSError as error:
                    report.kept[session_id] = f"it cannot be examined or removed ({error.strerror})"
        if ends_orphans and orphans:
            deadline = time.monotonic() + ORPHAN_WAIT_S
            if True in [kept.end_orphan(deadline) for kept in orphans.values()]:
                again = self.sweep()
                return SweepReport(report.removed + again.removed, again.kept)
        self._remove_if_empty()
        return report

    def _place(self, path: str, manifest: Manifest) -> bool:
        """Put a new session at ``path``; False if something is there."""
        self._make_root()
        try:
            system.make_dir(self._sessions)
        except FileExistsError:
            pass
        _check_private(self._sessions)
        if system.exists(path):  # rename(2) would replace an empty directory
            return False
        temporary = _aside(path, "new")
        system.make_dir(temporary)
        try:
            manifests.write(temporary, manifest)
            system.rename(temporary, path)
        except BaseException as error:
            _discard(temporary)
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
            except OSError as error:
                raise _unusable(self.root, f"cannot be made ({error.strerror})") from error
            if not self.is_default:
                if not system.is_usable_dir(self.root):
                    raise _unusable(self.root, "is not a directory that this user may write")
                _check_shared(self.root)
                return
            try:
                _check_private(self.root)
                return
            except FileNotFoundError:  # another's release removed it at this moment
                continue

    def _remove_if_empty(self) -> None:
        try:
            system.remove_dir(self._sessions)
            if self.is_default:
                system.remove_dir(self.root)
        except OSError:  # in a place where we may not remove: an empty directory harms nobody
            pass


def sweep(root: str | None = None) -> SweepReport:
    """Remove what dead processes left in a workspace, by default in this user's; see :meth:`Workspace.sweep`.

    A worker whose controller has ended follows it by itself; if it has not after a few seconds it is killed.
    """
    return (Workspace(root) if root is not None else Workspace.locate()).sweep(ends_orphans=True)


def _unusable(path: str, reason: str) -> HostilePath:
    return HostilePath(
        f"{path} {reason}; set TR_WORKSPACE to a directory of your own, in a directory that exists",
        path=path,
        reason=reason,
    )


def _check_private(path: str) -> None:
    """Raise HostilePath unless it is a directory of ours that nobody else may write; FileNotFoundError if gone."""
    info = system.status(path)
    if stat.S_ISLNK(info.st_mode):
        raise _unusable(path, "is a symlink")
    if not stat.S_ISDIR(info.st_mode):
        raise _unusable(path, "is not a directory")
    if os.name != "posix":  # pragma: no cover - Windows has no modes
        return
    if info.st_uid != os.geteuid():
        raise _unusable(path, f"belongs to user {info.st_uid}")
    if info.st_mode & 0o022:
        raise _unusable(path, "may be written by group or others")


def _check_shared(path: str) -> None:
    """Raise HostilePath if another user could rename what we make in a directory that our user chose."""
    if os.name != "posix":  # pragma: no cover - Windows has no modes
        return
    info = system.status(os.path.realpath(path))  # a symlink of the user's own choice is followed
    if info.st_uid not in (0, os.geteuid()):
        raise _unusable(path, f"belongs to user {info.st_uid}")
    if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
        raise _unusable(path, "may be written by group or others, and has no sticky bit (chmod go-w, or chmod +t)")


def _aside(path: str, kind: str) -> str:
    """A name beside ``path`` that says who uses it, so that a sweep can tell when nobody does any more."""
    own = Identity.current()
    name = f".{kind}-{own.pid}-{own.start_ticks}-{secrets.token_hex(8)}"
    return os.path.join(os.path.dirname(path), name)


def _discard(temporary: str) -> None:
    """Remove what nobody has seen. Under another name, for removing takes a descriptor, and there may be none left:
    a later sweep of this process removes only what it meant to remove before.
    """
    gone = _aside(temporary, "gone")
    try:
        system.rename(temporary, gone)
    except OSError:
        gone = temporary  # the sweep that finds us dead removes it
    system.remove_tree(gone)


def _take_away(path: str, judge: Callable[[Manifest | None, str], None]) -> bool:
    """Remove a session and its semaphores if the judge does not object; whether this call did it.

    Raises:
        _Kept: by the judge, or because it is not in our power.
    """
    try:
        fd = system.open_dir(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        raise _Kept(f"it is not a directory of this user's ({error.strerror})") from error
    gone = ""
    try:
        if not system.try_lock_dir(fd):
            raise _Kept("another process is examining or removing it", may_pass=True)
        if not system.is_same_file(fd, path):
            return False  # taken away since it was opened; what has the name now is somebody's new session
        manifest, problem = _examine(path)
        judge(manifest, problem)
        if manifest is not None and manifest.worker is not None and manifest.controller != Identity.current():
            end_heirs(manifest.worker, manifest.worker_mark)  # our own session's are ended with its worker
        # While the name is still taken: afterwards a new owner may have semaphores of the same names.
        for doorbell in manifest.doorbells if manifest is not None else ():
            _unlink_semaphore(doorbell)
        aside = _aside(path, "gone")
        system.rename(path, aside)
        gone = aside
    except FileNotFoundError:
        return False  # somebody who takes no lock was faster
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        raise _Kept(f"it cannot be removed ({error.strerror})") from error
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
    if not _good_semaphore(name):  # a manifest may not make us remove another program's semaphores
        return
    import posix_ipc  # not on Windows, which has no named semaphores that outlive their users

    try:
        posix_ipc.unlink_semaphore(name)
    except (posix_ipc.ExistentialError, posix_ipc.PermissionsError):
        pass
