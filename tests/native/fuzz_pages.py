"""A fuzzer of what a hostile peer writes: another process changes the rings, the status page, and the headers and
payloads of segments, without pause, while both ends of a session read and write them, by the fast paths and by the slow
ones.

Whatever is there, an end says what is wrong, ignores it, or reads elements that lie in the segment. A crash, a hang, an
error of another kind or a report of a sanitizer is a fault.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_runs import run

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the tests' own modules

from fast_path_pair import Pair
from support import never

from tr_mmap import load
from tr_mmap.errors import TRException
from tr_mmap.protocol.messages import Response, decode_request, decode_response
from tr_mmap.protocol.status import Status
from tr_mmap.wire.messages import (
    MESSAGE_NUMBER_OFFSET,
    NUMBER_DIGITS,
    RING_SLOT_NBYTES,
    RING_SLOTS,
    RING_WORDS_NBYTES,
)

STEPS = 300  # of a round
TENSORS = (np.arange(8, dtype="f4"), np.arange(1024, dtype="f8"), np.zeros((0, 3), "i1"), np.ones((2, 3, 4), "i2"))
INTERESTING = (
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    16,
    17,
    255,
    4096,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
LINES = (
    b'{"seq":%d,"command":"run","parameters":"$0","timestamp":5,"tensors":[["$0","%s",%d]]}\n',
    b'{"seq":%d,"command":"run","result":"ok","timestamp":5,"tensors":[["$0","%s",%d]]}\n',
    b'{"seq":%d,"command":"\xff","message":"%s","timestamp":%d}\n',
    rb'{"seq":%d,"command":"run","parameters":"{\"x\":1}","timestamp":5,"tensors":[["$0","%s",%d]],"form":"named"}'
    + b"\n",
    rb'{"seq":%d,"command":"run","result":"\\\"","timestamp":5,"tensors":[["\"","%s",%d]],"form":"named"}' + b"\n",
    rb'{"seq":%d,"command":"\n","timestamp":5,"tensors":[["$0","%s",%d]],"drops":["$0","\\"]}' + b"\n",
    b'{"seq":%d,"spill":"%s","nbytes":%d}\n',
)
STATUSES = (b"ready\n  ", b"busy\n   ", b"ok\n     ", b"error\n  ", b"exit\n   ", b"\xff" * 8, bytes(8))


# -- the peer ----------------------------------------------------------------------------------------------------------


def _mapped(directory: str) -> list[tuple[str, mmap.mmap]]:
    """All that both sides map: names and memory."""
    found = []
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file() and path.suffix in (".ring", ".page", ".tsr") and path.stat().st_size:
            with path.open("r+b") as file:
                found.append((path.name, mmap.mmap(file.fileno(), 0)))
    return found


def _number_in(memory: mmap.mmap, slot: int) -> int:
    start = RING_WORDS_NBYTES + slot * RING_SLOT_NBYTES + MESSAGE_NUMBER_OFFSET
    with contextlib.suppress(ValueError):
        return int(memory[start : start + NUMBER_DIGITS])
    return 0


def _next_slot(memory: mmap.mmap) -> int:
    """The slot after that of the greatest number: the one that is taken next, unless numbers were changed."""
    return (max(range(RING_SLOTS), key=lambda slot: _number_in(memory, slot)) + 1) % RING_SLOTS


def _change_slot(source: random.Random, memory: mmap.mmap, slot: int, refs: list[tuple[bytes, int]]) -> None:
    start = RING_WORDS_NBYTES + slot * RING_SLOT_NBYTES
    if source.random() < 0.4:
        memory[start + 8 : start + 16] = b"%8d" % source.randrange(400)  # a number
        return
    number = source.choice([_number_in(memory, slot), _number_in(memory, slot - 1), 7])
    line = source.choice(LINES) % (number + source.randrange(2), *source.choice(refs))
    memory[start : start + len(line)] = line


def _change(source: random.Random, name: str, memory: mmap.mmap, refs: list[tuple[bytes, int]]) -> None:
    """One change of one file, of a kind that fits it or of any."""
    kind = source.randrange(8)
    if name.endswith(".ring") and kind < 5:
        slots = range(RING_SLOTS) if source.random() < 0.3 else [_next_slot(memory)]
        for slot in slots:
            _change_slot(source, memory, slot, refs)
    elif name == "status.page" and kind < 3:
        line = source.choice(LINES) % (7, *source.choice(refs))
        memory[: len(line)] = line
    elif name == "status.page" and kind < 6:
        memory[:8] = source.choice(STATUSES)
    elif kind < 6:
        start = 8 * source.randrange(min(512, len(memory) // 8))
        head = start if source.random() < 0.3 else source.choice([16, 24, 32, 56, 64, 72, 80, 88, 120, 128, 136])
        width = source.choice([4, 8])
        memory[head : head + width] = (source.choice(INTERESTING) % 2 ** (8 * width)).to_bytes(width, sys.byteorder)
    else:
        start = source.randrange(len(memory))
        part = source.randbytes(source.choice([1, 8, 100]))[: len(memory) - start]
        memory[start : start + len(part)] = part


def _be_hostile(directory: str, seed: int) -> None:
    source = random.Random(seed)
    parent = os.getppid()
    while True:
        files = _mapped(directory)
        pause_s = source.choice([0.00002, 0.0001, 0.0005, 0.002])
        for _ in range(100):
            if os.getppid() != parent:
                return
            refs = [(b"nobody.tsr", 5), (b"../x", 2**64 - 1), (b"", 0)]
            for name, memory in files:
                if name.endswith(".tsr"):
                    seq = int.from_bytes(memory[64:72], sys.byteorder)
                    refs += [(name.encode(), seq), (name.encode(), source.choice(INTERESTING))]
            name, memory = source.choice(files)
            with contextlib.suppress(ValueError):  # what stands where the number does is no number
                _change(source, name, memory, refs)
            time.sleep(pause_s)
        for _, memory in files:
            memory.close()


# -- the two ends ------------------------------------------------------------------------------------------------------


class Ends:
    def __init__(self, source: random.Random, directory: str) -> None:
        self.random = source
        self.directory = directory
        self.pair = Pair(directory)
        self.asked: list[Any] = []  # requests without an answer
        self.kept: list[Any] = []
        for tensor in TENSORS:
            self.pair.pass_by_slow_path((tensor,))
        self.pair.controller.set_spin(20.0)

    def tensors(self) -> tuple[Any, ...]:
        return tuple(self.random.choice(TENSORS) for _ in range(self.random.randrange(3)))

    def use(self, array: Any) -> None:
        """Read all of it, and keep it for a while."""
        if isinstance(array, np.ndarray):
            array.sum()
            self.kept.append(array)
            del self.kept[: -self.random.randrange(1, 6)]

    def ask(self) -> None:
        if len(self.asked) >= RING_SLOTS // 2:  # what a hostile peer has done to a ring leaves some without an answer
            self.pair.forget()
            self.asked.clear()
        message, tensors = self.random.choice(["run", "run $0"]), self.tensors()
        self.asked.append(self.pair.send(message, tensors) or self.pair.send_slowly(message, tensors))

    def handle(self, reply: Any) -> object:
        words, framework = self.random.choice(["$0", "$0 $1", "a"]), self.random.choice(["numpy", "torch"])
        for view in self.pair.worker_path.quick_fetch(words, framework) or []:
            self.use(view)
        if self.random.random() < 0.5:
            tensor = self.random.choice(TENSORS)
            if not self.pair.worker_path.quick_send(tensor):
                self.pair.answering.publish([tensor])
        reply.result = "done"
        return True

    def serve(self) -> None:
        with contextlib.suppress(OverflowError):  # the controller has sent more requests than there may be in flight
            self.pair.serve(self.handle)

    def serve_slowly(self) -> None:
        line = self.pair.worker.receive(0, never)
        if line is None:
            return
        request = decode_request(line)
        self.pair.answering.consumed(self.pair.worker.responses_consumed())
        self.pair.answering.begin(request)
        try:
            for ref in request.tensors:
                self.use(self.pair.answering.fetch(ref.tag, "numpy"))
            self.pair.answering.publish(list(self.tensors()))
        finally:
            refs = self.pair.answering.end(request, True)
        order = self.pair.worker.responses_sent
        self.pair.worker.send(Response(request.seq % 10**8, "run", "ok", "", 1, refs))
        self.pair.answering.responded(order)

    def receive(self) -> None:
        self.pair.hear()
        for pending in [each for each in self.asked if each.outcome is not None]:
            self.asked.remove(pending)
            for view in pending.outcome[1]:
                self.use(view)

    def receive_slowly(self) -> None:
        line = self.pair.answer()
        if line is None:
            return
        response = decode_response(line)
        pending = self.pair.in_flight.pop(response.seq, None)
        if pending is None:
            return
        self.asked.remove(pending)
        self.pair.asking.release(pending, None)
        for ref in response.tensors:
            self.use(self.pair.asking.receive(ref, "numpy"))

    def exchange(self) -> None:
        self.put_right()
        self.ask()
        self.serve()
        self.receive()

    def look(self) -> None:
        self.pair.controller.read_status()
        self.pair.controller.heartbeat_age_ms()
        self.pair.worker.is_exit_requested()
        self.pair.worker.has_message()
        self.pair.asking.stats()

    def put_right(self) -> None:
        self.pair.worker.write_status(self.random.choice([Status.READY, Status.OK]))
        self.pair.answering.withdraw()
        self.kept.clear()

    def load(self) -> None:
        path = self.random.choice([each for each in Path(self.directory).rglob("*.tsr") if each.is_file()])
        self.use(load(path))

    def step(self) -> None:
        steps: list[Callable[[], None]] = [self.ask, self.serve, self.receive, self.exchange, self.exchange] * 3
        steps += [self.serve_slowly, self.receive_slowly, self.look, self.put_right, self.put_right, self.load]
        try:
            self.random.choice(steps)()
        except TRException:
            pass


def play(source: random.Random) -> None:
    directory = os.path.abspath(f"pair-{source.randrange(10**9)}")
    os.mkdir(directory)
    ends = Ends(source, directory)
    peer = os.fork()
    if peer == 0:
        try:
            _be_hostile(directory, source.randrange(10**9))
        finally:
            os._exit(1)
    try:
        for _ in range(STEPS):
            ends.step()
    finally:
        os.kill(peer, signal.SIGKILL)
        os.waitpid(peer, 0)
        ends.kept.clear()
        ends.pair.close()


if __name__ == "__main__":
    sys.exit(run(play))
