"""Processes that got a dead one's number, and sweepers of every kind: no living one is touched, no dead one kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import posix_ipc
import pytest
from support import ROOT, TOOLS, has_ended, semaphores, semaphores_of

from tr_mmap import PythonSession, SessionInUse, sweep
from tr_mmap.processes.identity import Identity
from tr_mmap.processes.spawn import WorkerProcess
from tr_mmap.processes.watch import PeerWatch
from tr_mmap.sessions import manifest as manifests
from tr_mmap.sessions import workspace as workspaces
from tr_mmap.sessions.manifest import Manifest
from tr_mmap.sessions.workspace import Workspace

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


class Stranger:
    """A process that got the number of one that has ended, and leads a session of that number too."""

    def __init__(self, earlier: Identity) -> None:
        pid = earlier.pid
        self.pid = 0
        for _ in range(500):
            try:
                LAST_PID.write_text(str(pid - 1))
            except OSError as error:
                pytest.skip(f"NOT TESTED: forced reuse of a pid ({LAST_PID}: {error.strerror})")
            child = os.fork()
            if child == 0:
                os.setsid()
                signal.pause()
                os._exit(0)
            if child == pid and Identity.of(child) != earlier:  # numbers do not come back within a clock tick
                self.pid = child
                return
            os.kill(child, signal.SIGKILL)  # somebody else was faster
            os.waitpid(child, 0)
        pytest.skip("NOT TESTED: forced reuse of a pid (the machine is too busy)")

    def is_unharmed(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def dead_worker(directory: Path) -> WorkerProcess:
    worker = WorkerProcess.spawn(["sleep", "1000"], env=dict(os.environ), log_path=str(directory / "log"))
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait(10)
    return worker


@pytest.fixture
def reused(tmp_path: Path) -> Iterator[tuple[WorkerProcess, Stranger]]:
    """A dead worker, and a stranger who has its number."""
    worker = dead_worker(tmp_path)
    stranger = Stranger(worker.identity)
    try:
        yield worker, stranger
        assert stranger.is_unharmed()
    finally:
        stranger.end()


def test_a_stranger_with_a_dead_workers_number_is_not_taken_for_it(reused: tuple[WorkerProcess, Stranger]) -> None:
    worker, stranger = reused
    found = Identity.of(stranger.pid)
    assert found is not None
    assert found.is_alive()
    assert worker.identity.pid == found.pid
    assert not worker.identity.is_alive()
    assert not worker.is_alive()
    assert worker.wait(0)
    told = threading.Event()
    watch = PeerWatch(worker.identity, told.set)
    assert told.wait(10)
    watch.stop()


def test_a_stranger_with_a_dead_workers_number_is_not_ended_with_its_tree(
    reused: tuple[WorkerProcess, Stranger],
) -> None:
    worker, _ = reused
    worker.terminate_tree(grace_s=0)


def test_a_stranger_with_a_dead_owners_number_keeps_no_session_alive(
    reused: tuple[WorkerProcess, Stranger], workspace: Path
) -> None:
    worker, _ = reused
    place = Workspace(str(workspace))
    for session_id, one in (("as_controller", worker.identity), ("as_both", worker.identity)):
        path = place.claim(session_id, Manifest(session_id=session_id, controller=Identity.current()))
        other = one if session_id == "as_both" else None
        manifests.write(path, Manifest(session_id=session_id, controller=one, worker=other))
    assert place.sweep().removed == ["as_both", "as_controller"]


def test_a_session_starts_where_a_strangers_number_is_that_of_the_dead_owner(
    reused: tuple[WorkerProcess, Stranger], workspace: Path
) -> None:
    worker, _ = reused
    place = Workspace(str(workspace))
    path = place.claim("default", Manifest(session_id="default", controller=Identity.current()))
    manifests.write(path, Manifest(session_id="default", controller=worker.identity, worker=worker.identity))
    with PythonSession(TOOLS, quiet_mode=True) as session:
        assert session.fetch_response("hello you") == "Hello You"


def test_a_session_whose_workers_number_has_passed_on_ends_and_starts_without_touching_its_new_owner() -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        session.send_tensor(np.arange(5), "a")
        worker = Identity.of(int(session.fetch_response("pid")))
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
        assert session.join(10_000)  # and reaps it
        stranger = Stranger(worker)
        try:
            assert not session.is_alive()
            session.terminate()
            assert stranger.is_unharmed()
            session.start()
            assert session.wait_until_ready()
            assert session.fetch_tensor("echo a").tolist() == [0, 1, 2, 3, 4]
            session.terminate()
            assert stranger.is_unharmed()
        finally:
            stranger.end()


# -- sweepers --------------------------------------------------------------------------------------------------------

SWEEPER = """
import sys
from tr_mmap import sweep
print("up", flush=True)
import select
while not select.select([sys.stdin], [], [], 0)[0]:
    sweep()
"""

STARTER = """
import os, sys
import numpy as np
from tr_mmap import PythonSession
tools, python, own, rounds = sys.argv[1:]
sys.executable = python  # a worker that is up in a millisecond and does nothing
print("up", flush=True)
sys.stdin.readline()
for number in range(int(rounds)):
    session_id = own if number % 2 else "shared"
    session = PythonSession(tools, session_id, quiet_mode=True)
    try:
        session.start()
    except FileExistsError:  # SessionInUse: another has the shared name
        continue
    for tag in "abc":
        session.send_tensor(np.arange(10), tag)
    assert session.is_alive()
    names = os.listdir(session.session_dir())
    assert {"session.json", "a.tsr", "b.tsr", "c.tsr", "request.json"} <= set(names), names
    if number % 5 == 4:
        heir = os.fork()
        if not heir:
            PythonSession(tools, f"{own}_{number}", quiet_mode=True).start()
            os.kill(os.getpid(), 9)  # leaves all of it, and a worker that must follow
        os.waitpid(heir, 0)
    session.close()
    assert session_id == "shared" or not os.path.exists(session.session_dir())
