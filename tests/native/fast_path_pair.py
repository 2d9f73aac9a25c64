"""Both ends of a session in one process, by the fast paths and by the slow path; and messages of every kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from rings import line_at, next_slot, poke
from support import never

from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.controller.fast_path import Traffic, controller_fast_path
from tr_mmap.controller.turn import Turn
from tr_mmap.native import Counters, Pending
from tr_mmap.protocol.commands import parse_command
from tr_mmap.protocol.messages import Request, Response, TensorRef, decode_request, decode_response, encode
from tr_mmap.protocol.status import Status
from tr_mmap.transfer.options import TransferOptions
from tr_mmap.transfer.segments import SegmentControllerTransfer, SegmentWorkerTransfer
from tr_mmap.wire.messages import FORM_NAMED, REQUEST_RING_FILE, RESPONSE_RING_FILE, RING_SLOT_NBYTES, RING_SLOTS
from tr_mmap.worker.fast_path import worker_fast_path
from tr_mmap.worker.reply import Reply

FLOATS = np.arange(8, dtype=np.float32)
OPTIONS = TransferOptions()
MAX_TENSORS = 16  # that a message in canonical form names


class Handler:
    """What a server is to the fast path."""

    def __init__(self, handle: Callable[[Any], object]) -> None:
        self.reply: Any = None
        self.request: Any = None
        self.is_named = False
        self._handle = handle
        self.seen: list[tuple[str, str]] = []
        self.asked: list[Request] = []

    def main_logic(self, command: str, parameters: str) -> object:
        self.seen.append((command, parameters))
        self.asked.append(self.request)
        return self._handle(self.reply)

    def named_logic(self, command: str, parameters: str) -> object:
        self.is_named = True
        return self.main_logic(command, parameters)


class CountingTurn(Turn):
    """Counts how often those that wait for it are woken."""

    __slots__ = ("wakes",)

    def __init__(self) -> None:
        super().__init__()
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1
        super().wake()


class Pair:
    """Both ends of a session in one process, by either way."""

    def __init__(self, directory: str, views: str | None = None) -> None:
        self.directory = directory
        self.controller = MappedChannel.create(directory)
        self.worker = MappedChannel.attach(directory, self.controller.doorbells)
        self.asking = SegmentControllerTransfer(directory, OPTIONS, views)
        self.answering = SegmentWorkerTransfer(directory, OPTIONS, views)
        self.asking.worker_started(never)
        self.deaths: list[int] = []
        self.in_flight: dict[int, Pending] = {}
        self.counters = Counters()
        self.counters.limit = RING_SLOTS
        self.consuming, transfer = CountingTurn(), self.asking
        tags = transfer.unannounced, transfer.tagged
        traffic = Traffic(Turn(), self.consuming, self.in_flight, *tags, transfer.left, {}, self.counters)
        controller_path = controller_fast_path(self.controller, self.asking, self.deaths, traffic)
        worker_path = worker_fast_path(self.worker, self.answering, self.deaths)
        assert controller_path is not None
        assert worker_path is not None
        self.controller_path, self.worker_path = controller_path, worker_path
        self.worker.write_status(Status.READY)

    def sent(self, name: str) -> bytes:
        """The line that was stored last: of the requests, or of the responses."""
        end, file = (self.controller, REQUEST_RING_FILE) if name == "request" else (self.worker, RESPONSE_RING_FILE)
        return line_at(os.path.join(self.directory, file), max(0, end._out.stored - 1))

    def write(self, name: str, line: bytes) -> None:
        """As a peer that stores what it likes, in the slot that the other end takes next."""
        end, file = (self.worker, REQUEST_RING_FILE) if name == "request" else (self.controller, RESPONSE_RING_FILE)
        data = (line[:RING_SLOT_NBYTES] + b"\n").ljust(RING_SLOT_NBYTES)[:RING_SLOT_NBYTES]
        poke(os.path.join(self.directory, file), next_slot(end), data)

    def next_seq(self) -> int:
        """A number for a request that does not take the fast path."""
        self.counters.seq += 1
        return self.counters.seq

    def send(self, message: Any, tensors: Any = (), framework: str = "numpy") -> Pending | None:
        """Send a request by the fast path; None if it is left to the slow path, and nothing was sent."""
        pending: Pending = Pending(message, framework)
        before = self.counters.seq
        is_sent = self.controller_path.send(pending, tensors)
        assert is_sent == (self.counters.seq == before + 1) == (self.in_flight.get(before + 1) is pending)
        assert is_sent or (pending.seq, pending.held) == (0, None)
        return pending if is_sent else None

    def send_slowly(self, message: str, tensors: tuple[Any, ...]) -> Pending:
        """Send a request by the slow path."""
        pending: Pending = Pending(message, "numpy")
        draft = self.asking.prepare(pending, *parse_command(message), tensors)
        pending.seq, pending.order = self.next_seq(), self.counters.sent
        request = self.asking.request(pending.seq, draft)
        self.in_flight[pending.seq] = pending
        self.controller.send(request)
        self.counters.sent += 1
        self.asking.sent(pending, request)
        return pending

    def expect(self, seq: int) -> Pending:
        """Wait for the answer to a request that was sent in whatever way."""
        pending = self.in_flight[seq] = Pending("asked", "numpy")
        pending.seq = seq
        return pending

    def hear(self) -> bool:
        """Consume answers by the fast path. Returns whether the next one is left to the slow path."""
        return self.controller_path.consume()

    def answer(self) -> bytes | None:
        """Take the next answer by the slow path."""
        position, is_there = self.controller.position, True
        try:
            line = self.controller.peek()
            is_there = line is not None
            return line
        finally:
            if is_there:
                self.controller.advance(position)

    def forget(self) -> None:
        """No answer is waited for."""
        while self.in_flight:
            self.asking.release(self.in_flight.popitem()[1], None)

    def receive_late(self) -> None:
        """Take what is there by the slow path, and forget who waits for it."""
        while self.controller.has_message():
            self.answer()
        while self.worker.has_message():
            self.worker.receive(0, never)
        self.forget()

    def serve(self, handle: Callable[[Any], object] | Handler) -> Any:
        """As the worker, but without waiting for what does not come."""
        self.deaths.append(1)
        handler = handle if isinstance(handle, Handler) else Handler(handle)
        try:
            return self.worker_path.serve(handler)
        finally:
            self.deaths.clear()
            assert handler.reply is handler.request is None

    def listen(self) -> Request | None:
        """What is asked, if it comes by the fast path; it is left to be finished."""
        left = self.serve(lambda _: None)
        if left is None:
            return None
        request, answer, is_known, error = left
        assert (answer, is_known, error) == (Reply(), None, None)
        return request

    def pass_by_slow_path(self, tensors: tuple[Any, ...], framework: str = "numpy") -> None:
        """So that both sides know how such tensors lie."""
        pending = self.send_slowly("echo", tensors)
        request = decode_request(self.worker.receive(0, never) or b"")
        self.answering.consumed(self.worker.responses_consumed())
        self.answering.begin(request)
        self.worker.advance_status(Status.BUSY)
        views = [self.answering.fetch(tag, framework) for tag in request.parameters.split()]
        self.answering.publish(views)
        del views
        refs = self.answering.end(request, True)
        self.worker.advance_status(Status.OK)
        order = self.worker.responses_sent
        self.worker.send(Response(pending.seq, "echo", "ok", "", 1, refs))
        self.answering.responded(order)
        for ref in decode_response(self.answer() or b"").tensors:
            self.asking.receive(ref, framework)
        self.forget()
        self.answering.consumed(self.worker.responses_consumed())

    def close(self) -> None:
        self.answering.close(is_orphan=True)
        self.asking.close()
        self.worker.close()
        self.controller.close()


def in_a_slot(message: Request | Response) -> bytes:
    """The line that a channel makes of a message: its number in 8 places."""
    return b'{"seq":%9d,' % message.seq + encode(message).partition(b",")[2]


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
plain_words = st.text("abcXYZ_0189.-/{}[]:,ü漢🙂", max_size=30)
texts = (
    words | plain_words | st.just("x" * 5000) | st.sampled_from(['"', "\\", "\n", "\x7f", "\x00", "a\x1fb", "ready"])
)


forms = st.just("") | st.sampled_from([FORM_NAMED, "other"])
named = st.dictionaries(
    words, texts | st.none() | st.integers(-5, 5) | st.just(float("inf")) | st.lists(texts, max_size=2), max_size=3
)
refs = st.builds(TensorRef, st.sampled_from(["a", "$0", "", 'q"']) | words, texts, st.integers(0, 2**63 - 1))
