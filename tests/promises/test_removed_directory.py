"""Somebody removes the directory of a living session: it gets nothing of the next one, and one clear error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from support import FOREVER_MS, at_rest, script, wait_until

from tr_mmap import PythonSession, RemoteError, SessionNotStarted
from tr_mmap.base import system

CHANNELS = ("mapped", "files", "legacy")


def full(size: int, value: float) -> Any:
    return np.full(size, value, np.float32)  # which legacy peers read, too


def started(channel: str, value: float) -> PythonSession:
    session = PythonSession(session_id="same", quiet_mode=True, channel=channel)
    session.start()
    assert session.wait_until_ready()
    assert session.fetch_response("hello x") == "Hello X"  # a legacy worker's first status is the controller's
    session.send_tensor(full(5, value), "a")
    return session


@pytest.fixture(params=["mapped", "mapped on a disk", "files", "legacy"])
def replaced(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[PythonSession, PythonSession]]:
    """A session whose directory was removed, and the one that has the name since."""
    channel, _, place = request.param.partition(" ")
    if place:  # there a new directory may get the inode of the one that was removed
        monkeypatch.setenv("TR_WORKSPACE", str(tmp_path))
    first = started(channel, 1.0)
    assert (first.calculate("square", full(1000, 3.0)) == 9).all()
    shutil.rmtree(first.session_dir())
    second = started(channel, 2.0)
    try:
        yield first, second
    finally:
        first.close()
        second.close()


def attempts(session: PythonSession) -> Iterator[Any]:
    yield lambda: session.fetch_tensor("sum a", FOREVER_MS)
    for _ in range(3):
        yield lambda: session.calculate("square", full(2000, 0.5), timeout_ms=FOREVER_MS)
    yield lambda: session.send_tensor(full(5, 7.0), "a")
    yield lambda: session.send_tensor(session.empty(100_000), "b")


def content(session: PythonSession) -> dict[str, bytes]:
    directory = Path(session.session_dir())
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix == ".tsr"}


def test_a_session_without_its_directory_says_so_and_the_one_that_took_the_name_is_not_disturbed(
    replaced: tuple[PythonSession, PythonSession],
) -> None:
    first, second = replaced
    before = content(second)
    for attempt in attempts(first):
        with pytest.raises((SessionNotStarted, RemoteError), match=r"was removed|has no worker"):
            attempt()
    first.please_exit(FOREVER_MS)
    assert content(second) == before
    for number in range(5):
        assert (second.calculate("square", full(1000, float(number))) == number**2).all()
        assert second.fetch_response(f"hello {number}") == f"Hello {number}"
    assert second.fetch_tensor("sum a") == 10


def test_a_session_without_its_directory_shows_nothing_in_another_ones_and_obeys_nothing_there(
    tmp_path: Path,
) -> None:
    served = tmp_path / "served"
    worker = script(
        tmp_path,
        dedent(f"""
        import os
        from tr_mmap import Server

        server = Server()

        @server.command("note")
        def note():
            with open({str(served)!r}, "a") as file:
                file.write(f"{{os.getpid()}} ")
            return "noted"

        server.run()
        """),
    )
    first = PythonSession(worker, "same", True)
    second = PythonSession(worker, "same", True)
    try:
        first.start()
        assert first.wait_until_ready()
        directory = Path(first.session_dir())
        shutil.rmtree(directory)
        second.start()
        assert second.wait_until_ready()
        for name in ("request.json", "status.txt"):
            at_rest(directory / "response.json", bool)
            (directory / "new").write_bytes((directory / name).read_bytes())
            (directory / "new").rename(directory / name)  # so that each mirror looks for its file again
        assert first.fetch_response("note") == "noted"  # its pages are mapped
        (directory / "new").write_text('{"cmd": "note", "params": ""}')
        (directory / "new").rename(directory / "request.json")
        at_rest(directory / "response.json", lambda fields: fields.get("params") == "noted")
        pids = first.pid, second.pid
        assert first.please_exit(FOREVER_MS)  # shows its last status
        assert tuple(map(int, served.read_text().split())) == pids
        assert second.fetch_response("note") == "noted"
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_session_without_its_directory_ends_without_an_error(channel: str) -> None:
    with PythonSession(session_id="gone", quiet_mode=True, channel=channel) as session:
        assert session.fetch_response("hello x") == "Hello X"
        shutil.rmtree(session.session_dir())
    assert not os.path.exists(session.session_dir())


@pytest.mark.parametrize("channel", ["files", "legacy"])
def test_whatever_needs_the_directory_says_that_it_was_removed(channel: str) -> None:
    session = started(channel, 1.0)
    try:
        shutil.rmtree(session.session_dir())
        wait_until(lambda: not session.is_alive())  # without its files no request can come
        with pytest.raises(SessionNotStarted, match=r"was removed.*close\(\)"):
            session.fetch_response("hello x", FOREVER_MS)
    finally:
        session.close()


def test_a_directory_is_told_from_the_next_one_of_its_path(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.mkdir()
    known = system.KnownDir(str(path))
    (path / "file").write_text("x")
    assert known.is_there()
    shutil.rmtree(path)
    assert not known.is_there()
    for _ in range(20):  # one of them has the old inode, on ext4 say
        path.mkdir()
        assert not known.is_there()
        path.rmdir()
    path.symlink_to(tmp_path)
    with pytest.raises(SessionNotStarted, match=str(path)):
        known.check()
