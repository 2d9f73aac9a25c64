"""What outlives a killed controller ends: a worker that no Python can end, and what a worker has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import ROOT, TOOLS, controller, has_ended, leftovers, wait_until

from tr_mmap import PythonSession, sweep
from tr_mmap.processes import lifeline
from tr_mmap.processes.identity import Identity
from tr_mmap.processes.orphans import end_heirs, end_own_children
from tr_mmap.sessions import manifest as manifests
from tr_mmap.sessions.manifest import Manifest
from tr_mmap.sessions.workspace import Workspace
from tr_mmap.wire.names import WORKER_MARK_VARIABLE


def is_alive(pid: int) -> bool:
    """No zombie either."""
    found = Identity.of(pid)
    return found is not None and found.is_alive()


# -- a worker that holds the interpreter's lock ----------------------------------------------------------------------

HOGGING_WORKER = """
import collections, ctypes, itertools, os, sys
import tr_mmap.processes.lifeline
if {grace}:
    tr_mmap.processes.lifeline.GRACE_S = {grace}
from tr_mmap import Server
server = Server(framework="numpy")

@server.command("pid")
def pid() -> str:
    return str(os.getpid())

@server.command("loop")
def loop():
    collections.deque(itertools.repeat(None), maxlen=0)

@server.command("sleep")
def sleep():
    ctypes.PyDLL(None).sem_wait(ctypes.create_string_buffer(64))  # goes on after a signal

server.run()
"""

CONTROLLER = """
import sys
from tr_mmap import PythonSession
session = PythonSession(sys.argv[1], quiet_mode=True)
session.start()
pid = session.fetch_response("pid")
session.send_request(sys.argv[2])
while not session._dispatcher.resources.worker.channel.is_taken_up():
    pass
print(pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.long
@pytest.mark.parametrize("handler", ["loop", "sleep"])
def test_a_worker_that_holds_the_interpreters_lock_is_ended_by_the_kernel(
    is_full: bool, workspace: Path, tmp_path: Path, handler: str
) -> None:
    grace_s = 0 if is_full else 1  # 0 leaves what it is
    script = tmp_path / "worker.py"
    script.write_text(HOGGING_WORKER.format(grace=grace_s))
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(script), handler],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as running:
        assert running.stdout is not None
        worker = int(running.stdout.readline())
        assert is_alive(worker)
        running.kill()
    assert has_ended(worker, 10.0 + (grace_s or lifeline.GRACE_S))
    assert sweep().removed == ["default"]  # that it could not do


def test_every_worker_holds_a_lifeline_that_its_children_do_not() -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        pid = int(session.fetch_response("pid"))
        flags = []
        for each in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the worker has closed it since
                flags.append(int(each.read_text().splitlines()[1].split()[1], 8))
        assert len([each for each in flags if each & os.O_ASYNC and each & os.O_CLOEXEC]) == 1
        caught = next(
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")
        )
        assert int(caught.split()[1], 16) >> (lifeline.GRACE_S - 1) & 1
        assert lifeline.LIFELINE_FD_VARIABLE.encode() not in b"".join(
            Path(f"/proc/{child}/environ").read_bytes() for child in [int(session.fetch_response("child"))]
        )
        assert session.please_exit()


def test_a_lifeline_that_is_none_is_not_held(tmp_path: Path) -> None:
    before = signal.getsignal(signal.Signals(lifeline.GRACE_S))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for number in ("", "x", "99999", "-1", str(fd)):
            environ = {lifeline.LIFELINE_FD_VARIABLE: number}
            assert not lifeline.hold(environ)
            assert environ == {}
    finally:
        os.close(fd)
    assert signal.getsignal(signal.Signals(lifeline.GRACE_S)) == before


