"""Starts a session's worker: which program, by which interpreter, with which environment. Waits for nothing."""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import re
import signal
import site
import sys
import sysconfig
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from ..base import system
from ..errors import ScriptNotFound, SystemLimit
from ..processes import life_lock
from ..processes.interpreter import find_python, is_python
from ..processes.lifeline import Lifeline
from ..processes.spawn import WorkerProcess
from ..sessions.secret import handed_over
from ..wire.names import (
    DEFAULT_WORKER,
    LIFELINE_FD_VARIABLE,
    LOCK_FD_VARIABLE,
    LOG_FILE,
    PACKAGES_VARIABLE,
    PYTHON_VARIABLE,
    SECRET_FD_VARIABLE,
    WORKER_LOCK_FILE,
    WORKSPACE_VARIABLE,
)

__all__ = ["advice_on", "check_script", "launch"]

_PACKAGE_DIR: Final = os.path.dirname(os.path.dirname(system.absolute(__file__)))
_COMPAT_DIR: Final = os.path.join(_PACKAGE_DIR, "compat")  # has tech_renaissance.py, the original framework's name
_DEFAULT_SCRIPT: Final = os.path.join(_PACKAGE_DIR, "worker", "__main__.py")
_NEEDED_PACKAGES: Final = ("numpy", "msgspec", "ml_dtypes", "posix_ipc", "psutil")  # by the default worker

# Users set these for programs of their own. They would change which code the default worker runs.
_NOT_FOR_DEFAULT: Final = frozenset({"PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT"})
# These say where an interpreter has its standard library. With another one's values, it ends before its first line.
_HOMES: Final = ("PYTHONHOME", "PYTHONPLATLIBDIR")
_OLDEST_PYTHON: Final = "3.11"
# What execve(2) says of the program itself; any other error is a limit of the system.
_NOT_RUNNABLE: Final = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP, errno.EISDIR}
)
# This process has these from its own controller, if it is a worker itself.
_NOT_INHERITED: Final = frozenset({SECRET_FD_VARIABLE, LIFELINE_FD_VARIABLE, LOCK_FD_VARIABLE})

# SIGHUP stays ignored if it is, see below. Python itself ignores the other two, and subprocess restores them.
_NOT_RESTORED: Final = frozenset(
    getattr(signal, name) for name in ("SIGHUP", "SIGPIPE", "SIGXFSZ") if hasattr(signal, name)
)
_IGNORED_SIGNALS: Final = re.compile(rb"^SigIgn:\s*([0-9a-f]+)$", re.MULTILINE)
_MAX_STATUS_NBYTES: Final = 1 << 16
# Run by the worker's interpreter where this process's signals are unusual; then it becomes the worker by execv(2). The
# child of a process with threads may run no Python before that, so subprocess's preexec_fn is no way to do it. SIGHUP
# stays ignored if it is: nohup(1) is meant for the children too.
_RESTORE_SIGNALS: Final = """\
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGHUP}:
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
os.execv(sys.argv[1], sys.argv[1:])
"""

_TOO_OLD: Final = re.compile(r"^Unknown option: -P|future feature annotations is not defined", re.MULTILINE)
_NO_PACKAGE: Final = re.compile(r"No module named '(tr_mmap|numpy|msgspec|posix_ipc|ml_dtypes|tech_renaissance)\b")


def check_script(script_path: str) -> None:
    """Refuse a script that is not there.

    Raises:
        ScriptNotFound: it is neither a file nor ``"default"``.
    """
    if script_path != DEFAULT_WORKER and not os.path.isfile(script_path):
        try:
            where = f"seen from {os.getcwd()}"
        except FileNotFoundError:
            where = "this process's current directory has been removed"
        raise ScriptNotFound(
            f"the worker's script {script_path!r} is no file ({where}); give the path of a Python script, or "
            f"{DEFAULT_WORKER!r}",
            path=script_path,
        )


def advice_on(output: str, interpreter: str = "") -> str:
    """A line of advice on a worker that ended; "" if there is none to give.

    Args:
        output: of the worker.
        interpreter: path of the worker's interpreter if the worker was never ready; else "".
    """
    if _TOO_OLD.search(output):
        return (
            f"the worker needs Python {_OLDEST_PYTHON} or later: choose one with python= or {PYTHON_VARIABLE}, and "
            "install tr_mmap for it"
        )
    if found := _NO_PACKAGE.search(output):
        return (
            f"the worker's Python has no {found[1]}: install tr_mmap for it, or choose another one with python= or "
            f"{PYTHON_VARIABLE}"
        )
    if interpreter and not (output and is_python(interpreter)):
        return (
            f"it was run by {interpreter!r}, and ended before it was ready: if that is no Python, choose one with "
            f"python= or {PYTHON_VARIABLE}"
        )
    return ""


