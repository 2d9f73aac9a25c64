"""A worker has the signals of a fresh process, whatever its controller blocks or ignores."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support import FOREVER_MS, TOOLS, environment, has_ended, json_line, script, wait_until, worker_of

from tr_mmap import PythonSession, WorkerDied, sweep
from tr_mmap.processes.lifeline import GRACE_S

# At the first line, so before the server runs.
WORKER = """
import ctypes, json, os, signal, time
at_start = {
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "ignored": sorted(n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN),
}
from tr_mmap import Server
server = Server()

@server.command("at_start")
def show():
    return json.dumps(at_start)

@server.command("pid")
def pid():
    return str(os.getpid())

@server.command("child")
def child():
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

server.run()
"""


@contextmanager
def blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def ignored(*numbers: int) -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignored_in_c() -> Iterator[None]:
    """So that Python does not know it."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    before = libc.signal(signal.SIGUSR2, 1)
    try:
        yield
    finally:
        libc.signal(signal.SIGUSR2, before)


WAYS = {
    "all blocked": blocked,
    "SIGALRM ignored": lambda: ignored(signal.SIGALRM),
    "SIGCHLD ignored": lambda: ignored(signal.SIGCHLD),
    **{
        f"{number.name} ignored": partial(ignored, number)
        for number in (signal.SIGQUIT, signal.SIGUSR1, signal.SIGTSTP, signal.SIGTTOU, signal.SIGWINCH, signal.SIGINT)
    },
    "SIGHUP and SIGUSR2 ignored": lambda: ignored(signal.SIGHUP, signal.SIGUSR2),
    "SIGUSR2 ignored by code in C": ignored_in_c,
    "SIGTERM and more ignored": lambda: ignored(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGQUIT),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_does_not_inherit_blocked_and_ignored_signals(tmp_path: Path, way: str) -> None:
    session = PythonSession(script(tmp_path, WORKER), quiet_mode=True)
    with WAYS[way]():
        session.start()
    found = json.loads(session.fetch_response("at_start"))
    assert found["blocked"] == []
    # Python ignores these two. SIGHUP stays ignored, because nohup(1) means all that a program starts.
    assert set(found["ignored"]) - {signal.SIGHUP} == {signal.SIGPIPE, signal.SIGXFSZ}
    assert (signal.SIGHUP in found["ignored"]) >= ("SIGHUP" in way)
    assert session.fetch_response("child") == "7"
    assert session.please_exit()


def test_sigterm_ends_a_worker_whose_controller_ignores_it(tmp_path: Path) -> None:
    with ignored(signal.SIGTERM, signal.SIGINT), PythonSession(script(tmp_path, WORKER), quiet_mode=True) as session:
        pid = worker_of(session)
        session._worker_or_none().process.terminate_tree(grace_s=30.0)  # type: ignore[union-attr]
        assert has_ended(pid)


OWN_WISHES = """
import json, signal
if BEFORE:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from tr_mmap import Server
server = Server()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])

@server.command("wishes")
def wishes():
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return json.dumps([signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN, signal.SIGALRM in blocked])

server.run()
"""


@pytest.mark.each_value
@pytest.mark.parametrize("way", ["none", *WAYS])
@pytest.mark.parametrize("before", [True, False])
def test_what_a_workers_script_ignores_or_blocks_itself_stays(tmp_path: Path, way: str, before: bool) -> None:
    session = PythonSession(script(tmp_path, OWN_WISHES.replace("BEFORE", str(before))), quiet_mode=True)
    with WAYS.get(way, ignored)():
        session.start()
    assert json.loads(session.fetch_response("wishes", FOREVER_MS)) == [True, True]
    assert session.please_exit()


def test_what_another_program_hands_down_is_undone_once_and_the_scripts_own_wish_stays() -> None:
    code = """
import signal
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
import tr_mmap.worker.stop_signals as handed_down
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def state():
    ignored = [n for n in (signal.SIGALRM, signal.SIGCHLD) if signal.getsignal(n) == signal.SIG_IGN]
    return ignored, signal.pthread_sigmask(signal.SIG_BLOCK, ())
handed_down.restore_signals()
assert state() == ([signal.SIGCHLD], set()), state()
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
handed_down.restore_signals()
assert state() == ([signal.SIGALRM, signal.SIGCHLD], {signal.SIGTERM}), state()
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=60)


HOLDER = """
import ctypes
import tr_mmap.processes.lifeline
tr_mmap.processes.lifeline.GRACE_S = {grace}
from tr_mmap import Server
server = Server()

@server.command("hold")
def hold():
    libc = ctypes.PyDLL(None)  # keeps the interpreter's lock
    while True:
        libc.pause()

server.run()
"""

CONTROLLER = """
import json, signal, sys
from tr_mmap import PythonSession
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
signal.signal(signal.SIGALRM, signal.SIG_IGN)
session = PythonSession(sys.argv[1], quiet_mode=True)
session.start()
session.wait_until_ready()
session.send_request("hold")
print(json.dumps({"worker": session._worker_or_none().process.pid}), flush=True)
signal.sigwait([signal.SIGUSR1])
"""


@pytest.mark.long
def test_the_lifeline_ends_a_worker_in_native_code_whose_controller_blocked_all_signals(
    is_full: bool, tmp_path: Path
) -> None:
    grace_s = GRACE_S if is_full else 1
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, script(tmp_path, HOLDER.format(grace=grace_s))],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        worker = json_line(process, "the controller")["worker"]
        process.kill()
        process.communicate()
    assert has_ended(worker, within_s=grace_s + 30.0)
    sweep()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_the_programs_own_handler_reaps_has_no_known_status(workspace: Path, number: int) -> None:
    reaped: list[int] = []

    def reap_all(*_: object) -> None:
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) > 0:
                reaped.append(pid)
        except ChildProcessError:
            pass

    session = PythonSession(TOOLS, "reaped", quiet_mode=True)
    before = signal.signal(signal.SIGCHLD, reap_all)
    try:
        session.start()
        assert session.wait_until_ready(FOREVER_MS)
        pid = session.pid
        assert pid is not None
        os.kill(pid, number)
        wait_until(lambda: pid in reaped)
        with pytest.raises(WorkerDied, match="status unknown") as caught:
            session.fetch_response("hello you", FOREVER_MS)
        assert caught.value.exit_code is None
        assert not session.is_alive()
        session.start()
        assert session.wait_until_ready(FOREVER_MS)
    finally:
        session.close()
        signal.signal(signal.SIGCHLD, before)
