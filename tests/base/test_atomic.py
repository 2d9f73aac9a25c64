"""A file is replaced whole, or stays as it was; nothing else is left in its directory."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupts import interrupted_at
from support import environment, open_files

from tr_mmap.base import system
from tr_mmap.base.atomic import replace_by_link, replacement
from tr_mmap.errors import HostilePath


def put(path: Path, content: bytes) -> None:
    with replacement(str(path)) as fd:
        system.write_all(fd, content)


def put_by_link(path: Path, content: bytes) -> None:
    source = path.parent.parent / f"{path.parent.name}.source"
    source.unlink(missing_ok=True)  # an interrupted call has left it
    source.write_bytes(content)
    replace_by_link(str(source), str(path))


@given(st.lists(st.binary(max_size=5000), min_size=1, max_size=5))
def test_the_last_content_is_there_whole_and_alone(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("files") / "file"
    for content in contents:
        put(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("step", ["create_file", "write_all", "close", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EINTR])
def test_a_step_that_fails_leaves_the_earlier_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    path = tmp_path / "file"
    put(path, b"earlier")
    real = getattr(system, step)

    def fail(*arguments: object, **more: object) -> None:
        if step == "close":
            real(*arguments, **more)  # Linux closes the descriptor whatever close(2) says
        raise OSError(number, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(system, step, fail)
        with pytest.raises(OSError, match="injected"):
            put(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["file"]


def test_a_block_that_raises_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    put(path, b"earlier")

    def interrupted() -> None:
        with replacement(str(path)) as fd:
            system.write_all(fd, b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["file"]


WRITER = """
import sys
from tr_mmap.base import system
from tr_mmap.base.atomic import replacement
with replacement(sys.argv[1]) as fd:
    system.write_all(fd, b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_writer_killed_in_the_middle_leaves_the_earlier_file_and_one_marked_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file"
    put(path, b"earlier")
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"earlier"
    (left,) = set(os.listdir(tmp_path)) - {"file"}
    assert left.startswith(".tr_mmap-")
    assert left.endswith(".tmp")


def test_a_view_of_the_earlier_file_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    put(path, b"x" * 9000)
    fd = system.open_file(str(path))
    mapping = system.map_read(fd, 9000)
    system.close(fd)
    put(path, b"y")
    assert mapping.tobytes() == b"x" * 9000


def test_a_directory_in_the_files_place_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(HostilePath):
        put(path, b"content")
    assert os.listdir(tmp_path) == ["file"]


def test_there_is_no_file_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        put(tmp_path / "none" / "file", b"content")


def test_a_link_replaces_a_file_whole(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path / name, name.encode())
    for name in ("one", "two"):
        replace_by_link(str(tmp_path / name), str(tmp_path / "link"))
        assert (tmp_path / "link").samefile(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["link", "one", "two"]


@pytest.mark.parametrize("step", ["link", "rename"])
def test_a_link_that_fails_leaves_the_earlier_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    for name in ("one", "link"):
        put(tmp_path / name, name.encode())

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(system, step, fail)
        with pytest.raises(OSError, match="injected"):
            replace_by_link(str(tmp_path / "one"), str(tmp_path / "link"))
    assert (tmp_path / "link").read_bytes() == b"link"
    assert sorted(os.listdir(tmp_path)) == ["link", "one"]


@pytest.mark.parametrize("action", [put, put_by_link])
def test_no_step_at_which_a_handler_raises_leaves_another_file(
    tmp_path: Path, action: Callable[[Path, bytes], None]
) -> None:
    path = tmp_path / "file"
    put(path, b"earlier")
    fds = open_files()
    step = 1
    while interrupted_at(step, lambda: action(path, b"later")):
        assert path.read_bytes() in (b"earlier", b"later")
        assert os.listdir(tmp_path) == ["file"], step
        assert open_files().total() == fds.total(), step
        step += 1
    assert step > 5
