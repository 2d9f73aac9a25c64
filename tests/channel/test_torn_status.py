"""A status that is read in the middle of a store is read again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from channel_ends import Ends

from tr_mmap.channel import status_page
from tr_mmap.protocol.status import Status, StatusLine
from tr_mmap.wire.messages import HEARTBEAT_OFFSET, STATUS_PAGE_FILE
from tr_mmap.wire.waits import STATUS_RETRIES

HALF_STORED = [b"bus", b"rrror: disk full\n", b"\0\0\0\0", b"b\xffsy\n", b"busyok\n"]


def store(ends: Ends, content: bytes) -> None:
    """As a process that stores the status byte by byte, and not by one word."""
    with open(ends.directory / STATUS_PAGE_FILE, "r+b") as file:
        file.write(content.ljust(HEARTBEAT_OFFSET))


class Pause:
    """Stands for the time that passes between two reads; the store ends in the last of them."""

    def __init__(self, finish: Callable[[], None], pauses: int) -> None:
        self._finish = finish
        self._left = pauses

    def sleep(self, _seconds: float) -> None:
        self._left -= 1
        if self._left == 0:
            self._finish()


@pytest.mark.parametrize("torn", HALF_STORED)
@pytest.mark.parametrize("pauses", range(1, STATUS_RETRIES + 1))
def test_a_status_in_the_middle_of_a_store_is_read_again(
    mapped_ends: Ends, monkeypatch: pytest.MonkeyPatch, torn: bytes, pauses: int
) -> None:
    store(mapped_ends, torn)
    monkeypatch.setattr(status_page, "time", Pause(lambda: store(mapped_ends, b"error: disk full\n"), pauses))
    assert mapped_ends.controller.read_status() == StatusLine(Status.ERROR, "disk full")


def test_a_status_that_stays_garbled_is_the_last_one_that_was_none(
    mapped_ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(mapped_ends, b"busy: epoch 3\n")
    assert mapped_ends.worker.read_status() == StatusLine(Status.BUSY, "epoch 3")
    store(mapped_ends, b"no status at all\n")
    monkeypatch.setattr(status_page, "time", Pause(lambda: store(mapped_ends, b"ready\n"), STATUS_RETRIES + 1))
    assert mapped_ends.worker.read_status() == StatusLine(Status.BUSY, "epoch 3")
    assert mapped_ends.worker.read_status() == StatusLine(Status.READY)
