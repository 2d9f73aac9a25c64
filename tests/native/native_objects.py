"""Native objects without a session, for the programs ``misused_….py``. ``python PROGRAM IMPLEMENTATION NAME`` runs
one misuse, and prints what came of it.

A misuse may raise any error that says what is wrong. It must not crash, hang, leak, or reach other memory.
"""

from __future__ import annotations

import importlib
import itertools
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import posix_ipc

from tr_mmap.protocol.named_values import pack
from tr_mmap.wire.messages import EMPTY_SLOT, RING_NBYTES, RING_SLOT_NBYTES, RING_SLOTS, RING_WORDS_NBYTES

EMPTY_RING = bytes(RING_WORDS_NBYTES) + RING_SLOTS * EMPTY_SLOT.encode().ljust(RING_SLOT_NBYTES)
OFFSET = 4096
NBYTES = 4 * OFFSET
FLOATS = ("float32", (4,), OFFSET)
STATUS_MIRROR, TAGS, DEATHS, REQUEST, REF, REPLY = 10, 12, 13, 14, 15, 16  # where they are in worker_arguments()
# and in controller_arguments()
POOL, MAPPED, HELD, ENDED, RESPONSE, CONSUMING, IN_FLIGHT, COUNTERS = 5, 6, 7, 9, 10, 14, 15, 20
REFUSALS = (
    *(TypeError, ValueError, LookupError, AttributeError, BufferError, OSError, OverflowError),
    RuntimeWarning,  # CPython's, for a number that an attribute of the extension has no room for
)

n: Any = importlib.import_module("tr_mmap.native." + ("_native" if sys.argv[1] == "compiled" else "reference"))
_number = itertools.count()


# -- objects that work -------------------------------------------------------------------------------------------------


def semaphore() -> Any:
    name = f"/tr_{os.getpid()}_{next(_number)}"
    posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600).close()
    made = n.Semaphore(name)
    posix_ipc.unlink_semaphore(name)
    return made


def memory(content: bytes = b"", nbytes: int = RING_NBYTES) -> memoryview:
    view = memoryview(mmap.mmap(-1, nbytes))
    view[: len(content)] = content
    return view


def mirror(shown: memoryview) -> Any:
    """Of a page, in a file that never appears."""
    return n.Mirror(shown, "/proc/nothing", b"exit")


def ring() -> Any:
    return n.Ring(memory(EMPTY_RING))


def endpoint() -> list[Any]:
    """The first arguments of both fast paths."""
    return [ring(), ring(), semaphore(), semaphore(), 1.0, n.FreeLists(), {}, [], (False, True)]


def traffic() -> list[Any]:
    """The last arguments of the controller's: there are no requests."""
    counters = n.Counters()
    counters.limit = RING_SLOTS
    return [n.TurnWords(), n.TurnWords(), {}, {}, {}, [], {}, counters, {}]


def controller_arguments() -> list[Any]:
    return [*endpoint(), [], lambda *fields: fields, pack, mirror(memory()), *traffic()]


class Ref:
    def __init__(self, tag: str, segment: str, seq: int) -> None:
        self.tag, self.segment, self.seq = tag, segment, seq


class Request:
    def __init__(self, seq: int, command: str, parameters: str, timestamp: int, refs: list[Any], *rest: Any) -> None:
        self.seq, self.command, self.parameters, self.timestamp, self.refs = seq, command, parameters, timestamp, refs
        self.drops, self.form = rest or ([], "")


class Reply:
    command = message = complaint = form = ""
    result: Any = "done"


class Server:
    def __init__(self, handle: Callable[[], object] = lambda: True) -> None:
        self.handle = handle

    def main_logic(self, command: str, parameters: str) -> object:
        self.seen = command, parameters
        return self.handle()

    named_logic = main_logic


def worker_arguments(reply: type = Reply) -> list[Any]:
    status = memory(b"ready\n  ", 4096)
    return [*endpoint(), status, mirror(status), [], {}, [], Request, Ref, reply, n.SentResults()]


def incoming(arguments: list[Any]) -> Any:
    """The peer's end of the ring that a fast path reads."""
    buffer = memory(EMPTY_RING)
    arguments[1] = n.Ring(buffer)
    return n.Ring(buffer)


def asked(arguments: list[Any], *, tensors: str = "") -> Any:
    """A worker's fast path that finds a request in its ring."""
    peer = incoming(arguments)
    path = n.WorkerFastPath(*arguments)
    peer.store(1, b'{"seq":1,"command":"run","timestamp":5%s}' % tensors.encode())
    return path


ANSWER = b',"command":"run","result":"x","timestamp":5}'


def answered(arguments: list[Any], response: bytes = ANSWER, seq: int = 1) -> tuple[Any, Any]:
    """A controller's fast path that finds a response in its ring; and the request that it answers."""
    peer = incoming(arguments)
    path = n.ControllerFastPath(*arguments)
    pending = arguments[IN_FLIGHT][seq] = n.Pending("run", "numpy")
    peer.store(seq, response)
    return path, pending


def call(path: Any, timeout_s: Any = 0, tensors: Any = ()) -> Any:
    """A request, and the wait for its answer."""
    return path.call("run", tensors, timeout_s, "numpy")


def owner() -> Any:
    return n.OwnerSegment(memory(nbytes=NBYTES))


def reader() -> Any:
    """Of a segment whose layout is number 1, and whose payload was published as number 5."""
    file = memory(nbytes=NBYTES)
    file.cast("Q")[9] = 1
    n.LeaseWords(file).stamp(5)
    made = n.ReaderSegment(file, file.toreadonly())
    made.set_layout(1, np.dtype("f4"), (4,), OFFSET)
    return made


def refusal(function: Callable[..., object], *arguments: Any) -> str:
    """The error's type, and the text."""
    try:
        result = function(*arguments)
    except REFUSALS as error:
        return f"{type(error).__name__}: {error}"
    return f"accepted: {result!r}"
