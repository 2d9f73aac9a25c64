"""How a worker finds its session, its channel, and the process whose death ends the worker.

The manifest of a session says all this. A session without a manifest is a legacy controller's: it has files in the
legacy dialect, and the process to watch is the one that started us. Its directory is removed only if that process has
ended and left it, if the session was found by its name, and if nobody has written there since.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import Final

from ..base import system
from ..base.identifiers import check_session_id, is_result_name
from ..channel.authenticated import RejectionCounter, protect
from ..channel.interface import Channel, Role
from ..channel.kinds import CHANNEL_NAMES, channel_kind, warn_about_order
from ..channel.progress import ProgressWriter
from ..errors import BadMessage, HostilePath, SessionNotStarted
from ..processes.identity import Identity
from ..processes.launcher import find_launchers
from ..processes.life_lock import hold_inherited, is_alive
from ..processes.lifeline import hold
from ..processes.orphans import end_own_children
from ..protocol.legacy import LEGACY, LEGACY_FORBIDDEN_MODE
from ..sessions import manifest as manifests
from ..sessions.manifest import Manifest
from ..sessions.pools import path_of_pool
from ..sessions.projects import SESSIONS_DIRS, find_old_session, is_in_project
from ..sessions.reclaim import NO_MANIFEST, NotReclaimable, reclaim
from ..sessions.secret import inherited_secret
from ..sessions.workspace import Workspace, release_sessions_of
from ..transfer.interface import WorkerTransfer
from ..transfer.kinds import hand_transfer, worker_transfer
from ..wire.messages import PROTOCOL_VERSION, RESPONSE_FILE, STATUS_FILE, STATUS_READY, STATUS_STARTING
from ..wire.names import CONTROLLER_LOCK_FILE, LOG_FILE, SESSION_PREFIX, SESSIONS_DIR, WORKER_MARK_VARIABLE
from .stop_signals import restore_signals

__all__ = ["Attachment", "attach"]

# In the environment of a worker's children: the worker's pid, its session's directory, and its mark.
_SERVED_VARIABLE: Final = "TR_MMAP_SERVED"
# Freed memory of handlers is used again without page faults, which cost more than what numpy computes in the pages
# (x * 1.5 of 64 MiB: 9.4 ms with faults, 4.1 ms without). Larger blocks, and what is free beyond it all, go back.
_KEPT_BLOCK_NBYTES: Final = 128 << 20
_KEPT_NBYTES: Final = 256 << 20


class Attachment:
    """The worker's side of a session.

    Attributes:
        directory: the session directory.
        channel: the worker's side of its channel.
        transfer: the worker's side of its transfer.
        progress: the page for the progress of requests; None where the channel cannot tell requests apart.
        peer: the process whose death ends the session; None if there is none to watch. See :meth:`next_peer`.
        peer_lock: path of the lock that this process holds for life; "" if it holds none.
        log_paths: where the worker's output goes if a controller has started it; the first that fits.
    """

    def __init__(
        self,
        directory: str,
        manifest: Manifest | None,
        channel: Channel,
        transfer: WorkerTransfer,
        *,
        is_named: bool = False,
    ) -> None:
        self.directory = directory
        self.channel = channel
        self.transfer = transfer
        self._peers = find_launchers() if manifest is None else [manifest.controller]
        self.progress = ProgressWriter(directory) if channel.capacity > 1 else None
        self.peer = self._peers.pop(0) if self._peers else None
        self._died_ns: int | None = None  # when the last of them had ended
        self._is_named = is_named
        self.peer_lock = "" if manifest is None else os.path.join(directory, CONTROLLER_LOCK_FILE)
        self._lock = hold_inherited()  # our own, for life
        self.log_paths = [path for path in (manifest.log if manifest is not None else "",) if path]
        self.log_paths.append(os.path.join(directory, LOG_FILE))
        self._manifest = manifest
        self._workspace = None if manifest is None else _workspace_of(directory, manifest)
        self._legacy: tuple[Channel, WorkerTransfer] | None = None
        self._by_hand: WorkerTransfer | None = None
        os.environ[_SERVED_VARIABLE] = f"{os.getpid()} {_served(directory, manifest)}"

    def next_peer(self) -> Identity | None:
        """The process to watch when the one before has ended; None if that is the end of the session."""
        if self._peers:
            return self._peers.pop(0)
        if self._died_ns is None:
            self._died_ns = system.file_time_ns()
        return None

    def end(self) -> None:
        """Serve no more. A child that is started from now on may serve the session."""
        os.environ.pop(_SERVED_VARIABLE, None)

    def legacy_side(self) -> tuple[Channel, WorkerTransfer]:
        """Channel and transfer for a request without a number, which is in the legacy dialect."""
        if not self.channel.may_carry_legacy:
            return self.channel, self.transfer
        if self._legacy is None:
            if self._manifest is None or self._manifest.channel == LEGACY:
                self._legacy = self.channel, self.transfer
            else:
                self._legacy = channel_kind(LEGACY).attach(self.directory, []), self.transfer_by_hand()
        return self._legacy

    def transfer_by_hand(self) -> WorkerTransfer:
        """The transfer of requests that somebody writes by hand. Tensors are files, results have names of their own.

        A transfer of the session's own would release the results that the controller has not taken yet. It also knows
        a tag's new tensor only from the controller's next request.
        """
        if self._by_hand is None:
            self._by_hand = hand_transfer(self.directory)
        return self._by_hand

    def close_transfers(self, *, is_orphan: bool) -> None:
        """Release all tensors; if the controller is gone, remove the results too."""
        for transfer in {self.transfer, *(self._legacy or ())[1:], self._by_hand}:
            if transfer is not None:
                transfer.close(is_orphan=is_orphan)

    def remove(self, *, is_last: bool = False) -> None:
        """Remove the session, unless its controller lives, or another session has its name now.

        One without a manifest is removed only if it was found by its name: else the directory may be anything.
        Ends the processes that this worker started first, because they could go on writing there.

        Args:
            is_last: this process ends right after, and no object in it cleans up. Then the sessions whose controller is
                this process, or a process that it ends, are removed too. Their workers cannot do so: they are among the
                processes that it ends.
        """
        if self._manifest is None:
            if self._is_named:
                try:
                    reclaim(self.directory, self._require_left)
                except (NotReclaimable, OSError):
                    pass
            return
        ended = end_own_children(self._manifest.worker_mark)
        if is_last:
            release_sessions_of({Identity.current(), *ended}, self._workspace)
        if not os.path.isdir(self.directory):
            return
        manifest = manifests.read(self.directory)
        if manifest is not None and not is_alive(manifest.controller, self.peer_lock):
            workspace = _workspace_of(self.directory, manifest)
            if workspace is not None:
                workspace.release(manifest.session_id)
                workspace.remove_pools_of(manifest.controller)

    def _require_left(self, manifest: Manifest | None, problem: str, path: str) -> None:
        """Raise NotReclaimable if somebody uses a legacy session's directory again: a controller started anew, say."""
        if manifest is not None or self._died_ns is None or problem != NO_MANIFEST:
            raise NotReclaimable(problem or "it is another session's now")
        for name in system.list_dir(path):
            info = system.status(os.path.join(path, name))
            if name == STATUS_FILE:
                word = system.peek(os.path.join(path, name), 16).decode("ascii", "replace").strip()
                is_new = word in (STATUS_READY, STATUS_STARTING)  # our own end writes another word
            else:
                is_new = not _is_own_file(name) and info.st_mtime_ns > self._died_ns
            if is_new:
                raise NotReclaimable(f"somebody has written {name} since its controller ended")


