"""Where programs of the original framework have their sessions: in the ``workspace/`` of their project. Makes nothing.

Such a program knows neither ``TR_WORKSPACE`` nor our default. The place is compiled into it, or it is counted from the
worker's script, which lies two levels below: ``<project>/python/module/script.py`` and
``<project>/workspace/python_session/tr_session_<id>``. Older ones say ``pytorch_session``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Final

from ..base import system
from ..errors import HostilePath
from ..protocol.legacy import LEGACY, LEGACY_FORBIDDEN_MODE
from ..wire.names import DEFAULT_WORKER, SESSION_PREFIX, SESSIONS_DIR, WORKSPACE_VARIABLE
from .workspace import Workspace

__all__ = ["SESSIONS_DIRS", "advice_on_place", "choose_workspace", "find_old_session", "is_in_project"]

SESSIONS_DIRS: Final = (SESSIONS_DIR, "pytorch_session")
_WORKSPACE: Final = "workspace"


def find_old_session(session_id: str, script: str, workspace_root: str) -> tuple[str, list[str]]:
    """The directory of a session that a controller of the original framework has made.

    Args:
        session_id: the session's name, which was checked.
        script: path of the worker's script; "" if it has none.
        workspace_root: our workspace, in which an older name of the folder may be in use.

    Returns:
        The directory, without symlinks, or "" if there is none; and the folders in which it looked.

    Raises:
        HostilePath: there is one, but other users could put another in its place.
    """
    hostile: HostilePath | None = None
    looked: list[str] = []
    roots = [*_roots_of(script), os.path.join(_current_dir(), _WORKSPACE)]
    for root, names in [(workspace_root, SESSIONS_DIRS[1:]), *[(root, SESSIONS_DIRS) for root in dict.fromkeys(roots)]]:
        looked.append(_shown(root, names))
        for name in names:
            path = os.path.join(root, name, SESSION_PREFIX + session_id)
            if not os.path.isdir(path):
                continue
            try:
                return _trusted(path), looked
            except HostilePath as error:
                hostile = hostile or error
    if hostile is not None:
        raise hostile
    return "", looked


def choose_workspace(channel: str, script: str, workspace_root: str, environ: Mapping[str, str]) -> Workspace:
    """Where a controller makes a session.

    Args:
        channel: the session's channel.
        script: path of the worker's script, absolute, or ``"default"``.
        workspace_root: of the workspace for all other sessions.
        environ: the environment; a workspace that the user has chosen there wins.

    Returns:
        For a legacy session whose script lies in a project of the original framework: the ``workspace/`` of that
        project. This is a directory of this user's own that is named so and has a folder for sessions, beside the
        script or anywhere above it; or one without such a folder two levels above the script's.
    """
    if channel == LEGACY and script != DEFAULT_WORKER and not environ.get(WORKSPACE_VARIABLE):
        for root in _roots_of(script):
            for name in SESSIONS_DIRS:
                if _is_own_dir(root) and _is_own_dir(os.path.join(root, name)):
                    return Workspace(os.path.realpath(root), folder=name, is_project=True)
        above = _two_levels_above(script)
        if _is_own_dir(above) and os.path.dirname(above) != os.sep:  # /workspace is a common name for other things
            return Workspace(os.path.realpath(above), is_project=True)
    return Workspace.at(workspace_root)


def advice_on_place(channel: str, script: str, workspace: Workspace, workspace_root: str) -> str:
    """What to say of a legacy worker that does not answer: where its session is, and where it may look. Else ""."""
    if channel != LEGACY or script == DEFAULT_WORKER:
        return ""
    here = f"; its session is in {workspace.sessions}"
    if workspace.is_project:
        return f"{here}, where its project has its sessions, not in {os.path.join(workspace_root, SESSIONS_DIR)}"
    root = _two_levels_above(script)
    unset = f"unset {WORKSPACE_VARIABLE} and " if os.environ.get(WORKSPACE_VARIABLE) else ""
    return (
        f"{here}; a worker of the original framework looks in {os.path.join(root, SESSIONS_DIR)} instead: "
        f"{unset}make that directory your own, and the session will be there"
    )


def is_in_project(channel: str, root: str) -> bool:
    """Whether a session of that channel in that workspace may be in a project's, as far as the worker can tell."""
    return channel == LEGACY and os.path.basename(root) == _WORKSPACE


def _roots_of(script: str) -> list[str]:
    """Where the workspace of a script's project may be: two levels above its folder, beside it, and further up."""
    if not script:
        return []
    found: list[str] = []
    for each in dict.fromkeys((script, os.path.realpath(script))):
        folder = os.path.dirname(os.path.normpath(each))
        parents = [folder]
        while (parent := os.path.dirname(parents[-1])) != parents[-1]:
            parents.append(parent)
        found += [_two_levels_above(each), *[os.path.join(parent, _WORKSPACE) for parent in parents]]
    return list(dict.fromkeys(found))


def _two_levels_above(script: str) -> str:
    return os.path.join(os.path.normpath(os.path.join(os.path.dirname(script), os.pardir, os.pardir)), _WORKSPACE)


def _current_dir() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it has been removed
        return os.sep


def _shown(root: str, names: tuple[str, ...]) -> str:
    return os.path.join(root, names[0] if len(names) == 1 else "{" + ",".join(names) + "}")


def _is_own_dir(path: str) -> bool:
    """Whether the path leads to a directory of this user's."""
    try:
        info = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and (os.name != "posix" or info.st_uid == os.geteuid())


def _trusted(path: str) -> str:
    """The real path of a session's directory; raises HostilePath if other users could replace what is above it."""
    real = os.path.realpath(path)
    folder = os.path.dirname(real)
    for each in (folder, os.path.dirname(folder)):
        info = system.status(each)
        reason = ""
        if os.name == "posix" and info.st_uid not in (0, os.geteuid()):
            reason = f"belongs to user {info.st_uid}"
        elif os.name == "posix" and info.st_mode & LEGACY_FORBIDDEN_MODE and not info.st_mode & stat.S_ISVTX:
            reason = "may be written by everybody"
        if reason:
            raise HostilePath(f"{each} {reason}, so the session {path} is not used", path=each, reason=reason)
    return real