def test_a_lifeline_that_was_cut_before_it_was_held_counts() -> None:
    code = """
import os, time
from tr_mmap.processes import lifeline
lifeline.GRACE_S = 1
reading, writing = os.pipe()
os.close(writing)
assert lifeline.hold({lifeline.LIFELINE_FD_VARIABLE: str(reading)})
time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGALRM


# -- what a worker started -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_worker_killed_too", [False, True], ids=["controller", "both"])
def test_what_a_worker_started_ends_when_its_controller_is_killed(workspace: Path, is_worker_killed_too: bool) -> None:
    with controller("child") as running:
        said = running.line()
        if is_worker_killed_too:
            os.kill(said["worker"], signal.SIGSTOP)  # so that it cannot clean up between the two kills
        running.end(signal.SIGKILL)
        if is_worker_killed_too:
            os.kill(said["worker"], signal.SIGKILL)
    assert has_ended(said["worker"])
    if is_worker_killed_too:
        assert sweep().removed == ["default"]
    assert has_ended(said["child"])
    assert not leftovers(workspace)


def test_a_start_over_the_dead_ends_what_their_worker_left(workspace: Path) -> None:
    with controller("child") as running:
        said = running.line()
        os.kill(said["worker"], signal.SIGSTOP)
        running.end(signal.SIGKILL)
        os.kill(said["worker"], signal.SIGKILL)
    with PythonSession(TOOLS, quiet_mode=True) as session:
        assert has_ended(said["child"])
        assert session.fetch_response("hello you") == "Hello You"


@pytest.fixture
def family() -> Iterator[tuple[Identity, list[int]]]:
    """A dead leader of a session, and three of its session: with its mark, with another, with none."""
    code = (
        "import os, subprocess, sys\n"
        "marks = [{'TR_MMAP_WORKER': 'mine'}, {'TR_MMAP_WORKER': 'mine-not'}, {}]\n"
        "for mark in marks:\n"
        "    env = {'PATH': os.environ['PATH'], **mark}\n"
        "    child = subprocess.Popen(['sleep', '1000'], env=env, stdout=subprocess.DEVNULL)\n"
        "    print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None
    pids = [int(leader.stdout.readline()) for _ in range(3)]
    identity = Identity.of(leader.pid)
    assert identity is not None
    leader.kill()
    leader.communicate()
    try:
        yield identity, pids
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def test_only_what_bears_the_mark_is_ended_for_a_dead_workers(family: tuple[Identity, list[int]]) -> None:
    leader, (marked, other, bare) = family
    end_heirs(leader, "")
    assert is_alive(marked)
    end_heirs(leader, "mine")
    assert has_ended(marked)
    assert is_alive(other)
    assert is_alive(bare)


def test_a_living_workers_children_are_its_own_business(workspace: Path) -> None:
    """A sweep judges first; and even when asked, nothing of a living worker's is ended."""
    with PythonSession(TOOLS, quiet_mode=True) as session:
        child = int(session.fetch_response("child"))
        manifest = manifests.read(session.session_dir())
        assert manifest is not None
        assert manifest.worker is not None
        end_heirs(manifest.worker, manifest.worker_mark)
        assert sweep().removed == []
        assert is_alive(child)
    assert has_ended(child)


def test_a_program_that_is_no_controllers_worker_keeps_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    try:
        for mark in ("", "a-mark"):
            end_own_children(mark)
        monkeypatch.setenv(WORKER_MARK_VARIABLE, "a-mark")
        monkeypatch.setattr(os, "getsid", lambda _pid: 1)
        end_own_children("a-mark")
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_session_of_a_strangers_number_loses_nobody(workspace: Path) -> None:
    """The manifest of a dead session names a leader whose number is another's by now."""
    stranger = subprocess.Popen(["sh", "-c", "sleep 1000 & wait"], start_new_session=True)
    wait_until(psutil.Process(stranger.pid).children)
    (child,) = psutil.Process(stranger.pid).children()
    try:
        place = Workspace(str(workspace))
        path = place.claim("dead", Manifest(session_id="dead", controller=Identity.current()))
        dead = Identity.local(stranger.pid, 1)
        manifests.write(path, Manifest(session_id="dead", controller=dead, worker=dead, worker_mark="a-mark"))
        assert sweep().removed == ["dead"]
        assert stranger.poll() is None
    finally:
        child.kill()
        assert has_ended(child.pid)
        stranger.wait()
