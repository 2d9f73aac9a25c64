"""A child of a session's worker does not become a second worker of it, whatever it runs; the worker goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import environment, script

from tr_mmap import PythonSession

TEXT = """
import multiprocessing, os, subprocess, sys
from tr_mmap import Server, SessionNotStarted

server = Server()


@server.command("pid")
def pid():
    return str(os.getpid())


@server.command("spawned")
def spawned(method: str):
    child = multiprocessing.get_context(method).Process(target=print, args=("the target ran",))
    child.start()
    child.join(60)
    return str(child.exitcode)


@server.command("run_again")
def run_again():
    return str(subprocess.run([sys.executable, *sys.argv], timeout=60).returncode)


@server.command("forked")
def forked(how: str):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            {"run": server.run, "process_request": server.process_request, "new": Server().run}[how]()
            said = "served"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        return file.read()


@server.command("session")
def session():
    from tr_mmap import PythonSession

    with PythonSession(session_id="inner", quiet_mode=True) as inner:
        return inner.fetch_response("hello inner")


server.run()
"""


@pytest.fixture(params=["mapped", "files", "auth"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PythonSession]:
    options = {"auth": True} if request.param == "auth" else {"channel": request.param}
    with PythonSession(script(tmp_path, TEXT), quiet_mode=True, **options) as made:
        pid = made.fetch_response("pid")
        yield made
        assert {made.fetch_response("pid") for _ in range(3)} == {pid}


def log_of(session: PythonSession) -> str:
    return (Path(session.session_dir()) / "worker.log").read_text()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_spawned_child_that_runs_the_script_again_is_refused(session: PythonSession, method: str) -> None:
    assert session.fetch_response(f"spawned {method}") == "1"
    log = log_of(session)
    assert "SessionNotStarted" in log
    assert "has started this process" in log
    assert 'if __name__ == "__main__":' in log


def test_a_program_that_a_handler_starts_for_the_same_session_is_refused(session: PythonSession) -> None:
    assert session.fetch_response("run_again") == "1"
    assert "has started this process" in log_of(session)


@pytest.mark.parametrize("how", ["run", "process_request"])
def test_a_forked_child_that_serves_on_is_refused(session: PythonSession, how: str) -> None:
    answer = session.fetch_response(f"forked {how}")
    assert answer.startswith("SessionNotStarted: this process was forked by the worker")


def test_a_new_server_in_a_forked_child_is_refused(session: PythonSession) -> None:
    answer = session.fetch_response("forked new")
    assert answer.startswith("SessionNotStarted: ")
    assert "has started this process" in answer


def test_a_worker_may_have_a_session_of_its_own(session: PythonSession) -> None:
    assert session.fetch_response("session") == "Hello Inner"


def test_a_program_started_by_hand_is_no_child_of_the_worker(tmp_path: Path) -> None:
    """It is refused only because the session has a worker, and says nothing of a child."""
    path = script(tmp_path, TEXT)
    with PythonSession(path, quiet_mode=True) as session:
        ran = subprocess.run(
            [sys.executable, path, session.session_dir()], env=environment(), capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 1
        assert "has started this process" not in ran.stderr
        assert session.fetch_response("spawned fork") == "0"


def test_the_next_worker_of_a_session_is_not_refused(tmp_path: Path) -> None:
    with PythonSession(script(tmp_path, TEXT), quiet_mode=True, channel="files") as session:
        first = session.fetch_response("pid")
        session.terminate()
        session.start()
        session.wait_until_ready()
        assert session.fetch_response("pid") != first
