"""A controller looks at a response, deals with it, and then takes it: signal handlers in between lose none."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from interrupts import Stop, handled_at
from rings import next_slot, poke

from tr_mmap.channel.authenticated import RejectionCounter, protect
from tr_mmap.channel.interface import Channel, Role
from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.protocol.messages import Request, Response, decode_response
from tr_mmap.wire.messages import RESPONSE_RING_FILE

SECRETS = {"plain": None, "signed": b"s" * 32}


class Side:
    """A controller's end to whose requests 1, 2 and 3 the worker has responded."""

    def __init__(self, directory: Path, secret: bytes | None) -> None:
        self.directory = directory
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
        self.worker.send(Response(seq, "x"))

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
@pytest.mark.parametrize("kind", SECRETS)
def test_a_handler_in_the_middle_of_a_look_or_a_take_loses_no_response(tmp_path: Path, kind: str, handle: str) -> None:
    had, step = True, 0
    while had:
        step += 1
        directory = tmp_path / str(step)
        directory.mkdir(0o700)
        side = Side(directory, SECRETS[kind])
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
        side.close()
    assert step > 3


def test_a_response_that_was_looked_at_is_given_again_also_after_another_request(tmp_path: Path) -> None:
    for kind, secret in SECRETS.items():
        directory = tmp_path / kind
        directory.mkdir(0o700)
        side = Side(directory, secret)
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
    side = Side(tmp_path, SECRETS["signed"])
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
