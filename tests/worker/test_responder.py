"""The status beside a response: it is told as soon as there is room for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tr_mmap.base import system
from tr_mmap.channel.files import FileChannel
from tr_mmap.errors import OutOfSpace
from tr_mmap.protocol.messages import Request
from tr_mmap.protocol.status import Status
from tr_mmap.transfer.legacy_files import LegacyWorkerTransfer
from tr_mmap.worker.reply import Reply, failure_of
from tr_mmap.worker.responder import Responder


def let_one_file_find_no_room(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The next new file fails, and no other. Returns a list that will have its name."""
    create, failed = system.create_file, list[str]()

    def create_file(path: str, *arguments: Any, **options: Any) -> int:
        if failed:
            return create(path, *arguments, **options)
        failed.append(str(options["told_as"]))
        raise OutOfSpace("no room", needed_nbytes=4096, free_nbytes=0)

    monkeypatch.setattr(system, "create_file", create_file)
    return failed


@pytest.fixture
def channels(tmp_path: Path) -> tuple[FileChannel, FileChannel]:
    return FileChannel.create(str(tmp_path)), FileChannel.attach(str(tmp_path))


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_status_that_found_no_room_is_written_when_there_is_room_for_the_response(
    channels: tuple[FileChannel, FileChannel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_failed: bool
) -> None:
    controller, worker = channels
    responder = Responder(lambda: False)
    responder.advance_status(worker, Status.READY)
    responder.advance_status(worker, Status.BUSY)
    failed = let_one_file_find_no_room(monkeypatch)
    failure = failure_of(OutOfSpace("no room", needed_nbytes=1, free_nbytes=0)) if has_failed else None
    responder.respond(worker, LegacyWorkerTransfer(str(tmp_path)), Request(seq=1, command="x"), Reply(), failure)
    assert [Path(each).name for each in failed] == ["status.txt"]
    assert controller.has_message()
    assert controller.read_status().status is (Status.ERROR if has_failed else Status.OK)
    assert controller.read_status().detail == ("no room" if has_failed else "")


def test_a_status_that_found_no_room_at_all_is_written_before_the_next_wait(
    channels: tuple[FileChannel, FileChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, worker = channels
    responder = Responder(lambda: False)
    let_one_file_find_no_room(monkeypatch)
    responder.advance_status(worker, Status.READY)
    assert controller.read_status().status is Status.STARTING
    responder.repeat_status(worker)
    assert controller.read_status().status is Status.READY
