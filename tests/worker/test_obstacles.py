"""What keeps a worker of a channel of files from reading and writing for a while does not end it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import script

from tr_mmap import PythonSession, RemoteError, ResponseTimeout

TEXT = """
import os, resource, signal
from tr_mmap import Server

server = Server()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)


@server.command("pid")
def pid():
    return str(os.getpid())


@server.command("starve")
def starve():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    return "starved"


signal.signal(signal.SIGUSR1, lambda *_: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)))
if __name__ == "__main__":
    server.run()
"""


@pytest.fixture(params=["mapped", "files"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PythonSession]:
    with PythonSession(script(tmp_path, TEXT), quiet_mode=True, channel=request.param) as made:
        pid = made.fetch_response("pid")
        yield made
        assert made.fetch_response("pid") == pid


def feed(session: PythonSession) -> None:
    """Let the worker have descriptors again."""
    worker = session._worker_or_none()
    assert worker is not None
    os.kill(worker.process.pid, signal.SIGUSR1)


def test_a_worker_without_a_descriptor_answers_as_soon_as_it_has_one(session: PythonSession) -> None:
    session.send_request("starve")
    is_waiting = False
    try:
        assert session.wait_for_response(300) == "starved"  # a mapped channel needs no descriptor for it
    except ResponseTimeout:
        is_waiting = True
    feed(session)
    if is_waiting:
        with pytest.raises(RemoteError, match="RLIMIT_NOFILE"):
            session.wait_for_response()


def test_a_worker_without_a_descriptor_ends_with_its_session(tmp_path: Path) -> None:
    with PythonSession(script(tmp_path, TEXT), quiet_mode=True, channel="files") as session:
        session.send_request("starve")
        with pytest.raises(ResponseTimeout):
            session.wait_for_response(300)
        worker = session._worker_or_none()
        assert worker is not None
        session.terminate()
        assert not worker.process.is_alive()


@pytest.mark.parametrize("name", ["status.txt", "request.json"])
def test_a_directory_in_place_of_a_file_stops_the_worker_only_while_it_is_there(
    session: PythonSession, name: str
) -> None:
    path = Path(session.session_dir()) / name
    path.unlink(missing_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        path.unlink()  # a mirror was made again meanwhile
        path.mkdir()
    worker = session._worker_or_none()
    assert worker is not None
    try:
        session.fetch_response("pid", 300)
    except Exception:  # what the controller makes of it is another matter
        pass
    assert worker.process.is_alive()
    path.rmdir()
