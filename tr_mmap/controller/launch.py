"""Starts a session's worker: which program, by which interpreter, with which environment. Waits for nothing."""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import re
import site
import sys
import sysconfig
from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..base import system
from ..errors import ScriptNotFound, SystemLimit
from ..processes import life_lock
from ..processes.child_signals import with_usual_signals
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

if TYPE_CHECKING:
    from ..processes.spare import Recipe, Spare

__all__ = ["advice_on", "check_script", "launch", "recipe_of"]

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


class _Program(NamedTuple):
    """What a worker is made of, but for what each start has of its own."""

    interpreter: str
    flags_and_script: list[str]
    env: dict[str, str]


def _program_of(
    script_path: str,
    workspace_root: str,
    *,
    env: Mapping[str, str | None] | None = None,
    cwd: str | None = None,
    python: str | None = None,
) -> _Program:
    """The program of a worker; the arguments and the errors are those of :func:`launch`."""
    check_script(script_path)
    environ = _merged(os.environ, env)
    interpreter = find_python(python, environ)
    if cwd is not None and not os.path.isdir(cwd):
        raise ScriptNotFound(
            f"the worker's current directory {cwd!r} is no directory; make it, or give another", path=cwd
        )
    if script_path == DEFAULT_WORKER:
        given = frozenset(env or ())
        made = _environment_of_default(environ, given, workspace_root, is_our_python=interpreter == sys.executable)
    else:
        made = _environment_of_script(environ, workspace_root)
    return _Program(interpreter, _flags_and_script(script_path), made)


def recipe_of(script_path: str, workspace_root: str, framework: str, cwd: str | None, **options: Any) -> Recipe:
    """What a spare has to be made of so that it can become the worker that :func:`launch` would start now.

    Args:
        script_path: as in :func:`launch`.
        workspace_root: too.
        framework: of the session; the spare imports torch for one with ``"torch"``.
        cwd: as in :func:`launch`.
        **options: ``env`` and ``python``, as in :func:`launch`.

    Raises:
        ScriptNotFound: as :func:`launch`.
        OSError: a system call failed.
    """
    from ..processes.spare import Recipe  # only for sessions with spares: it takes a tenth of our own import
    from ..processes.surroundings import surroundings

    program = _program_of(script_path, workspace_root, cwd=cwd, **options)
    is_default = script_path == DEFAULT_WORKER
    modules = ["tr_mmap.worker.spare_imports"]
    if is_default:
        modules.append("tr_mmap.worker.default")
    elif framework == "torch":
        modules.append("torch")
    return Recipe(
        program=(program.interpreter, *program.flags_and_script),
        env=program.env,
        cwd=cwd,
        modules=tuple(modules),
        package_finder=_DEFAULT_SCRIPT if is_default and os.path.isfile(_DEFAULT_SCRIPT) else "",
        surroundings=surroundings(cwd),
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
    log_path: str = "",
    args: Sequence[str] = (),
    env: Mapping[str, str | None] | None = None,
    cwd: str | None = None,
    python: str | None = None,
    spare: Spare | None = None,
) -> WorkerProcess:
    """Start the worker of a session whose control files are there, and hand it the session's secret if there is one.

    Args:
        script_path: of the worker's script, or ``"default"``.
        session_id: the session's name.
        workspace_root: where the worker looks for the session.
        session_dir: the session directory, for the worker's log.
        mark: the worker's mark; that of the spare, if there is one.
        quiet: False also copies the worker's output to this process's stderr.
        secret: of a session with ``auth``; else None.
        log_path: where the worker's log goes, outside the session directory, which then has a symlink to it; "" for
            a log in the session directory.
        args: the script's arguments after the session's name; they and ``env`` were checked as options.
        env: variables to add to what the worker inherits of this process's environment; None as a value removes one.
            What we set ourselves stays.
        cwd: the worker's current directory; None for this process's.
        python: the interpreter, see :func:`find_python`.
        spare: becomes the worker, if it has not died meanwhile.

    Raises:
        ScriptNotFound: there is no such script or interpreter; or the directory has been removed.
        SystemLimit: ``args`` and ``env`` are longer than the system allows, or there are too many open files.
        OSError: a system call failed; no worker is left.
    """
    program = _program_of(script_path, workspace_root, env=env, cwd=cwd, python=python)
    words = [session_id, *args]
    link = os.path.join(session_dir, LOG_FILE)
    lock_path = os.path.join(session_dir, WORKER_LOCK_FILE)
    log: dict[str, Any] = {"log_path": log_path or link, "log_link": link if log_path else "", "quiet": quiet}
    if spare is not None and (worker := _made_of(spare, words, secret, lock_path, log)) is not None:
        return worker
    lifeline = Lifeline()
    worker = None
    try:
        with (
            handed_over(secret) as (variables, fds),
            lifeline.handed_over() as (more_variables, more_fds),
            life_lock.handed_over(lock_path) as (lock_variables, lock_fds),
        ):
            worker = _spawn(
                program.interpreter,
                with_usual_signals([program.interpreter, *program.flags_and_script, *words]),
                env=program.env | variables | more_variables | lock_variables,
                cwd=cwd,
                pass_fds=fds + more_fds + lock_fds,
                mark=mark,
                **log,
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


def _made_of(
    spare: Spare, words: Sequence[str], secret: bytes | None, lock_path: str, log: Mapping[str, Any]
) -> WorkerProcess | None:
    """The worker that a spare becomes; None if it has died."""
    worker: WorkerProcess | None = None
    try:
        with (
            handed_over(secret) as (variables, _),
            life_lock.handed_over(lock_path) as (lock_variables, _),
        ):
            handed = {name: int(fd) for name, fd in (variables | lock_variables).items()}
            become = partial(spare.become, words, handed=handed)
            worker = WorkerProcess.logged(become, spare.recipe.program[0], mark=spare.mark, **log)
            worker.on_end = spare.lifeline.cut
    except BaseException as error:
        if worker is not None:
            worker.terminate_tree(0)
        spare.end()
        if worker is None and isinstance(error, ConnectionError | TimeoutError):
            return None
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


def _flags_and_script(script_path: str) -> list[str]:
    """The interpreter's arguments that run a script. The current directory never decides which code that is."""
    if script_path != DEFAULT_WORKER:
        return [system.absolute(script_path)]
    if os.path.isfile(_DEFAULT_SCRIPT):
        return ["-P", _DEFAULT_SCRIPT]  # -P: not even the directory of the script is searched for modules
    return ["-P", "-m", "tr_mmap.worker"]  # the package is in a zip file


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
