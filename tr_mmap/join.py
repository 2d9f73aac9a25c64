"""How a worker finds its session, in which dialect it is spoken to there, and whose end ends it.

A session with a manifest says all that itself. One without is an older controller's: files in the older dialect, and
nobody to watch but whoever started us. Never removes a directory that has no manifest.
"""

from __future__ import annotations

import os
import stat

from . import manifest as manifests
from . import system
from .auth import Tally, inherited_secret, protect
from .channel import CHANNELS, Channel, FileChannel, Role
from .dialect import LEGACY, OLDER_FORBIDDEN_MODE
from .errors import BadMessage, HostilePath, SessionNotStarted
from .lifeline import hold
from .manifest import Manifest
from .orphans import WORKER_MARK, end_own_children
from .starter import find_starter
from .stores import WorkerStore, worker_store
from .workspace import SESSION_PREFIX, SESSIONS_NAME, Workspace, check_session_id

__all__ = ["Joined", "join"]


class Joined:
    """A session, seen by its worker.

    Attributes:
        directory: the session's.
        channel: the worker's end of it.
        store: the worker's end of it.
        peer: the process without which the session is over; None if there is none to tell.
    """

    def __init__(self, directory: str, manifest: Manifest | None, channel: Channel, store: WorkerStore) -> None:
        self.directory = directory
        self.channel = channel
        self.store = store
        self.peer = find_starter() if manifest is None else manifest.controller
        self._manifest = manifest
        self._older: tuple[Channel, WorkerStore] | None = None

    def older_end(self) -> tuple[Channel, WorkerStore]:
        """Channel and store with which to answer a request that has no number, as no request of ours is."""
        if not isinstance(self.channel, FileChannel):
            return self.channel, self.store
        if self._older is None:
            if self._manifest is None or self._manifest.channel == LEGACY:
                self._older = self.channel, self.store
            else:
                self._older = CHANNELS[LEGACY].attach(self.directory, []), worker_store(LEGACY, self.directory)
        return self._older

    def close_stores(self, *, is_orphan: bool) -> None:
        """Let go of all tensors; if the controller is gone, remove the results too."""
        for store in {self.store, *(self._older or ())[1:]}:
            store.close(is_orphan=is_orphan)

    def remove(self) -> None:
        """Remove the session, unless its controller lives, another has taken its name over, or it is not ours.

        What this worker started ends first: it could go on writing there, and nobody is left who wants it.
        """
        if self._manifest is None:
            return
        end_own_children(self._manifest.worker_mark)
        if not os.path.isdir(self.directory):
            return
        manifest = manifests.read(self.directory)
        if manifest is not None and not manifest.controller.is_alive():
            workspace = _workspace_of(self.directory, manifest)
            if workspace is not None:
                workspace.release(manifest.session_id)


def join(argument: str, tally: Tally) -> Joined:
    """Connect to a session.

    Args:
        argument: its id, or its directory.
        tally: counts the messages that are refused.

    Raises:
        SessionNotStarted: there is no such session, or it has another worker.
        HostilePath: somebody else can write to it.
        BadMessage: its manifest is not right.
    """
    hold()
    directory = _find(argument)
    manifest = manifests.read(directory)
    secret = inherited_secret()
    if manifest is None:
        _check_older(directory)
        if secret is not None:
            raise SessionNotStarted(f"{directory} has no manifest, and its controller was to prove who it is")
        return Joined(directory, None, CHANNELS[LEGACY].attach(directory, []), worker_store(LEGACY, directory))
    workspace = _workspace_of(directory, manifest)
    if workspace is None:
        raise SessionNotStarted(
            f"{directory} has the manifest of session {manifest.session_id!r}, which lives elsewhere"
        )
    workspace.find(manifest.session_id)
    if manifest.worker_mark and os.environ.get(WORKER_MARK, manifest.worker_mark) != manifest.worker_mark:
        # We were slow to start, and our controller has gone or given up on us meanwhile.
        raise SessionNotStarted(f"session {manifest.session_id!r} has another worker by now")
    kind = CHANNELS.get(manifest.channel)
    if kind is None:
        known = ", ".join(CHANNELS)
        raise BadMessage(f"the session's channel is {manifest.channel[:80]!r}, known are {known}", detail="channel")
    store = worker_store(manifest.channel, directory, manifest.store)
    channel = kind.attach(directory, manifest.doorbells)
    channel.spin(manifest.spin_us)
    return Joined(directory, manifest, protect(channel, Role.WORKER, secret, tally), store)


def _find(argument: str) -> str:
    """The directory of an id in the workspace, or the one that is named."""
    if os.sep not in argument:
        try:
            check_session_id(argument)
        except BadMessage:
            if not os.path.isdir(argument):
                raise
        else:
            workspace = Workspace.locate(is_made=False)
            path = workspace.session_dir(argument)
            if system.exists(path) or not os.path.isdir(argument):
                if not os.path.isdir(path):
                    raise SessionNotStarted(
                        f"there is no session {argument!r} in {workspace.root}; a controller makes it"
                    )
                return path
    elif not os.path.isdir(argument):
        raise SessionNotStarted(f"there is no session directory {argument}; a controller makes it")
    return os.path.realpath(argument)


def _workspace_of(directory: str, manifest: Manifest) -> Workspace | None:
    """Where a session with a manifest lives: its directory says so by its name and place."""
    sessions, name = os.path.split(directory)
    root, sessions_name = os.path.split(sessions)
    if (sessions_name, name) != (SESSIONS_NAME, SESSION_PREFIX + manifest.session_id):
        return None
    located = Workspace.locate(is_made=False)  # knows whether the place is one that goes when it is empty
    return located if located.root == root else Workspace(root)


def _check_older(directory: str) -> None:
    """An older controller makes its directory by its umask, which may let its group write; others may not."""
    info = system.status(directory)
    reason = ""
    if not stat.S_ISDIR(info.st_mode):
        reason = "is not a directory"
    elif os.name == "posix" and info.st_uid != os.geteuid():
        reason = f"belongs to user {info.st_uid}"
    elif os.name == "posix" and info.st_mode & OLDER_FORBIDDEN_MODE:
        reason = "may be written by everybody"
    if reason:
        raise HostilePath(f"{directory} {reason}; a session is its user's own", path=directory, reason=reason)
