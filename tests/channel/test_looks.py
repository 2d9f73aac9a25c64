"""A controller looks at a response, deals with it, and then takes it: signal handlers in between lose none."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from channel_ends import Ends
from interrupts import Stop, handled_at
from rings import next_slot, poke
from support import never

from tr_mmap.base import system
from tr_mmap.channel.authenticated import RejectionCounter, protect
from tr_mmap.channel.interface import Channel, Role
from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.protocol.messages import Request, Response, decode_response
from tr_mmap.wire.messages import EXIT_COMMAND, RESPONSE_RING_FILE, RING_SLOT_NBYTES

SECRET = b"s" * 32
KINDS: dict[str, tuple[bytes | None, int]] = {
    "plain": (None, 3),
    "signed": (SECRET, 3),
    "spilled": (None, 2 * RING_SLOT_NBYTES),
    "signed and spilled": (SECRET, 2 * RING_SLOT_NBYTES),
}


class Side:
    """A controller's end to whose requests 1, 2 and 3 the worker has responded."""

    def __init__(self, directory: Path, kind: str = "signed") -> None:
        self.directory = directory
        secret, self.length = KINDS[kind]
        self.inner = MappedChannel.create(str(directory))
        worker = MappedChannel.attach(str(directory), self.inner.doorbells)
        self.counter = RejectionCounter()
        self.controller: Channel = protect(self.inner, Role.CONTROLLER, secret, self.counter)
        self.worker: Channel = protect(worker, Role.WORKER, secret, RejectionCounter())
        self.seq = count(1)
        self.seen: set[int] = set()
        for _ in range(3):
            self.ask()

    def ask(self) -> None:
        seq = next(self.seq)
        self.controller.send(Request(seq, "x"))
        self.worker.send(Response(seq, "x", "r" * self.length))

    def look(self) -> None:
        position = self.controller.position
        raw = self.controller.peek()
        if raw is not None:
            self.seen.add(decode_response(raw).seq)
        self.looked_at = position

    def take(self) -> None:
        self.look()
        self.controller.advance(self.looked_at)

    def take_two(self) -> None:
        self.take()
        self.take()

    def ask_and_take(self) -> None:
        self.ask()
        self.take()

    def stop(self) -> None:
        raise Stop

    def take_and_stop(self) -> None:
        self.take()
        raise Stop

    def forge(self) -> None:
        poke(self.directory / RESPONSE_RING_FILE, next_slot(self.inner), b'{"seq":%9d,"forged":1}\n' % 7)

    def close(self) -> None:
        self.worker.close()
        self.controller.close()


@pytest.mark.parametrize("handle", ["look", "take", "take_two", "ask", "ask_and_take", "stop", "take_and_stop"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_in_the_middle_of_a_look_or_a_take_loses_no_response(tmp_path: Path, kind: str, handle: str) -> None:
    had, step = True, 0
    while had:
        step += 1
        directory = tmp_path / str(step)
        directory.mkdir(0o700)
        side = Side(directory, kind)
        action: Callable[[], None] = getattr(side, handle)
        try:
            had = handled_at(step, side.take, action)
        except Stop:
            had = True
        for _ in range(6):
            side.take()
        assert side.controller.peek() is None
        assert side.seen == set(range(1, next(side.seq))), step
        assert side.counter.rejected == 0
        if "stop" not in handle:  # else what is left goes with the directory
            assert not list(directory.glob("*.spill"))
        side.close()
    assert step > 3


def test_a_response_that_was_looked_at_is_given_again_also_after_another_request(tmp_path: Path) -> None:
    for kind in KINDS:
        directory = tmp_path / kind
        directory.mkdir(0o700)
        side = Side(directory, kind)
        raw = side.controller.peek()
        assert raw is not None
        side.ask()
        assert side.controller.peek() == raw
        side.controller.advance(0)
        side.controller.advance(0)  # which was taken already
        assert decode_response(side.controller.peek() or b"").seq == 2
        assert side.counter.rejected == 0
        side.close()


def test_a_forged_response_gives_way_to_the_real_one_wherever_it_lies(tmp_path: Path) -> None:
    side = Side(tmp_path)
    for _ in range(3):
        side.take()
    side.forge()
    assert side.controller.peek() is None
    assert side.controller.peek() is None
    assert side.counter.rejected == 1
    side.ask()
    side.take()
    assert side.seen == {1, 2, 3, 4}
    assert side.counter.rejected == 1
    side.close()


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])
def test_a_response_in_a_file_is_given_until_it_is_taken(connect: Callable[[str], Ends], secret: bytes | None) -> None:
    files = connect("files")
    controller = protect(files.controller, Role.CONTROLLER, secret, RejectionCounter())
    ends = Ends(files.directory, controller, protect(files.worker, Role.WORKER, secret, RejectionCounter()))
    for seq in (1, 2):
        ends.ask(seq, "x")
        assert ends.asked().seq == seq
        assert ends.controller.peek() is None
        ends.worker.send(Response(seq, "x"))
        position = ends.controller.position
        raw = ends.controller.peek()
        assert decode_response(raw or b"").seq == seq
        if seq == 2:
            ends.controller.send(Request(3, EXIT_COMMAND))  # which takes no response away
        assert ends.controller.peek() == raw
        assert ends.controller.has_message()
        assert ends.controller.advance(position)
        assert not ends.controller.advance(position)
        assert ends.controller.peek() is None
        assert not ends.controller.has_message()


def test_a_handler_that_takes_a_spill_and_the_next_one_leaves_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outer call has looked at the line that names the first spill, and has not opened the spill."""
    side = Side(tmp_path, "spilled")
    open_private_file = system.open_private_file

    def interrupt_and_open(path: str, **options: Any) -> int:
        monkeypatch.undo()
        side.take_two()
        assert not list(tmp_path.glob("*_[12].spill"))
        return open_private_file(path, **options)

    monkeypatch.setattr(system, "open_private_file", interrupt_and_open)
    assert side.controller.peek() is None
    side.take()
    assert side.seen == {1, 2, 3}
    side.close()


@pytest.mark.parametrize("length", [3, 2 * RING_SLOT_NBYTES])
def test_a_handler_that_takes_the_message_that_a_receive_looks_at_leaves_none_to_it(
    ends: Ends, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends.ask(1, "x", "p" * length)
    advance, taken = ends.worker.advance, []

    def interrupted(position: int, **options: Any) -> bool:
        monkeypatch.undo()
        taken.append(ends.asked().seq)
        return advance(position, **options)

    monkeypatch.setattr(ends.worker, "advance", interrupted)
    assert ends.worker.receive(0, never) is None
    assert taken == [1]