def launch(
    script_path: str,
    session_id: str,
    *,
    workspace_root: str,
    session_dir: str,
    mark: str,
    quiet: bool,
    secret: bytes | None = None,
    log_path: str = "",
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
        log_path: where the worker's log goes, outside the session directory, which then has a symlink to it; "" for
            a log in the session directory.
        args: the script's arguments after the session's name; they and ``env`` were checked as options.
        env: variables to add to what the worker inherits of this process's environment; None as a value removes one.
            What we set ourselves stays.
        cwd: the worker's current directory; None for this process's.
        python: the interpreter, see :func:`find_python`.

    Raises:
        ScriptNotFound: there is no such script or interpreter; or the directory has been removed.
        SystemLimit: ``args`` and ``env`` are longer than the system allows, or there are too many open files.
        OSError: a system call failed; no worker is left.
    """
    check_script(script_path)
    environ = _merged(os.environ, env)
    interpreter = find_python(python, environ)
    if cwd is not None and not os.path.isdir(cwd):
        raise ScriptNotFound(
            f"the worker's current directory {cwd!r} is no directory; make it, or give another", path=cwd
        )
    link = os.path.join(session_dir, LOG_FILE)
    program = [interpreter, *_program(script_path), session_id, *args]
    if _has_unusual_signals():
        program = [interpreter, "-S", "-P", "-c", _RESTORE_SIGNALS, *program]
    if script_path == DEFAULT_WORKER:
        given = frozenset(env or ())
        made = _environment_of_default(environ, given, workspace_root, is_our_python=interpreter == sys.executable)
    else:
        made = _environment_of_script(environ, workspace_root)
    lifeline = Lifeline()
    worker: WorkerProcess | None = None
    try:
        with (
            handed_over(secret) as (variables, fds),
            lifeline.handed_over() as (more_variables, more_fds),
            life_lock.handed_over(os.path.join(session_dir, WORKER_LOCK_FILE)) as (lock_variables, lock_fds),
        ):
            worker = _spawn(
                interpreter,
                program,
                env=made | variables | more_variables | lock_variables,
                log_path=log_path or link,
                log_link=link if log_path else "",
                cwd=cwd,
                pass_fds=fds + more_fds + lock_fds,
                mark=mark,
                quiet=quiet,
            )
            worker.on_end = lifeline.cut
    except BaseException as error:
        if worker is not None:  # the worker runs, but our own copies of the descriptors could not be closed
            worker.terminate_tree(0)
        lifeline.cut()  # also if somebody keeps the error
        if isinstance(error, OSError) and error.errno == errno.E2BIG:
            raise _too_long(error, args, env or {}) from error
        raise
    return worker


def _spawn(interpreter: str, program: list[str], **options: Any) -> WorkerProcess:
    try:
        return WorkerProcess.spawn(program, **options)
    except OSError as error:
        if error.errno not in _NOT_RUNNABLE or error.filename != interpreter:
            raise
        raise ScriptNotFound(
            f"the worker's interpreter {interpreter!r} cannot be run ({error.strerror}); give the path of a Python "
            f"with python= or {PYTHON_VARIABLE}",
            path=interpreter,
        ) from error


def _too_long(error: OSError, args: Sequence[str], env: Mapping[str, str | None]) -> SystemLimit:
    variables = [f"{name}={value}" for name, value in env.items() if value is not None]
    sizes = [[len(os.fsencode(each)) + 1 for each in texts] for texts in (args, variables)]
    told = ", ".join(
        f"{name}= has {sum(each)} bytes (the longest text {max(each, default=0)})"
        for name, each in zip(("args", "env"), sizes, strict=True)
    )
    return SystemLimit(
        f"the worker cannot be started: {error.strerror}: {told}, beside what the worker inherits; Linux allows "
        "128 KiB for one text and a quarter of the stack's limit (ulimit -s) for all; write what is long to a file, "
        "and give the worker its path",
        limit="ARG_MAX",
        code=errno.E2BIG,
    )


def _program(script_path: str) -> list[str]:
    """The interpreter's arguments that run a script. The current directory never decides which code that is."""
    if script_path != DEFAULT_WORKER:
        return [system.absolute(script_path)]
    if os.path.isfile(_DEFAULT_SCRIPT):
        return ["-P", _DEFAULT_SCRIPT]  # -P: not even the directory of the script is searched for modules
    return ["-P", "-m", "tr_mmap.worker"]  # the package is in a zip file


def _has_unusual_signals() -> bool:
    """Whether a child would inherit signals that are blocked in this thread, or ignored."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows
        return False
    if signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return True
    judged = signal.valid_signals() - _NOT_RESTORED  # not those that the C library keeps for itself
    if any(signal.getsignal(number) is signal.SIG_IGN for number in judged):
        return True
    # Python does not know what code in C has done to signals since Python's own start.
    try:
        found = _IGNORED_SIGNALS.search(system.peek("/proc/self/status", _MAX_STATUS_NBYTES))
    except OSError:
        return False
    return found is not None and any(int(found[1], 16) >> (number - 1) & 1 for number in judged)


def _merged(inherited: Mapping[str, str], changes: Mapping[str, str | None] | None) -> dict[str, str]:
    merged: dict[str, str | None] = {name: value for name, value in inherited.items() if name not in _NOT_INHERITED}
    merged.update(changes or {})
    return {name: value for name, value in merged.items() if value is not None}


def _environment_of_default(
    environ: Mapping[str, str], given: Set[str], workspace_root: str, is_our_python: bool
) -> dict[str, str]:
    """The default worker's environment, in which only the library's own code runs.

    Args:
        environ: what the user wants it to be.
        given: names of the variables that the user set for this worker, with ``env=``.
        workspace_root: where sessions are.
        is_our_python: whether the worker's interpreter is this one, and can use what this one has installed.
    """
    made = {name: value for name, value in environ.items() if name not in _NOT_FOR_DEFAULT}
    for name in _HOMES:
        if name not in given and not (is_our_python and _runs_by(name)):
            made.pop(name, None)
    if is_our_python:
        made[PACKAGES_VARIABLE] = os.pathsep.join(_places_of_packages())
    if not os.path.isfile(_DEFAULT_SCRIPT):
        made["PYTHONPATH"] = os.path.dirname(_PACKAGE_DIR)
    return made | _common(workspace_root)


def _runs_by(name: str) -> bool:
    """Whether this process's own interpreter has its standard library where the variable says."""
    value = os.environ.get(name, "")
    if name == "PYTHONPLATLIBDIR":
        return value == sys.platlibdir
    if not value:
        return False
    try:
        home = os.path.realpath(value.partition(os.pathsep)[0])
        return home in (os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix))
    except FileNotFoundError:  # a relative path, and the current directory has been removed
        return False


