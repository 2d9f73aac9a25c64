"""A handler that has a session of its own: whoever is killed above it, nothing of that session is left either."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import support
from support import TOOLS, Gate, environment, leftovers, processes_of, script, wait_until

from tr_mmap import PythonSession

NESTING_WORKER = """
import ctypes, os, time
from tr_mmap import PythonSession, Server

server = Server(framework="numpy")

def _pause(how):
    if how == "native":
        libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)  # no handler of a signal runs meanwhile
    time.sleep(600)

@server.command("nest")
def nest(channel: str, tools: str, gate: str, how: str, place: str, depth: int):
    if place != "-":
        os.environ["TR_WORKSPACE"] = place
    with PythonSession(__file__ if depth else tools, f"inner{depth}", channel=channel, quiet_mode=True) as session:
        if depth:
            session.send_request(f"nest {channel} {tools} {gate} {how} {place} {depth - 1}")
        else:
            session.fetch_response("pid")
            open(gate, "w").close()
        _pause("sleep" if depth else how)

server.run()
"""

OUTER = """
import sys
from tr_mmap import PythonSession
with PythonSession(sys.argv[1], "outer", channel=sys.argv[2], quiet_mode=True) as session:
    session.send_request(sys.argv[3])
    session.wait_for_response(600_000)
"""
CHANNELS = pytest.mark.parametrize("channel", ["mapped", "files"])


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the workers' logs are."""
    place = tmp_path / "logs"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    yield place
    assert not list(place.iterdir())


@contextmanager
def outer(worker: str, channel: str, message: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", OUTER, worker, channel, message], env=environment()) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.each_value
@CHANNELS
@pytest.mark.parametrize("depth", [0, 1])
def test_nothing_is_left_of_the_session_of_a_busy_handler_whose_controller_was_killed(
    workspace: Path, tmp_path: Path, channel: str, depth: int
) -> None:
    inner = Gate(tmp_path)
    message = f"nest {channel} {TOOLS} {inner.path} sleep - {depth}"
    with outer(script(tmp_path, NESTING_WORKER), channel, message) as running:
        _wait_at(inner)
        support._started.update(process.pid for process in processes_of(workspace))
        running.kill()
        wait_until(lambda: not processes_of(workspace))
    assert not leftovers(workspace)


def test_nothing_is_left_of_the_session_of_a_busy_handler_that_has_it_elsewhere(
    workspace: Path, tmp_path: Path
) -> None:
    inner, place = Gate(tmp_path), tmp_path / "place"
    place.mkdir()
    message = f"nest mapped {TOOLS} {inner.path} sleep {place} 0"
    with outer(script(tmp_path, NESTING_WORKER), "mapped", message) as running:
        _wait_at(inner)
        assert list(place.iterdir())
        running.kill()
        wait_until(lambda: not processes_of(workspace))
    assert not list(place.iterdir())


@CHANNELS
def test_nothing_is_left_of_the_session_of_a_handler_that_had_to_be_killed(
    workspace: Path, tmp_path: Path, channel: str
) -> None:
    inner = Gate(tmp_path)
    with PythonSession(script(tmp_path, NESTING_WORKER), "outer", channel=channel, quiet_mode=True) as session:
        session.send_request(f"nest {channel} {TOOLS} {inner.path} native - 0")
        _wait_at(inner)
        support._started.update(process.pid for process in processes_of(workspace))
    wait_until(lambda: not processes_of(workspace))
    assert not leftovers(workspace)


def _wait_at(gate: Gate) -> None:
    """Wait until the handler has opened the gate, which it does for writing."""
    with open(gate.path, "rb") as reading:
        assert not reading.read()
