"""Starts the zygote of a host, and ends it. Does not handle the zygote's children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from ..errors import ScriptNotFound
from ..processes.interpreter import find_python
from ..wire.names import PYTHON_VARIABLE
from .errors import SandboxBroken
from .messages import Ready, decode, receive
from .process import START_S
from .zygote import Settings

__all__ = ["end_zygote", "expect_ready", "find_interpreter", "module_paths", "start_zygote"]

_END_S: Final = 5.0  # enough for a zygote to end its children and itself on a busy machine
# The paths of modules come in the settings' file, not in an environment variable, which the algorithms could read.
_ZYGOTE: Final = (
    "import json, sys\n"
    "paths = json.load(open(int(sys.argv[2]), closefd=False))['module_paths']\n"
    "own, others = [[each for each in part if each not in sys.path] for part in (paths[:1], paths[1:])]\n"
    "sys.path[:] = [*own, *sys.path, *others]\n"  # ours first; not before the rest, where others may write
    "import tr_mmap.sandbox._zygote"
)


def find_interpreter(python: str | None = None) -> str:
    """The path of the Python that runs the zygote.

    Args:
        python: its path or name; None for that of ``TR_PYTHON``, else this program's.

    Raises:
        SandboxBroken: there is no such interpreter.
    """
    try:
        way = f"give python='/path/to/python', or set {PYTHON_VARIABLE}"
        return find_python(python, what="the sandbox", way=way)
    except ScriptNotFound as error:
        raise SandboxBroken(str(error)) from None


def module_paths(python: str) -> list[str]:
    """The paths where the zygote finds this package, and all modules that the host finds; none for another Python."""
    own = str(Path(__file__).parents[2])
    if os.path.realpath(python) != os.path.realpath(sys.executable or ""):
        return []  # it has its own packages, perhaps for another version
    return [own, *filter(None, sys.path)]


def expect_ready(end: socket.socket) -> Ready:
    """Wait for the zygote's first message.

    Raises:
        SandboxBroken: the zygote has ended, or sends nothing in time.
    """
    try:
        data, _ = receive(end)
    except OSError as error:
        raise SandboxBroken(f"the sandbox's zygote does not start: {error}") from error
    if not data:
        raise SandboxBroken("the sandbox's zygote has ended while it started; see stderr for why")
    return decode(data, Ready)


def start_zygote(python: str, end: socket.socket, settings: Settings, cores: int | None) -> subprocess.Popen[bytes]:
    """Start a zygote, and give it this end of a socket pair and its settings."""
    usable = len(os.sched_getaffinity(0))
    threads = str(min(cores or usable, usable))
    environment = {
        "PATH": os.defpath,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "JOBLIB_MULTIPROCESSING": "0",  # processes and named semaphores are not allowed, so n_jobs=2 must act as 1
        "LANG": "C.UTF-8",
    }
    with (
        socket.socket(fileno=os.dup(end.fileno())) as its_end,
        open(os.memfd_create("tr_mmap-settings"), "wb") as about,
    ):
        about.write(msgspec.json.encode(settings))
        about.flush()
        fds = (its_end.fileno(), about.fileno())
        about.seek(0)
        return subprocess.Popen(
            [python, "-P", "-c", _ZYGOTE, *map(str, fds)],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            start_new_session=True,
            cwd="/",
        )


def end_zygote(zygote: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a zygote whose socket was closed. Idempotent.

    Raises:
        SandboxBroken: the kernel does not end it.
    """
    zygote.send_signal(signal.SIGCONT)  # a stopped zygote could not see that its socket was closed
    try:
        zygote.wait(_END_S)
    except subprocess.TimeoutExpired:
        zygote.kill()
        try:
            zygote.wait(START_S)
        except subprocess.TimeoutExpired:
            raise SandboxBroken(
                f"process {zygote.pid}, the sandbox's zygote, does not end, though it was killed"
            ) from None