def _environment_of_script(environ: Mapping[str, str], workspace_root: str) -> dict[str, str]:
    paths = [_COMPAT_DIR]
    if not _is_installed():
        paths.append(os.path.dirname(_PACKAGE_DIR))
    if environ.get("PYTHONPATH"):  # relative to our directory, whatever the worker's is
        for each in environ["PYTHONPATH"].split(os.pathsep):
            try:
                paths.append(system.absolute(each))
            except FileNotFoundError:  # our directory has been removed: it leads nowhere
                pass
    return {**environ, "PYTHONPATH": os.pathsep.join(paths)} | _common(workspace_root)


def _common(workspace_root: str) -> dict[str, str]:
    return {
        "PYTHONUNBUFFERED": "1",  # else the last output of a killed worker stays in its buffers
        "PYTHONFAULTHANDLER": "1",  # a crash in native code leaves its stack in the log
        WORKSPACE_VARIABLE: workspace_root,
    }


@functools.cache
def _places_of_packages() -> list[str]:
    """Where this process finds the packages that the default worker needs. The worker searches these places last."""
    places: list[str] = []
    for name in _NEEDED_PACKAGES:
        module = sys.modules.get(name)
        # None in sys.modules hides a package: find_spec() then says that there is none.
        spec = importlib.util.find_spec(name) if module is None else getattr(module, "__spec__", None)
        if spec is None or not spec.origin:
            continue
        place = os.path.dirname(system.absolute(spec.origin))
        if spec.submodule_search_locations is not None:  # a package, not a module
            place = os.path.dirname(place)
        if place not in places:
            places.append(place)
    return places


def _is_installed() -> bool:
    """Whether any interpreter of this environment finds the package by itself."""
    places = [sysconfig.get_path("purelib"), *site.getsitepackages(), site.getusersitepackages()]
    return os.path.dirname(_PACKAGE_DIR) in places
