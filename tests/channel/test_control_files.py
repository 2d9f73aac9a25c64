"""A channel's control files: readable by anyone at rest, hostile ones refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from channel_ends import Ends, rest
from support import check_open_files, never, open_files

from tr_mmap.channel.kinds import channel_kind
from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.errors import HostilePath
from tr_mmap.protocol.messages import Request, Response, decode_response
from tr_mmap.protocol.status import Status, StatusLine


def test_control_files_can_be_read_by_anyone_at_rest(ends: Ends, kind: str) -> None:
    def at_rest(name: str) -> Any:
        path = ends.directory / name
        assert path.stat().st_mode & 0o777 == 0o600
        with path.open() as file:
            return json.load(file)

    if kind == "mapped":
        assert at_rest("request.json") == at_rest("response.json") == {"seq": 0}
    long = 60_000 if kind == "files" else 4000  # of a message that has no slot, the mirror names the file
    for seq, size in enumerate([3, 3000, 10, long, 1000, 0], 1):
        ends.ask(seq, "x", "p" * size)
        ends.controller.show()
        wanted = {"seq": seq, "command": "x", "parameters": "p" * size}
        assert at_rest("request.json") == {key: value for key, value in wanted.items() if value != ""}
        assert ends.asked().parameters == "p" * size
        ends.worker.send(Response(seq, "", "r" * size, timestamp=seq))
        rest(ends.worker)
        wanted = {"seq": seq, "result": "r" * size, "timestamp": seq}
        assert at_rest("response.json") == {key: value for key, value in wanted.items() if value != ""}
        assert ends.controller.receive(0, never) is not None
        assert (ends.directory / "status.txt").read_text().strip() == "starting"


def test_messages_of_an_earlier_run_are_gone(ends: Ends, kind: str, connect: Callable[[str], Ends]) -> None:
    ends.ask(7, "old", "p" * 100_000)
    ends.worker.send(Response(7, "old", "r" * 100_000))
    ends.worker.write_status(Status.ERROR, "old")
    again = connect(kind)
    assert again.controller.read_status() == StatusLine(Status.STARTING)
    assert not again.controller.has_message()
    assert not again.worker.has_message()
    for seq, size in ((7, 3), (8, 100_000)):  # a long one has a file of its own, whose old name may be taken
        sent = again.ask(seq, "new", "p" * size)
        assert again.asked() == sent
        again.worker.send(Response(seq, "new", "r" * size))
        raw = again.controller.receive(0, never)
        assert raw is not None
        assert decode_response(raw).result == "r" * size


def test_whatever_lies_in_a_control_files_place_is_replaced(kind: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    for name in ("request.json", "response.json"):
        os.symlink(victim, tmp_path / name)
    os.mkfifo(tmp_path / "status.txt")
    controller = channel_kind(kind).create(str(tmp_path))
    worker = channel_kind(kind).attach(str(tmp_path), controller.doorbells)
    controller.send(Request(1, "x"))
    assert worker.receive(0, never) is not None
    assert controller.read_status().status is Status.STARTING
    assert victim.read_bytes() == b"mine"
    worker.close()
    controller.close()


def symlink(path: Path) -> None:
    target = path.with_name("target")
    os.rename(path, target)
    os.symlink(target, path)


def dangling_symlink(path: Path) -> None:
    path.unlink()
    os.symlink("/nowhere", path)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def group_writable(path: Path) -> None:
    path.chmod(0o620)


def too_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


HOSTILE = [symlink, dangling_symlink, fifo, directory, group_writable]
CONTROL_FILES = ["request.json", "response.json", "status.txt"]
MAPPED_FILES = ["requests.ring", "responses.ring", "status.page"]


@pytest.mark.parametrize("spoil", [*HOSTILE, too_short], ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", MAPPED_FILES)
def test_a_hostile_mapped_file_is_refused_when_a_worker_attaches(
    tmp_path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    controller = MappedChannel.create(str(tmp_path))
    spoil(tmp_path / name)
    before = open_files()
    with pytest.raises(HostilePath) as caught:
        MappedChannel.attach(str(tmp_path), controller.doorbells)
    assert caught.value.path == str(tmp_path / name)
    check_open_files(before)
    controller.close()


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", CONTROL_FILES)
def test_a_hostile_control_file_is_refused_when_it_is_read(
    connect: Callable[[str], Ends], name: str, spoil: Callable[[Path], None]
) -> None:
    ends = connect("files")
    look: Callable[[], object]
    if name == "request.json":
        ends.ask(1, "x")
        look = lambda: ends.worker.receive(0, never)  # noqa: E731
    elif name == "response.json":
        ends.worker.send(Response(1, "x"))
        look = lambda: ends.controller.receive(0, never)  # noqa: E731
    else:
        look = ends.controller.read_status
    spoil(ends.directory / name)
    before = open_files()
    with pytest.raises(HostilePath) as caught:
        look()
    assert caught.value.path == str(ends.directory / name)
    check_open_files(before)
    if name == "request.json" and spoil is not directory:  # it is out of the way: the next message is found
        assert ends.ask(2, "y") == ends.asked()
