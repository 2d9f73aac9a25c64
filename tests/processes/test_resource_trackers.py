"""What multiprocessing would remove at a worker's end is removed, however the worker and its controller end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import environment, has_ended, script, wait_until

from tr_mmap import PythonSession, sweep
from tr_mmap.processes.ending import is_tracker, kill_all
from tr_mmap.processes.identity import Identity, all_stats

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at semaphores in /dev/shm")

# The child ignores SIGTERM, so all of the tree but the tracker has to be killed.
WORKER = """
import json, multiprocessing, os, signal, sys, time
kept = []

def hold(path: str):
    kept.append(multiprocessing.get_context("spawn").Lock())
    ready, child_is_ready = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(child_is_ready, b".")
        while True:
            time.sleep(60)
    os.read(ready, 1)
    with open(path + ".new", "w") as file:
        semaphore = "sem." + kept[0]._semlock.name.lstrip("/")
        json.dump({"worker": os.getpid(), "child": child, "semaphore": semaphore}, file)
    os.rename(path + ".new", path)
    while True:
        time.sleep(60)

if len(sys.argv) < 3:
    from tr_mmap import Server
    server = Server(framework="numpy")
    server.command("hold")(hold)
    server.run()
else:
    hold(sys.argv[2])  # knows neither us nor controllers
"""
CONTROLLER = """
import sys, time
from tr_mmap import PythonSession
script, channel, path = sys.argv[1:]
is_legacy = channel == "legacy"
session = PythonSession(script, "one", True, channel=channel, args=[path] if is_legacy else [])
session.start()
if not is_legacy:
    session.wait_until_ready(60_000)
    session.send_request("hold " + path)
time.sleep(600)
"""


def held(path: Path) -> dict[str, Any]:
    """What the worker says once it holds a semaphore."""
    wait_until(path.exists)
    said: dict[str, Any] = json.loads(path.read_text())
    assert is_there(said["semaphore"])
    return said


def is_there(semaphore: str) -> bool:
    return os.path.exists(f"/dev/shm/{semaphore}")


@contextmanager
def controller_of(worker: str, channel: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", CONTROLLER, worker, channel, str(path)], env=environment())
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("channel", ["mapped", "files", "legacy"])
def test_the_semaphores_of_a_killed_controllers_worker_are_removed(
    workspace: Path, tmp_path: Path, channel: str
) -> None:
    with controller_of(script(tmp_path, WORKER), channel, tmp_path / "held") as process:
        said = held(tmp_path / "held")
        process.kill()
        process.wait()
        assert has_ended(said["worker"])
        assert has_ended(said["child"])
        wait_until(lambda: not is_there(said["semaphore"]))


def test_a_sweep_that_ends_the_heirs_of_a_killed_worker_leaves_none_of_its_semaphores(
    workspace: Path, tmp_path: Path
) -> None:
    with controller_of(script(tmp_path, WORKER), "mapped", tmp_path / "held") as process:
        said = held(tmp_path / "held")
        os.kill(said["worker"], signal.SIGSTOP)  # so that it cannot clean up between the two kills
        process.kill()
        process.wait()
        os.kill(said["worker"], signal.SIGKILL)
        assert has_ended(said["worker"])
        assert is_there(said["semaphore"])
        assert sweep().removed == ["one"]
        assert has_ended(said["child"])
        assert not is_there(said["semaphore"])


def test_a_terminated_worker_leaves_none_of_its_semaphores(workspace: Path, tmp_path: Path) -> None:
    with PythonSession(script(tmp_path, WORKER), quiet_mode=True) as session:
        session.send_request(f"hold {tmp_path / 'held'}")
        said = held(tmp_path / "held")
        session.terminate()
        assert has_ended(said["child"])
        assert not is_there(said["semaphore"])


def test_a_tracker_that_does_not_end_is_killed_in_the_end() -> None:
    code = "import time; resource_tracker = time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL)
    try:
        identity = Identity.of(process.pid)
        assert identity is not None
        wait_until(lambda: is_tracker(identity))

        def rest() -> list[Identity]:
            seen = all_stats().get(process.pid)
            return [] if seen is None or seen.is_ended else [identity]

        kill_all(rest, time.monotonic() + 30)
        assert process.wait(30) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
