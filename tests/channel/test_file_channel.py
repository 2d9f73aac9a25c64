"""What is special to the channel of files: its rate of looking, and files of others in its way."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from channel_ends import Ends
from support import BOUND_S, never

from tr_mmap.channel import files
from tr_mmap.channel.files import FileChannel, PollRate
from tr_mmap.channel.interface import Role
from tr_mmap.errors import BadMessage, ResponseTimeout, SystemLimit
from tr_mmap.protocol.messages import Response
from tr_mmap.wire.messages import MAX_MESSAGE_NBYTES


def test_the_rate_of_looking_falls_and_recovers() -> None:
    rate = PollRate()
    wanted = [interval for interval in (32, 64, 128, 256, 512, 1024) for _ in range(8)] + [1024] * 30
    assert [rate.found_nothing() for _ in wanted] == wanted
    rate.found_one()
    assert [rate.found_nothing() for _ in range(9)] == [32] * 8 + [64]
    rate.found_one()
    assert [rate.found_nothing() for _ in range(9)] == [32] * 8 + [64]


def test_a_message_sets_the_rate_of_looking_back(connect: Callable[[str], Ends]) -> None:
    ends = connect("files")
    assert isinstance(ends.worker, FileChannel)
    looks = iter([False] * 30 + [True])
    assert ends.worker.receive(None, lambda: next(looks)) is None
    assert ends.worker._rate.interval_ms == PollRate.LAST_MS
    ends.ask(1, "x")
    assert ends.asked().command == "x"
    assert ends.worker._rate.interval_ms == PollRate.FIRST_MS


def test_a_message_waits_until_the_one_before_it_was_taken(
    connect: Callable[[str], Ends], background: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect("files")
    first = ends.ask(1, "first")
    monkeypatch.setattr(files, "SEND_TIMEOUT_MS", 3.0)
    with pytest.raises(ResponseTimeout) as caught:
        ends.ask(2, "second")
    assert caught.value.command == "second"
    monkeypatch.setattr(files, "SEND_TIMEOUT_MS", 1000 * BOUND_S)
    waiting = background(ends.ask, 3, "third")
    assert ends.asked() == first
    assert waiting.result(BOUND_S) == ends.asked()


def test_a_message_file_that_is_too_long_is_refused_and_removed(connect: Callable[[str], Ends]) -> None:
    ends = connect("files")
    path = ends.directory / "request.json"
    path.touch(0o600)
    os.truncate(path, MAX_MESSAGE_NBYTES + 1)
    with pytest.raises(BadMessage):
        ends.worker.receive(0, never)
    assert not path.exists()
    assert ends.ask(1, "x") == ends.asked()


@pytest.mark.parametrize("kind", ["files", "legacy"])
@pytest.mark.parametrize("side", ["controller", "worker"])
def test_a_message_that_no_descriptor_is_left_for_is_received_later(
    connect: Callable[[str], Ends], kind: str, side: str
) -> None:
    ends = connect(kind)
    if side == "worker":
        receiver = ends.worker
        ends.ask(1, "x")
    else:
        receiver = ends.controller
        ends.worker.send(Response(1, "x"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        for _ in range(2):
            with pytest.raises(SystemLimit):
                receiver.receive(0, never)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert receiver.receive(0, never) is not None
    assert receiver.receive(0, never) is None


def test_a_temporary_file_of_a_killed_writer_is_in_nobodys_way(connect: Callable[[str], Ends]) -> None:
    ends = connect("files")
    (ends.directory / f"request.json.{os.getpid()}.tmp").write_bytes(b"half")
    assert ends.ask(1, "x") == ends.asked()


def test_roles_name_the_file_that_each_end_writes() -> None:
    assert Role.CONTROLLER.value == "request"
    assert Role.WORKER.value == "response"
    assert Role.CONTROLLER.peer.peer is Role.CONTROLLER
