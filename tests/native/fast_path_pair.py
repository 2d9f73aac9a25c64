"""Both ends of a session in one process, by the fast paths and by the slow path; and messages of every kind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from rings import line_at, next_slot, poke
from support import never

from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.controller.fast_path import controller_fast_path
from tr_mmap.protocol.messages import Request, Response, TensorRef, decode_response, encode
from tr_mmap.protocol.status import Status
from tr_mmap.transfer.options import TransferOptions
from tr_mmap.transfer.segments import SegmentControllerTransfer, SegmentWorkerTransfer
from tr_mmap.wire.messages import REQUEST_RING_FILE, RESPONSE_RING_FILE, RING_SLOT_NBYTES
from tr_mmap.worker.fast_path import worker_fast_path
from tr_mmap.worker.reply import Reply

FLOATS = np.arange(8, dtype=np.float32)
OPTIONS = TransferOptions()
MAX_TENSORS = 16  # that a message in canonical form names


class Handler:
    """What a server is to the fast path."""

    def __init__(self, handle: Callable[[Any], object]) -> None:
        self.reply: Any = None
        self._handle = handle
        self.requested_dtype: list[tuple[str, str]] = []

    def main_logic(self, command: str, parameters: str) -> object:
        self.requested_dtype.append((command, parameters))
        return self._handle(self.reply)


class Pair:
    """Both ends of a session in one process, by either way."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.controller = MappedChannel.create(directory)
        self.worker = MappedChannel.attach(directory, self.controller.doorbells)
        self.asking = SegmentControllerTransfer(directory, OPTIONS)
        self.answering = SegmentWorkerTransfer(directory, OPTIONS)
        self.asking.worker_started(never)
        self.deaths: list[int] = []
        controller_path = controller_fast_path(self.controller, self.asking, self.deaths)
        worker_path = worker_fast_path(self.worker, self.answering, self.deaths)
        assert controller_path is not None
        assert worker_path is not None
        self.controller_path, self.worker_path = controller_path, worker_path
        self.seq = itertools.count(1)
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

    def receive_late(self) -> None:
        """Take what is there the slow path."""
        self.controller.receive(0, never)
        self.worker.receive(0, never)

    def serve(self, handle: Callable[[Any], object]) -> Any:
        """As the worker, but without waiting for what does not come."""
        self.deaths.append(1)
        handler = Handler(handle)
        try:
            return self.worker_path.serve(handler)
        finally:
            self.deaths.clear()
            assert handler.reply is None

    def listen(self) -> Request | None:
        """What is asked, if it comes by the fast path; it is left to be finished."""
        left = self.serve(lambda _: None)
        if left is None:
            return None
        request, answer, is_known, error = left
        assert (answer, is_known, error) == (Reply(), None, None)
        return request

    def pass_by_slow_path(self, tensors: tuple[Any, ...]) -> None:
        """So that both sides know how such tensors lie."""
        seq = next(self.seq)
        request = self.asking.prepare(seq, "echo", "", tensors)
        self.controller.send(request)
        self.answering.begin(request)
        self.worker.advance_status(Status.BUSY)
        views = [self.answering.fetch(tag, "numpy") for tag in request.parameters.split()]
        self.answering.publish(views)
        del views
        refs = self.answering.end(request, True)
        self.worker.advance_status(Status.OK)
        self.worker.send(Response(seq, "echo", "ok", "", 1, refs))
        response = decode_response(self.controller.receive(0, never) or b"")
        for ref in response.tensors:
            self.asking.receive(ref, "numpy")
        self.asking.withdraw()
        self.answering.withdraw()
        self.worker.receive(0, never)

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


refs = st.builds(TensorRef, st.sampled_from(["a", "$0", "", 'q"']) | words, texts, st.integers(0, 2**63 - 1))
