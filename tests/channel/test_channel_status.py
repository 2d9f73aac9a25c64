"""The status over either channel: read as it was written, always a status, waited for."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from channel_ends import Ends, Peer, Stop, rest
from support import BOUND_S, never

from tr_mmap.channel.kinds import channel_kind
from tr_mmap.protocol.status import Status, StatusLine, parse_status
from tr_mmap.wire.messages import HEARTBEAT_OFFSET, MAX_DETAIL_CHARS

DETAILS = {
    "none": "",
    "short": "epoch 3",
    "blank": " \n ",
    "newlines": "first\nsecond\r\n\tthird",
    "colons": "a: b: c",
    "unicode": "größe 漢字 🙂",
    "too long": "🙂" * 5000,
    "no text": os.fsdecode(b"bad \xff name"),
}


@pytest.mark.parametrize("detail", DETAILS.values(), ids=DETAILS.keys())
@pytest.mark.parametrize("status", Status)
def test_every_status_is_read_as_it_was_written(ends: Ends, status: Status, detail: str) -> None:
    ends.worker.write_status(status, detail)
    expected = " ".join(detail.encode("utf-8", "replace").decode().split())[:MAX_DETAIL_CHARS]
    for end in (ends.controller, ends.worker):
        assert end.read_status() == StatusLine(status, expected)


def test_a_new_channel_is_starting(ends: Ends) -> None:
    assert ends.controller.read_status() == StatusLine(Status.STARTING)
    assert ends.worker.read_status() == StatusLine(Status.STARTING)


def test_nothing_of_an_earlier_status_shows_in_a_later_one(ends: Ends) -> None:
    lines = [(status, detail) for status in Status for detail in ("", "d" * 9, "long " * 300)]
    rng = random.Random(1)
    for number in range(300):
        if number % 4 == 1:
            status, detail = Status.EXIT, ""  # the one that the controller may write
            ends.controller.write_status(status)
        else:
            status, detail = rng.choice(lines)
            ends.worker.write_status(status, detail)
        rest(ends.controller, ends.worker)
        text = (ends.directory / "status.txt").read_text()
        assert text.strip() == StatusLine(status, detail).to_text().strip()
        assert text.rstrip(" ").endswith("\n")
        assert ends.controller.read_status() == ends.worker.read_status() == parse_status(text)


def test_exit_is_told_from_exiting(ends: Ends) -> None:
    for status in Status:
        ends.controller.write_status(status)
        assert ends.worker.is_exit_requested() == (status is Status.EXIT)
    ends.controller.write_status(Status.EXIT, "by the user")
    assert ends.worker.is_exit_requested()


@pytest.mark.parametrize("text", ["", "what\n", "ok ay\n", "\0\0\0\0", "\xff\xfe\n", "busy" * 2000, "exit, please\n"])
def test_a_text_that_is_no_status_leaves_the_last_status(ends: Ends, kind: str, text: str) -> None:
    ends.worker.write_status(Status.BUSY, "epoch 3")
    for end in (ends.controller, ends.worker):
        assert end.read_status() == StatusLine(Status.BUSY, "epoch 3")
    fd = os.open(ends.directory / ("status.page" if kind == "mapped" else "status.txt"), os.O_WRONLY)
    os.pwrite(fd, text.encode("latin-1").ljust(HEARTBEAT_OFFSET), 0)
    os.close(fd)
    for end in (ends.controller, ends.worker):
        assert end.read_status() == StatusLine(Status.BUSY, "epoch 3")
        assert not end.is_exit_requested()


def test_a_wait_for_a_status_ends_with_it(ends: Ends, background: Callable[..., Future[Any]]) -> None:
    stop = Stop()
    waiting = background(ends.controller.wait_status, lambda line: line.status is Status.OK, 1000 * BOUND_S, stop)
    for status in (Status.READY, Status.BUSY, Status.OK):
        stop.wait_until_asked()
        ends.worker.write_status(status, "so")
        ends.worker.ring()
    assert waiting.result(BOUND_S) == StatusLine(Status.OK, "so")


def test_a_status_that_is_there_is_not_waited_for(ends: Ends) -> None:
    assert ends.controller.wait_status(lambda _: True, 0, never) == StatusLine(Status.STARTING)


def test_a_wait_for_a_status_ends_by_timeout_and_by_stop(ends: Ends, background: Callable[..., Future[Any]]) -> None:
    assert ends.controller.wait_status(lambda _: False, 1.0, never) is None
    stop = Stop()
    waiting = background(ends.controller.wait_status, lambda _: False, 1000 * BOUND_S, stop)
    stop.wait_until_asked()
    stop.is_set = True
    ends.controller.wake()
    assert waiting.result(BOUND_S) is None


STATUS_WRITER = """
import sys
from tr_mmap.channel.kinds import channel_kind
from tr_mmap.protocol.status import Status
channel = channel_kind(sys.argv[1]).attach(sys.argv[2], sys.argv[4:])
for number in range(int(sys.argv[3])):
    for status in (Status.READY, Status.BUSY, Status.ERROR, Status.TERMINATED, Status.OK):
        channel.write_status(status, "detail " * 20 if number % 3 == 0 else "")
channel.write_status(Status.EXITING)
"""


def test_a_status_that_changes_all_the_time_is_always_a_status(kind: str, tmp_path: Path) -> None:
    controller = channel_kind(kind).create(str(tmp_path))
    with Peer(STATUS_WRITER, kind, tmp_path, 4000 if kind == "mapped" else 200, *controller.doorbells) as peer:
        while controller.read_status().status is not Status.EXITING:
            assert peer.is_fine()
    assert controller.read_status() == StatusLine(Status.EXITING)
    controller.close()
