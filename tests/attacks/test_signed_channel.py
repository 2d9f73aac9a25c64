"""A channel that signs, without processes: every message that is not the peer's next one is refused and counted."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from rings import next_slot, poke
from support import never

from tr_mmap.channel.authenticated import AuthenticatedChannel, RejectionCounter
from tr_mmap.channel.interface import Channel, Role
from tr_mmap.channel.kinds import channel_kind
from tr_mmap.protocol.messages import Request, Response, decode_request, decode_response, encode
from tr_mmap.wire.messages import MAX_MESSAGE_SEQ, RESPONSE_RING_FILE


class Wire(Channel):
    """Two queues in memory, for both ends, on which the attacker can do anything."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.queue: list[bytes] = []
        self.taken = 0

    @classmethod
    def create(cls, directory: str, doorbells: list[str] | None = None) -> Channel:  # noqa: ARG003
        return cls()

    @classmethod
    def attach(cls, directory: str, doorbells: list[str]) -> Channel:  # noqa: ARG003
        return cls()

    def send(self, message: Request | Response, *_: object) -> None:
        self.sent.append(encode(message))
        self.queue.append(self.sent[-1])

    def has_message(self) -> bool:
        return bool(self.queue)

    def peek(self) -> bytes | None:
        return self.queue[0] if self.queue else None

    @property
    def position(self) -> int:
        return self.taken

    def advance(self, position: int, *, is_consumed: bool = True) -> bool:  # noqa: ARG002
        if position != self.taken or not self.queue:
            return False
        self.reject()
        self.taken += 1
        return True

    def reject(self) -> None:
        del self.queue[:1]

    def wait(self, timeout_ms: float, stop: Any) -> bool:  # noqa: ARG002
        return bool(self.queue)

    def _unused(self, *_: Any) -> Any:
        raise AssertionError("not for this test")

    doorbells = property(_unused)
    read_status = is_exit_requested = write_status = wait_status = ring = wake = unlink = close = _unused


class Pipe:
    """A controller's end and a worker's end over one wire, from controller to worker."""

    def __init__(self, secret: bytes = b"s" * 32, other: bytes | None = None) -> None:
        self.inner = Wire()
        self.counter = RejectionCounter()
        self.controller = AuthenticatedChannel(self.inner, Role.CONTROLLER, secret, RejectionCounter())
        self.worker = AuthenticatedChannel(self.inner, Role.WORKER, other or secret, self.counter)

    def pass_on(self) -> int | None:
        raw = self.worker.receive(0, never)
        return None if raw is None else decode_request(raw).seq


def test_the_mac_is_what_the_specification_says() -> None:
    secret = bytes(range(32))
    ends = Pipe(secret)
    ends.controller.send(Request(12, "echo", "ä", 5))
    raw = ends.inner.sent[-1]
    rest, mac = re.fullmatch(rb'\{"seq":12(,.*),"mac":"([0-9a-f]{32})"\}', raw).groups()  # type: ignore[union-attr]
    wanted = hashlib.blake2b((12).to_bytes(8, "little") + rest, digest_size=16, key=secret, person=b"tr_mmap request")
    assert mac.decode() == wanted.hexdigest()


def test_a_message_that_comes_late_is_refused() -> None:
    pipe = Pipe()
    for seq in (1, 2, 3, 4):
        pipe.controller.send(Request(seq, "x"))
    one, two, three, four = pipe.inner.queue
    pipe.inner.queue[:] = [two, one, four, three]
    assert [pipe.pass_on() for _ in range(4)] == [2, 4, None, None] or pipe.counter.rejected == 2
    pipe.inner.queue[:] = [one, two, three, four]
    assert pipe.pass_on() is None
    assert pipe.counter.rejected >= 3


def test_numbers_that_begin_again_at_one_are_followed_and_old_ones_are_not_taken_again() -> None:
    pipe = Pipe()
    sent = []
    for seq in (MAX_MESSAGE_SEQ - 1, MAX_MESSAGE_SEQ, 1, 2, 7, 5, MAX_MESSAGE_SEQ, 1):  # 7 to 5 is once around
        pipe.controller.send(Request(seq, "x"))
        sent.append(pipe.inner.queue[-1])
        assert pipe.pass_on() == seq
    for raw in sent:
        pipe.inner.queue.append(raw)
        assert pipe.pass_on() is None
    assert pipe.counter.rejected == len(sent)


def test_what_could_not_be_sent_can_be_sent_again_under_its_number() -> None:
    pipe = Pipe()
    real = pipe.inner.send

    def full(message: Any, *_: object) -> None:
        raise OSError("full")

    pipe.inner.send = full  # type: ignore[method-assign]
    with pytest.raises(OSError, match="full"):
        pipe.controller.send(Request(1, "x"))
    pipe.inner.send = real  # type: ignore[method-assign]
    pipe.controller.send(Request(1, "shorter"))
    assert pipe.pass_on() == 1