def _is_own_file(name: str) -> bool:
    """Whether a worker of ours may have written that file of a legacy session."""
    return name in (RESPONSE_FILE, LOG_FILE) or name.startswith((".", STATUS_FILE)) or is_result_name(name)


def attach(
    argument: str, rejections: RejectionCounter, views: str | None = None, device: str | None = None
) -> Attachment:
    """Connect to a session.

    Args:
        argument: the session's id, or its directory.
        rejections: counts the messages that are rejected.
        views: ``"readonly"`` or ``"copy_on_write"``: what fetched tensors are; None for each framework's default.
        device: ``"same"`` to put fetched torch tensors where the controller had them.

    Raises:
        SessionNotStarted: there is no such session, or it has another worker, perhaps one that has started this
            process.
        HostilePath: another user can write to it.
        BadMessage: ``argument`` is no valid id, or the manifest cannot be read or names no doorbells.
    """
    restore_signals()
    hold()
    warn_about_order()
    directory, is_named = _find(argument)
    manifest = manifests.read(directory)
    _refuse_child(directory, manifest)
    secret = inherited_secret()
    if manifest is None:
        _check_legacy(directory)
        if secret is not None:
            raise SessionNotStarted(
                f"{directory} has no manifest, but this worker was started for a session with auth=True, which has one"
            )
        channel, transfer = channel_kind(LEGACY).attach(directory, []), worker_transfer(LEGACY, directory)
        return Attachment(directory, None, channel, transfer, is_named=is_named)
    workspace = _workspace_of(directory, manifest)
    if workspace is None:
        raise SessionNotStarted(
            f"{directory} has the manifest of session {manifest.session_id!r}, which lives elsewhere"
        )
    workspace.find(manifest.session_id)
    if manifest.worker_mark and os.environ.get(WORKER_MARK_VARIABLE, manifest.worker_mark) != manifest.worker_mark:
        # We were slow to start; meanwhile our controller has ended, or has started another worker.
        raise SessionNotStarted(f"session {manifest.session_id!r} has another worker by now")
    if manifest.protocol != PROTOCOL_VERSION:
        raise SessionNotStarted(
            f"session {manifest.session_id!r} speaks version {manifest.protocol} of the control protocol, and this "
            f"tr_mmap version {PROTOCOL_VERSION}: controller and worker need the same tr_mmap; install it for both and "
            "compile C++ programs again"
        )
    if manifest.channel not in CHANNEL_NAMES:
        known = ", ".join(CHANNEL_NAMES)
        raise BadMessage(f"the session's channel is {manifest.channel[:80]!r}, known are {known}", detail="channel")
    transfer = worker_transfer(
        manifest.channel, directory, manifest.transfer, views, path_of_pool(directory, manifest.pool), device
    )
    channel = channel_kind(manifest.channel).attach(directory, manifest.doorbells)
    channel.set_spin(manifest.spin_us)
    if manifest.recycle_memory:
        system.keep_freed_memory(_KEPT_BLOCK_NBYTES, _KEPT_NBYTES)
    return Attachment(directory, manifest, protect(channel, Role.WORKER, secret, rejections), transfer)


