"""Starts a session's worker: which program, with which environment. Waits for nothing."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from typing import Final

from ..errors import ScriptNotFound
from ..processes import life_lock
from ..processes.lifeline import Lifeline
from ..processes.spawn import WorkerProcess
from ..sessions.secret import handed_over
from ..wire.names import (
    DEFAULT_WORKER,
    LIFELINE_FD_VARIABLE,
    LOCK_FD_VARIABLE,
    LOG_FILE,
    SECRET_FD_VARIABLE,
    WORKER_LOCK_FILE,
    WORKSPACE_VARIABLE,
)

__all__ = ["check_script", "launch"]

_PACKAGE_DIR: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_COMPAT_DIR: Final = os.path.join(_PACKAGE_DIR, "compat")  # has tech_renaissance.py, the original framework's name


def check_script(script_path: str) -> None:
    """Refuse a script that is not there.

    Raises:
        ScriptNotFound: it is neither a file nor ``"default"``.
    """
    if script_path != DEFAULT_WORKER and not os.path.isfile(script_path):
        raise ScriptNotFound(
            f"the worker's script {script_path!r} is no file (seen from {os.getcwd()}); give the path of a Python "
            f"script, or {DEFAULT_WORKER!r}",
            path=script_path,
        )


def launch(
    script_path: str,
    session_id: str,
    *,
    workspace_root: str,
    session_dir: str,
    mark: str,
    quiet: bool,
    secret: bytes | None = None,
    args: Sequence[str] = (),
    env: Mapping[str, str | None] | None = None,
    cwd: str | None = None,
    python: str | None = None,
) -> WorkerProcess:
    """Start the worker of a session whose control files are there, and hand it the session's secret if there is one.

    Args:
        script_path: of the worker's script, or ``"default"``.
        session_id: the session's name.
        workspace_root: where the worker looks for the session.
        session_dir: the session directory, for the worker's log.
        mark: the worker's mark.
        quiet: False also copies the worker's output to this process's stderr.
        secret: of a session with ``auth``; else None.

    Raises:
        ScriptNotFound: there is no such script.
        OSError: a system call failed; no worker is left.
    """
    check_script(script_path)
    program = ["-m", "tr_mmap.worker"] if script_path == DEFAULT_WORKER else [os.path.abspath(script_path)]
    lifeline = Lifeline()
    worker: WorkerProcess | None = None
    try:
        with (
            handed_over(secret) as (variables, fds),
            lifeline.handed_over() as (more_variables, more_fds),
            life_lock.handed_over(os.path.join(session_dir, WORKER_LOCK_FILE)) as (lock_variables, lock_fds),
        ):
            worker = WorkerProcess.spawn(
                [sys.executable, *program, session_id],
                env=_environment(os.environ, workspace_root) | variables | more_variables | lock_variables,
                log_path=os.path.join(session_dir, LOG_FILE),
                pass_fds=fds + more_fds + lock_fds,
                mark=mark,
                quiet=quiet,
            )
            worker.on_end = lifeline.cut
    except BaseException:
        if worker is not None:  # the worker runs, but our own copies of the descriptors could not be closed
            worker.terminate_tree(0)
        raise
    return worker


def _environment(inherited: Mapping[str, str], workspace_root: str) -> dict[str, str]:
    paths = [_COMPAT_DIR]
    if not _is_installed():
        paths.append(os.path.dirname(_PACKAGE_DIR))
    if inherited.get("PYTHONPATH"):
        paths.append(inherited["PYTHONPATH"])
    return {
        **{
            name: value
            for name, value in inherited.items()
            if name not in (SECRET_FD_VARIABLE, LIFELINE_FD_VARIABLE, LOCK_FD_VARIABLE)
        },  # those of this process's own controller, if it is a worker
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",  # else the last output of a killed worker stays in its buffers
        "PYTHONFAULTHANDLER": "1",  # a crash in native code leaves its stack in the log
        WORKSPACE_VARIABLE: workspace_root,
    }


def _is_installed() -> bool:
    """Whether any interpreter of this environment finds the package by itself."""
    places = [sysconfig.get_path("purelib"), *site.getsitepackages(), site.getusersitepackages()]
    return os.path.dirname(_PACKAGE_DIR) in places