def test_a_message_under_another_secret_is_refused() -> None:
    pipe = Pipe(other=b"t" * 32)
    pipe.controller.send(Request(1, "x"))
    assert pipe.pass_on() is None
    assert pipe.counter.rejected == 1


def test_every_changed_bit_of_a_message_is_refused() -> None:
    pipe = Pipe()
    pipe.controller.send(Request(1, "echo", "a b", 123))
    (raw,) = pipe.inner.queue
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        pipe.inner.queue[:] = [bytes(changed)]
        assert pipe.pass_on() is None, bytes(changed)
    assert pipe.counter.rejected == 8 * len(raw)
    pipe.inner.queue[:] = [raw]
    assert pipe.pass_on() == 1


def test_every_message_that_is_cut_or_grown_is_refused() -> None:
    pipe = Pipe()
    pipe.controller.send(Request(1, "echo", "a b", 123))
    (raw,) = pipe.inner.queue
    for wrong in [raw[:cut] for cut in range(len(raw))] + [raw + b" ", b" " + raw, raw + raw, raw[:-1] + b',"x":1}']:
        pipe.inner.queue[:] = [wrong]
        assert pipe.pass_on() is None
    pipe.inner.queue[:] = [raw]
    assert pipe.pass_on() == 1


def test_looking_takes_nothing_and_counts_once() -> None:
    pipe = Pipe()
    pipe.inner.queue.append(b"evil")
    assert not pipe.worker.has_message()
    assert not pipe.worker.has_message()
    assert pipe.counter.rejected == 1
    pipe.controller.send(Request(1, "x"))
    assert pipe.worker.has_message()
    assert pipe.worker.has_message()
    assert pipe.pass_on() == 1
    assert not pipe.worker.has_message()


def test_who_forges_without_pause_does_not_hold_a_wait_beyond_its_time() -> None:
    pipe = Pipe()
    pipe.inner.peek = lambda: b"evil"  # type: ignore[method-assign]
    pipe.inner.wait = lambda *_: True  # type: ignore[method-assign]
    assert pipe.worker.receive(20, never) is None
    assert pipe.worker.receive(0, never) is None
    assert pipe.worker.receive(None, lambda: True) is None
    assert pipe.counter.rejected >= 3


def test_who_replays_the_newest_message_without_pause_does_not_hold_a_wait_beyond_its_time() -> None:
    pipe = Pipe()
    pipe.controller.send(Request(1, "x"))
    (raw,) = pipe.inner.queue
    assert pipe.pass_on() == 1
    pipe.inner.peek = lambda: raw  # type: ignore[method-assign]
    pipe.inner.wait = lambda *_: True  # type: ignore[method-assign]
    assert pipe.worker.receive(20, never) is None
    assert pipe.worker.receive(0, never) is None
    assert pipe.worker.receive(None, lambda: True) is None
    assert pipe.counter.rejected >= 3


def test_a_message_is_given_until_it_is_taken_and_a_replay_of_it_counts() -> None:
    pipe = Pipe()
    pipe.controller.send(Request(1, "x"))
    (raw,) = pipe.inner.queue
    assert pipe.worker.peek() == raw
    assert pipe.worker.has_message()
    assert pipe.pass_on() == 1
    assert pipe.pass_on() is None
    assert pipe.counter.rejected == 0
    pipe.inner.queue.append(raw)
    assert not pipe.worker.has_message()
    assert pipe.pass_on() is None
    assert pipe.counter.rejected == 1
    pipe.controller.send(Request(2, "x"))
    assert pipe.pass_on() == 2


def test_a_number_that_is_none_cannot_be_sent() -> None:
    for seq in (0, -1, MAX_MESSAGE_SEQ + 1):
        with pytest.raises(Exception, match="number"):
            Pipe().controller.send(Request(seq, "x"))


@pytest.mark.parametrize("kind", ["mapped", "files"])
def test_a_real_channel_gives_the_real_message_after_a_forged_one_of_the_same_number(
    kind: str, workspace: Path
) -> None:
    inner = channel_kind(kind).create(str(workspace))
    counter = RejectionCounter()
    controller = AuthenticatedChannel(inner, Role.CONTROLLER, b"s" * 32, counter)
    end = channel_kind(kind).attach(str(workspace), inner.doorbells)
    worker = AuthenticatedChannel(end, Role.WORKER, b"s" * 32, RejectionCounter())
    for seq in (1, 2, 3):
        if kind == "mapped":  # as a third process, which has no count of its own of the messages
            forged = b'{"seq":%9d,"command":"forged"}\n' % seq
            poke(workspace / RESPONSE_RING_FILE, next_slot(inner), forged)
        else:
            end.send(Response(seq, "forged"))
        assert controller.receive(0, never) is None
        assert controller.receive(0, never) is None  # nor again
        worker.send(Response(seq, "real"))
        raw = controller.receive(0, never)
        assert raw is not None
        assert decode_response(raw).command == "real"
    assert counter.rejected == 3
    worker.close()
    controller.close()
    for left in workspace.iterdir():
        left.unlink()
