"""What is special to the mapped channel: rings, long messages, doorbells."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from channel_ends import SHM, Ends, Stop, semaphores
from rings import EMPTY_RING, RING_FILES, next_slot, poke, slot_at
from support import BOUND_S, check_open_files, never, open_files

from tr_mmap.base import system
from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.errors import BadMessage, HostilePath, OutOfSpace
from tr_mmap.protocol.messages import Request, Response, decode_request
from tr_mmap.protocol.status import Status, StatusLine
from tr_mmap.wire.messages import (
    MAX_MESSAGE_SEQ,
    MESSAGE_REST_OFFSET,
    REQUEST_RING_FILE,
    RING_DONE_OFFSET,
    RING_NBYTES,
    RING_SLOT_NBYTES,
    RING_SLOTS,
    RING_WORDS_NBYTES,
)


def poke_next_request(ends: Ends, offset: int, data: bytes) -> None:
    """Write into the slot that the worker takes next."""
    poke(ends.directory / REQUEST_RING_FILE, next_slot(ends.worker) + offset, data)


def test_a_new_ring_has_a_page_of_zeros_and_then_slots_without_a_message(mapped_ends: Ends) -> None:
    for name in RING_FILES:
        assert (mapped_ends.directory / name).read_bytes() == EMPTY_RING
    for seq in range(1, 100):
        mapped_ends.ask(seq, "x")
        assert mapped_ends.asked().seq == seq
        mapped_ends.worker.send(Response(seq, "x"))
        assert mapped_ends.controller.receive(0, never) is not None
    for name in RING_FILES:
        words = bytearray((mapped_ends.directory / name).read_bytes()[:RING_WORDS_NBYTES])
        words[RING_DONE_OFFSET : RING_DONE_OFFSET + 8] = bytes(8)  # the reader counts there
        assert not any(words)


def test_a_writer_that_dies_in_a_store_leaves_no_message(mapped_ends: Ends) -> None:
    body = b',"command":"x","parameters":"' + b"p" * 3000 + b'"}\n'
    for length in (0, 1, 5, 500, len(body)):
        poke_next_request(mapped_ends, 8, b"       0")
        poke_next_request(mapped_ends, 16, body[:length])
        assert not mapped_ends.worker.has_message()
        assert mapped_ends.worker.receive(0, never) is None
    assert mapped_ends.ask(5, "y") == mapped_ends.asked()
    poke_next_request(mapped_ends, 8, b"       0" + body)
    assert not mapped_ends.worker.has_message()
    poke_next_request(mapped_ends, 8, b"       6")  # the number is what makes it one
    assert mapped_ends.asked() == Request(6, "x", "p" * 3000)


def test_a_message_that_is_being_stored_is_not_taken_and_later_ones_wait_for_it(mapped_ends: Ends) -> None:
    sent = [mapped_ends.ask(seq, "x") for seq in (1, 2)]
    poke_next_request(mapped_ends, 8, b"       0")
    assert not mapped_ends.worker.has_message()
    assert mapped_ends.worker.receive(0, never) is None
    poke_next_request(mapped_ends, 8, b"       1")
    assert [mapped_ends.asked(), mapped_ends.asked()] == sent


def test_the_number_is_where_the_format_says_and_as_large_as_it_may_be(mapped_ends: Ends) -> None:
    for position, seq in enumerate((1, 9, 10, MAX_MESSAGE_SEQ - 1, MAX_MESSAGE_SEQ, 1)):
        mapped_ends.ask(seq, "x")
        raw = (mapped_ends.directory / REQUEST_RING_FILE).read_bytes()
        assert len(raw) == RING_NBYTES
        slot = raw[slot_at(position) : slot_at(position + 1)]
        assert slot[:16] == b'{"seq": %8d' % seq
        assert slot.rstrip(b" ").endswith(b"}\n")
        assert mapped_ends.asked().seq == seq


@pytest.mark.parametrize("seq", [0, -1, MAX_MESSAGE_SEQ + 1])
def test_a_number_that_has_no_place_is_refused(mapped_ends: Ends, seq: int) -> None:
    sent = mapped_ends.ask(1, "x")
    with pytest.raises(BadMessage):
        mapped_ends.ask(seq, "x")
    assert mapped_ends.asked() == sent


def test_a_message_without_an_end_is_refused_once(mapped_ends: Ends) -> None:
    poke_next_request(mapped_ends, 8, b"       3" + b"x" * (RING_SLOT_NBYTES - 16))
    with pytest.raises(BadMessage, match="no end"):
        mapped_ends.worker.receive(0, never)
    assert mapped_ends.worker.receive(0, never) is None
    mapped_ends.worker.send(Response(1, "y"))
    assert mapped_ends.controller.receive(0, never) is not None


@pytest.mark.parametrize(
    "spill",
    [
        '"../victim.spill"',
        '"request./../victim.spill"',
        '"/etc/passwd"',
        '"victim.spill"',
        '"response.1.spill"',
        '""',
        "3",
        "[",
        '"request.gone.spill"',
    ],
)
def test_only_the_peers_own_long_messages_are_opened(mapped_ends: Ends, spill: str) -> None:
    for name in ("victim.spill", "response.1.spill"):
        (mapped_ends.directory / name).write_bytes(b"mine")
    poke_next_request(mapped_ends, 16, b',"spill":%b}\n' % spill.encode())
    poke_next_request(mapped_ends, 8, b"       3")
    with pytest.raises(BadMessage):
        mapped_ends.worker.receive(0, never)
    for name in ("victim.spill", "response.1.spill"):
        assert (mapped_ends.directory / name).read_bytes() == b"mine"


@pytest.mark.parametrize("excess", [-1, 0, 1, 2])
def test_a_message_that_fits_its_slot_needs_no_file_and_a_longer_one_does(mapped_ends: Ends, excess: int) -> None:
    overhead = len(b',"command":"x","parameters":""}\n')
    size = RING_SLOT_NBYTES - MESSAGE_REST_OFFSET - overhead + excess
    for seq in range(1, 4):
        sent = mapped_ends.ask(seq, "x", "p" * size)
        assert len(list(mapped_ends.directory.glob("*.spill"))) == (excess > 0)
        assert mapped_ends.asked() == sent
        assert not list(mapped_ends.directory.glob("*.spill"))


def test_long_messages_wait_for_their_turn_beside_short_ones(mapped_ends: Ends) -> None:
    sent = [mapped_ends.ask(seq, "x", "p" * (seq % 3 * 3000)) for seq in range(1, RING_SLOTS + 1)]
    assert [mapped_ends.asked() for _ in sent] == sent
    assert mapped_ends.worker.receive(0, never) is None
    assert not list(mapped_ends.directory.glob("*.spill"))


def test_an_old_end_cannot_disturb_the_new_one(connect: Callable[[str], Ends]) -> None:
    old = connect("mapped")
    new = connect("mapped")
    for size in (3, 100_000):
        old.ask(size, "old", "p" * size)
        old.worker.send(Response(size, "old", "r" * size))
        old.controller.ring()
        old.worker.ring()
        old.worker.write_status(Status.TERMINATED)
        assert not new.worker.has_message()
        assert not new.controller.has_message()
        assert new.controller.read_status() == StatusLine(Status.STARTING)
        sent = new.ask(size, "new", "q" * size)
        assert old.worker.receive(0, never) is not None
        assert old.controller.receive(0, never) is not None
        assert new.asked() == sent
    old.controller.close()
    old.worker.close()
    assert new.ask(4, "new") == new.asked()


def test_doorbells_have_names_only_until_both_ends_have_them(tmp_path: Path) -> None:
    controller = MappedChannel.create(str(tmp_path))
    names = [f"sem.{name[1:]}" for name in controller.doorbells]
    assert sorted(semaphores()) == sorted(names)
    assert all(os.stat(f"{SHM}/{name}").st_mode & 0o777 == 0o600 for name in names)
    worker = MappedChannel.attach(str(tmp_path), controller.doorbells)
    assert semaphores() == []
    controller.send(Request(1, "x"))
    assert worker.receive(None, never) is not None
    with pytest.raises(FileNotFoundError):
        MappedChannel.attach(str(tmp_path), controller.doorbells)
    worker.close()
    controller.close()


def test_a_controller_that_nobody_joined_takes_its_doorbells_along(tmp_path: Path) -> None:
    controller = MappedChannel.create(str(tmp_path))
    assert len(semaphores()) == 2
    controller.close()
    assert semaphores() == []


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("nbytes", [0, 31])
def test_a_doorbell_whose_file_is_too_short_is_refused(tmp_path: Path, index: int, nbytes: int) -> None:
    controller = MappedChannel.create(str(tmp_path))
    path = Path(f"{SHM}/sem.{controller.doorbells[index][1:]}")
    path.unlink()
    path.write_bytes(bytes(nbytes))
    with pytest.raises(HostilePath) as caught:
        MappedChannel.attach(str(tmp_path), controller.doorbells)
    assert caught.value.path == str(path)
    controller.close()


def test_a_full_file_system_lets_no_channel_begin_and_leaves_no_doorbells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def allocate(fd: int, nbytes: int, *, directory: str) -> None:
        if next(calls) == 2:
            raise OutOfSpace("full", needed_nbytes=nbytes, free_nbytes=0)

    before = open_files()
    monkeypatch.setattr(system, "allocate", allocate)
    with pytest.raises(OutOfSpace):
        MappedChannel.create(str(tmp_path))
    assert semaphores() == []
    check_open_files(before)


def test_rings_that_nobody_waited_for_are_one_hint_and_end_a_later_wait_no_sooner(
    mapped_ends: Ends, background: Callable[..., Future[Any]]
) -> None:
    for _ in range(100):
        mapped_ends.controller.ring()
    stop = Stop()
    waiting = background(mapped_ends.worker.receive, None, stop)
    for _ in range(2):  # before the first sleep, and after the hint
        stop.wait_until_asked()
    sent = mapped_ends.ask(1, "x")
    assert decode_request(waiting.result(BOUND_S)) == sent