print("done", flush=True)
"""


@pytest.mark.long
@pytest.mark.timeout(0)
def test_sweepers_race_with_each_other_and_with_starting_sessions_and_harm_nobody(
    workspace: Path, tmp_path: Path, is_full: bool, figures: Callable[[str], None]
) -> None:
    rounds = "400" if is_full else "10"
    cheap = tmp_path / "python"
    # Ends with its parent, as a worker does.
    cheap.write_text('#!/bin/sh\nwhile kill -0 "$PPID" 2>/dev/null; do sleep 0.05; done\n')
    cheap.chmod(0o700)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    starter = [STARTER, str(TOOLS), str(cheap)]
    programs = [[SWEEPER], [SWEEPER], [*starter, "one", rounds], [*starter, "two", rounds], [*starter, "three", rounds]]
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", *argv],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for argv in programs
        ]
        sweepers, starters = running[:2], running[2:]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
        for process in starters:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in starters:
            output, errors = process.communicate()
            assert (process.returncode, output, errors) == (0, "done\n", "")
        for process in sweepers:
            _, errors = process.communicate("end\n")
            assert (process.returncode, errors) == (0, "")
    for path in workspace.rglob("session.json"):  # of heirs whose workers have not noticed yet
        manifest = manifests.read(str(path.parent))
        assert manifest is not None
        assert manifest.worker is None or has_ended(manifest.worker.pid)
    sweep()
    assert list(workspace.rglob("*")) == []
    assert semaphores_of({process.pid for process in running}) == []
    figures(f"3 starters of {rounds} sessions each, and 2 sweepers without pause: nobody harmed, nothing left")


def test_a_session_that_starts_removes_what_the_dead_left(workspace: Path, tmp_path: Path) -> None:
    worker = dead_worker(tmp_path)
    place = Workspace(str(workspace))
    name = f"/tr_{os.getpid()}_left_behind"
    posix_ipc.Semaphore(name, posix_ipc.O_CREX).close()
    path = place.claim("dead", Manifest(session_id="dead", controller=Identity.current()))
    manifests.write(path, Manifest(session_id="dead", controller=worker.identity, doorbells=[name]))
    living = place.claim("living", Manifest(session_id="living", controller=Identity.current()))
    odd = workspace / "python_session" / "tr_session_odd"
    odd.mkdir()
    with PythonSession(TOOLS, "new", quiet_mode=True) as session:
        assert not os.path.exists(path)
        assert name.removeprefix("/") not in "".join(semaphores())
        assert os.path.exists(living)
        assert odd.exists()
        with pytest.raises(SessionInUse):
            place.claim("new", Manifest(session_id="new", controller=Identity.current()))
        assert session.fetch_response("hello you") == "Hello You"
    odd.rmdir()
    assert place.release("living")


HOGGED = """
import os, sys
from tr_mmap import PythonSession
session = PythonSession(sys.argv[1], quiet_mode=True)
session.start()
pid = session.fetch_response("pid")
session.send_request("hog")
while not session._dispatcher.resources.worker.channel.is_taken_up():
    pass
print(pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("way", ["sweep", "start"])
def test_a_worker_that_cannot_follow_its_dead_controller_is_ended(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Its handler is in native code that holds the interpreter's lock, so no thread of its own can end it."""
    monkeypatch.setattr(workspaces, "CLAIM_WAIT_S", 0.1)
    monkeypatch.setattr(workspaces, "ORPHAN_WAIT_S", 0.2)
    with subprocess.Popen(
        [sys.executable, "-c", HOGGED, str(TOOLS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as controller:
        assert controller.stdout is not None
        worker = int(controller.stdout.readline())
        assert sweep().removed == []
        controller.kill()
    if way == "sweep":
        assert sweep().removed == ["default"]
    else:
        with PythonSession(TOOLS, quiet_mode=True) as session:
            assert session.fetch_response("hello you") == "Hello You"
    assert has_ended(worker)


def test_a_process_that_does_not_bear_the_workers_mark_is_never_ended_for_one(workspace: Path, tmp_path: Path) -> None:
    worker = dead_worker(tmp_path)
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        identity = Identity.of(bystander.pid)
        place = Workspace(str(workspace))
        path = place.claim("dead", Manifest(session_id="dead", controller=Identity.current()))
        for mark in ("", "a-mark"):
            manifests.write(
                path, Manifest(session_id="dead", controller=worker.identity, worker=identity, worker_mark=mark)
            )
            assert "is alive" in sweep().kept["dead"]
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert sweep().removed == ["dead"]


def test_a_workspace_that_cannot_be_swept_is_no_reason_not_to_start(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Workspace, *, at_most: int) -> None:
        raise PermissionError("injected")

    monkeypatch.setattr(Workspace, "sweep", fail)
    with PythonSession(TOOLS, quiet_mode=True) as session:
        assert session.fetch_response("hello you") == "Hello You"