def _served(directory: str, manifest: Manifest | None) -> str:
    """Identifies a worker: the session's directory, and its mark, which no later worker of the session has."""
    return f"{directory} {manifest.worker_mark if manifest is not None else ''}"


def _refuse_child(directory: str, manifest: Manifest | None) -> None:
    """Raise SessionNotStarted in a process that the session's worker has started.

    Such a process may run the worker's script: ``multiprocessing`` imports it in each child that it spawns.
    """
    pid, _, served = os.environ.get(_SERVED_VARIABLE, "").partition(" ")
    if served == _served(directory, manifest) and pid != str(os.getpid()):
        raise SessionNotStarted(
            f"the worker of session directory {directory}, process {pid}, has started this process, and serves that "
            "session itself; if multiprocessing runs the worker's script again, put run() under "
            'if __name__ == "__main__":'
        )


def _find(argument: str) -> tuple[str, bool]:
    """The directory of the session, and whether it was found by the session's id.

    Looks for the id in our workspace, then where controllers of the original framework have their sessions. Else
    ``argument`` itself is the directory.
    """
    if os.sep not in argument:
        try:
            check_session_id(argument)
        except BadMessage:
            if not os.path.isdir(argument):
                raise
        else:
            workspace = Workspace.locate(is_made=False)
            path = workspace.session_dir(argument)
            is_there = os.path.isdir(path)
            if is_there and not _is_left_over(path):
                return path, True
            looked: list[str] = []
            if is_there or not system.exists(path):
                found, looked = find_old_session(argument, _script(), workspace.root)
                if found:
                    return found, True
            if is_there:
                return path, True
            if looked == [] or not os.path.isdir(argument):
                also = f", nor in any of these: {', '.join(looked)}" if looked else ""
                raise SessionNotStarted(
                    f"there is no session {argument!r} in {workspace.sessions}{also}; a controller makes it"
                )
    elif not os.path.isdir(argument):
        raise SessionNotStarted(f"there is no session directory {argument}; a controller makes it")
    return os.path.realpath(argument), False


def _is_left_over(directory: str) -> bool:
    """Whether a session of ours is there whose controller is dead: it may hide a living one of the same name."""
    try:
        manifest = manifests.read(directory)
    except (BadMessage, HostilePath):
        return False
    return manifest is not None and not is_alive(manifest.controller, os.path.join(directory, CONTROLLER_LOCK_FILE))


def _script() -> str:
    """The path of the program that this process runs; "" if it runs none."""
    path = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    try:
        return system.absolute(path) if path else ""
    except FileNotFoundError:  # it is relative, and the current directory has been removed
        return ""


def _workspace_of(directory: str, manifest: Manifest) -> Workspace | None:
    """The workspace of a session with a manifest; None if the directory's name and place do not fit the manifest."""
    sessions, name = os.path.split(directory)
    root, sessions_name = os.path.split(sessions)
    if sessions_name not in SESSIONS_DIRS or name != SESSION_PREFIX + manifest.session_id:
        return None
    if is_in_project(manifest.channel, root):
        return Workspace(root, folder=sessions_name, is_project=True)
    if sessions_name != SESSIONS_DIR:
        return None
    located = Workspace.locate(is_made=False)  # knows whether to remove the place when it is empty
    return located if located.root == root else Workspace(root)


def _check_legacy(directory: str) -> None:
    """Raise HostilePath unless it is this user's directory that others cannot write.

    Its group may write, because a legacy controller makes the directory by its umask.
    """
    info = system.status(directory)
    reason = ""
    if not stat.S_ISDIR(info.st_mode):
        reason = "is not a directory"
    elif os.name == "posix" and info.st_uid != os.geteuid():
        reason = f"belongs to user {info.st_uid}"
    elif os.name == "posix" and info.st_mode & LEGACY_FORBIDDEN_MODE:
        reason = "may be written by everybody"
    if reason:
        raise HostilePath(f"{directory} {reason}; a session is its user's own", path=directory, reason=reason)
