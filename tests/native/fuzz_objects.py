"""A fuzzer of the native objects: random calls with arguments that fit and arguments that do not, in any order, with
callbacks that call again, lists that shrink meanwhile, odd buffers, and signal handlers that do all of it.

Any error is allowed that an ordinary call may raise. A crash, a hang or a report of a sanitizer is a fault.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import time
from collections import deque
from typing import Any

import native_objects
import numpy as np
from fuzz_runs import run
from fuzz_values import MESSAGES, Callback, Values
from native_objects import (
    DEATHS,
    EMPTY_RING,
    ENDED,
    FLOATS,
    NBYTES,
    REFUSALS,
    Ref,
    Reply,
    Request,
    Server,
    controller_arguments,
    memory,
    mirror,
    n,
    owner,
    reader,
    traffic,
    worker_arguments,
)

from tr_mmap.wire.messages import RING_SLOT_NBYTES, RING_SLOTS, RING_WORDS_NBYTES

STEPS = 400  # of a round
DEPTH = 3  # most callbacks inside each other
STEP_S = 0.02  # what lasts longer, as a wait may, is ended by a signal handler that raises
RESULTS = 60  # most objects that a round keeps of what calls have returned
semaphore = native_objects.semaphore
KINDS = (n.Semaphore, n.LeaseWords, n.OwnerSegment, n.ReaderSegment, n.Ring, n.FreeLists, n.Mirror, n.Heartbeat)
PLAIN = (n.Pending, n.TurnWords, n.Counters, n.SentResults)
HIDDEN = {"map_file", "wait", "sleep", "drain"}  # called with bounds, below; the last does nothing


class Stopped(Exception):
    """A step took too long."""


class World(Values):
    """The objects of one round, and the steps that change them."""

    def __init__(self, source: random.Random) -> None:
        super().__init__(source)
        self.depth = 0
        self.began_s = time.monotonic()
        self.deaths: list[int] = [1]
        pool, mapped, held, tags, by_hand = n.FreeLists(), {"s": reader()}, [], {}, []
        sending, receiving, status = memory(EMPTY_RING), memory(EMPTY_RING), memory(b"ready\n  ", 4096)
        shown = mirror(status)
        ends = [[n.Ring(sending), n.Ring(receiving)], [n.Ring(receiving), n.Ring(sending)]]
        bells = [semaphore(), semaphore()]
        # No others are made: a signal handler that raised would leave a name in the system.
        native_objects.semaphore = lambda: self.random.choice(bells)  # type: ignore[assignment]
        common = [0.001, pool, mapped, held, (False, True)]
        asked = traffic()
        pack = self.random.choice([native_objects.pack, native_objects.pack, Callback(self)])
        asking = [*ends[0], *bells, *common, self.deaths, lambda *fields: fields, pack, shown, *asked]
        self.paths = [n.ControllerFastPath(*asking)]
        server = [status, shown, by_hand, tags, self.deaths, Request, Ref, Reply, n.SentResults()]
        self.paths.append(n.WorkerFastPath(*ends[1], *bells, *common, *server))
        segment = owner()
        segment.set_layout(FLOATS, np.dtype("f4"))
        segment.requested_dtype, segment.pool_token, segment.name = "float32", pool.pool_token, "s"
        segment.is_header_current, segment.free_list = True, pool.free.setdefault(4096, [])
        segment.restore(0, segment.free_list)
        self.lists += [held, by_hand, tags, mapped, self.deaths, pool.free, pool.to_retire, pool.viewed]
        self.lists += [segment.free_list, *asked[2:7]]
        self.status, self.rings = status, [(sending, ends[1][1]), (receiving, ends[0][1])]  # each with its reader
        tags["a"] = Ref("a", "s", 5)
        asked[3].update(a=5, gone=0)
        asked[4]["a"] = segment
        for seq in range(1, 5):
            pending = asked[2][seq] = n.Pending("run", "numpy")
            pending.on_done = Callback(self)
        self.objects += [asked[0], asked[1], asked[-2], server[-1], *asked[2].values()]
        self.objects += [*self.paths, *ends[0], *ends[1], *bells, pool, segment, mapped["s"], shown]
        self.objects += [n.LeaseWords(memory()), n.Heartbeat(status), n.Mirror(status, "mirror.txt", b"exit")]
        self.objects += [segment.loan(), mapped["s"].view(5)]
        self.objects += [kind.__new__(kind) for kind in (*KINDS, *PLAIN, n.ControllerFastPath, n.WorkerFastPath)]
        self.functions = [getattr(n, name) for name in dir(n) if callable(getattr(n, name)) and name not in HIDDEN]
        self.fd = os.memfd_create("fuzz")
        os.truncate(self.fd, NBYTES)

    def close(self) -> None:
        os.close(self.fd)
        self.depth = DEPTH  # destructors do no more
        self.__dict__.update(objects=[], lists=[], paths=[])

    # -- steps -----------------------------------------------------------------------------------------------------

    def keep(self, made: Any) -> None:
        if made is None or isinstance(made, (bool, int, float, str, bytes)):
            return
        if len(self.objects) >= RESULTS:
            self.objects.pop(self.random.randrange(len(self.objects)))
        self.objects.append(made)

    def target(self) -> Any:
        """A native object, of each type as often."""
        native = [each for each in self.objects if type(each).__module__ == "tr_mmap.native"]
        kind = self.random.choice(sorted({type(each) for each in native}, key=repr))
        return self.random.choice([each for each in native if type(each) is kind])

    def call(self) -> None:
        target = self.target()
        name = self.random.choice([name for name in dir(type(target)) if name[0] != "_"])
        kind = self.random.randrange(12)
        if kind == 0:
            setattr(target, name, self.value())
        elif kind == 1:
            delattr(target, name)
        attribute = getattr(target, name)
        if self.random.random() < 0.9:
            self.deaths[:] = [1]  # so that few calls wait
        if callable(attribute) and name not in HIDDEN:
            self.keep(attribute(*self.arguments(name)))
        elif not callable(attribute):
            self.keep(attribute)

    def wait(self) -> None:
        target = self.target()
        if isinstance(target, n.Semaphore):
            target.wait(self.random.choice([0, 0.001, -1, Callback(self)]))
        elif isinstance(target, n.Ring):
            target.sleep(
                self.target(),
                self.random.choice([0, 0.002]),
                self.random.choice([0.001, Callback(self)]),
                Callback(self),
            )

    def use_function(self) -> None:
        function = self.random.choice(self.functions)
        self.keep(function(*self.arguments(function.__name__)))

    def make(self) -> None:
        kind, count = self.random.choice(KINDS + PLAIN), self.random.randrange(4)
        arguments = [self.buffer() if self.random.random() < 0.7 else self.value() for _ in range(count)]
        if self.random.random() < 0.3:
            target = self.target()
            type(target).__init__(target, *arguments)
        self.keep(kind(*arguments))

    def make_path(self) -> None:
        kind, made = self.random.choice(
            [
                (n.ControllerFastPath, controller_arguments()),
                (n.WorkerFastPath, worker_arguments()),
            ]
        )
        deaths = made[DEATHS if kind is n.WorkerFastPath else ENDED]
        deaths += [1] if kind is n.WorkerFastPath else []  # so that no call waits
        for _ in range(self.random.randrange(3)):
            place = self.random.randrange(len(made))
            alike = [each for each in self.objects if type(each) is type(made[place])]
            made[place] = self.random.choice(alike) if alike and self.random.random() < 0.7 else self.value()
        path = kind(*made)
        self.keep(path)
        if kind is n.ControllerFastPath:
            path.send(n.Pending("run", "numpy"), (self.tensor(),) * self.random.randrange(2))
            deaths.append(1)

    def map_file(self) -> None:
        nbytes = self.random.choice([0, 1, 4096, NBYTES, -1, 2**62, 2**63 - 1])
        offset = self.random.choice([0, 0, 0, 1, -4096, 2**62])
        mapped = n.map_file(self.fd, nbytes, offset, self.random.random() < 0.5, self.random.random() < 0.5)
        if offset + nbytes <= NBYTES:  # what is mapped beyond the file's end is SIGBUS for whoever touches it
            self.keep(mapped)

    def change_container(self) -> None:
        target = self.random.choice(self.lists)
        key = self.random.choice(["a", "s", "$0", 4096, Callback(self)])
        if self.random.random() < 0.2:
            target.clear()
        elif isinstance(target, dict):
            if self.random.random() < 0.5:
                target.pop(key, None)
            else:
                target[key] = self.value()
        elif target and self.random.random() < 0.5:
            del target[self.random.randrange(len(target)) :]
        else:
            target.insert(self.random.randrange(len(target) + 1), self.value())

    def write_page(self) -> None:
        """Into the slot that is taken next, or on the status page."""
        page, line = self.status, self.random.choice(MESSAGES)
        if self.random.random() < 0.7:
            buffer, reading = self.random.choice(self.rings)
            page = buffer[RING_WORDS_NBYTES + reading.taken % RING_SLOTS * RING_SLOT_NBYTES :]
        at = self.random.randrange(64)
        if self.random.random() < 0.5:
            page[: len(line)] = line
        else:
            page[at : at + 8] = self.random.choice(
                [b"ready\n  ", b"exit\n   ", b"busy\n   ", b'"}]\n    ', self.random.randbytes(8)]
            )

    def request(self) -> None:
        """What the fast paths are for, now and then."""
        self.deaths[:] = [1] if self.random.random() < 0.5 else []
        asking, answering = self.paths
        pending = n.Pending(self.random.choice(["run", "run a", "run $0 a"]), self.random.choice([None, "numpy", "x"]))
        pending.on_done = self.random.choice([None, Callback(self)])
        tensors = tuple(self.tensor() for _ in range(self.random.randrange(3)))
        asking.send(pending, tensors)
        self.deaths.append(1)
        self.keep(answering.serve(Server(Callback(self))))
        self.keep(answering.quick_fetch(self.random.choice(["a", "$0 a", "a,b", " a "]), "numpy"))
        self.keep(answering.quick_send(self.random.choice([tensors, self.tensor()])))
        self.keep(asking.consume())
        self.keep(asking.call("run", tensors, 0, "numpy"))

    def collect(self) -> None:
        if self.random.random() < 0.1:
            gc.collect()
        if self.objects and self.random.random() < 0.5:
            self.objects.pop(self.random.randrange(len(self.objects)))

    STEPS = (call,) * 12 + (use_function, make, make_path, map_file, wait, collect) * 2 + (
        (change_container, write_page, request) * 4
    )  # fmt: skip

    def step(self) -> None:
        if self.depth >= DEPTH or not self.objects:
            return
        if self.depth == 0:
            self.began_s = time.monotonic()
        self.depth += 1
        try:
            self.random.choice(self.STEPS)(self)
        except Stopped:
            if self.depth > 1:
                raise
        except (*REFUSALS, MemoryError, RuntimeError):  # not SystemError: it says that a call broke Python's rules
            pass
        finally:
            self.depth -= 1

    def interrupt(self, *_: object) -> None:
        """The signal handler: another step in the middle of one, or the end of one that waits."""
        if self.depth and time.monotonic() - self.began_s > STEP_S:
            raise Stopped
        if self.depth and self.random.random() < 0.2:
            self.step()


def play(source: random.Random) -> None:
    world = World(source)
    sys.unraisablehook = deque(maxlen=0).append  # destructors raise, as they should; this one of C is not interrupted
    signal.signal(signal.SIGALRM, world.interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.002)
    try:
        for _ in range(STEPS):
            world.depth = 0  # the handler may have raised before a step could count down
            with contextlib.suppress(Stopped):
                world.step()
    finally:
        while signal.getitimer(signal.ITIMER_REAL)[0]:
            with contextlib.suppress(Stopped):
                signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        world.close()
        gc.collect()


if __name__ == "__main__":
    sys.exit(run(play))
