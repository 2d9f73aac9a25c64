"""A fuzzer of the native objects: random calls with arguments that fit and arguments that do not, in any order, with
callbacks that call again, lists that shrink meanwhile, odd buffers, and signal handlers that do all of it.

Any error is allowed that an ordinary call may raise. A crash, a hang or a report of a sanitizer is a fault.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from fuzz_runs import run
from native_objects import (
    BLANK_PAGE,
    FLOATS,
    NBYTES,
    OFFSET,
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
    semaphore,
    worker_arguments,
)

STEPS = 400  # of a round
DEPTH = 3  # most callbacks inside each other
STEP_S = 0.02  # what lasts longer, as a wait may, is ended by a signal handler that raises
RESULTS = 60  # most objects that a round keeps of what calls have returned
MESSAGES = (
    b'{"seq":1,"command":"run","parameters":"a $0","timestamp":5,"tensors":[["a","s",5],["$0","s",5]]}',
    b'{"seq":2,"command":"run","result":"done","message":"m","timestamp":5,"tensors":[["","s",5]]}',
    b'{"seq":3,"command":"\xff","timestamp":5}',
    b'{"seq":4}',
)
NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    5,
    -1,
    8,
    16,
    4096,
    4097,
    NBYTES,
    65536,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    -(2**63),
    2**64,
    2**70,
)
FITTING = {
    "send": "seq text tensors",
    "call": "seq text tensors time",
    "receive": "seq time",
    "serve": "server",
    "quick_fetch": "text",
    "store": "seq bytes",
    "set_layout": "layout dtype",
    "restore": "seq list",
    "view": "seq whole",
    "quick_publish": "tensor list seq",
    "quick_loan": "shape text",
    "acquire": "seq",
    "stamp": "seq",
    "write": "bytes time",
    "set_mirrors": "mirrors",
    "set_spin": "time",
    "copy": "buffer offset buffer",
    "freeze": "tensor",
    "loan_of": "tensor",
    "has_as_many_colons": "bytes shape",
}  # what some methods take
HIDDEN = {"map_file", "wait", "drain"}  # called with bounds, below; the last does nothing


class Stopped(Exception):
    """A step took too long."""


class Callback:
    """Whatever Python's code can be called by: each call makes another step first."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _again(self) -> Any:
        self._world.step()
        return self._world.value()

    def __call__(self, *arguments: Any) -> Any:
        return self._again()

    def __index__(self) -> int:
        self._again()
        return self._world.random.choice(NUMBERS)

    def __float__(self) -> float:
        self._again()
        return self._world.random.choice([0.0, 1e-3, -1.0, float("nan"), float("inf"), 1e300])

    def __bool__(self) -> bool:
        self._again()
        return self._world.random.random() < 0.5

    def __fspath__(self) -> str:
        self._again()
        return self._world.random.choice(["file", "", "no/file", "\ud800", "x" * 5000])

    def __buffer__(self, flags: int) -> memoryview:  # from Python 3.12 on
        self._again()
        return memory(nbytes=NBYTES)

    def __hash__(self) -> int:
        self._again()
        return 1

    def __eq__(self, other: object) -> bool:
        self._again()
        return self._world.random.random() < 0.5

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._again()

    release = main_logic = __call__

    @property
    def segment(self) -> Any:
        return self._again()

    seq = command = parameters = result = message = complaint = segment


class World:
    """The objects of one round, and the steps that change them."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.depth = 0
        self.objects: list[Any] = []
        self.began_s = time.monotonic()
        self.deaths: list[int] = [1]
        pool, mapped, held, tags, by_hand = n.FreeLists(), {"s": reader()}, [], {}, []
        sending, receiving, status = memory(BLANK_PAGE), memory(BLANK_PAGE), memory(b"ready\n  ", 4096)
        shown = mirror(status)
        ends = [[n.MessagePage(sending), n.MessagePage(receiving)], [n.MessagePage(receiving), n.MessagePage(sending)]]
        bells = [semaphore(), semaphore()]
        common = [0.001, pool, mapped, held]
        arguments = [*ends[0], *bells, *common, self.deaths, self, shown]
        self.paths = [n.ControllerFastPath(*arguments[:9], lambda *fields: fields, shown)]
        server = [status, shown, by_hand, tags, self.deaths, Request, Ref, Reply]
        self.paths.append(n.WorkerFastPath(*ends[1], *bells, *common, *server))
        segment = owner()
        segment.set_layout(FLOATS, np.dtype("f4"))
        segment.requested_dtype, segment.pool_token, segment.name = "float32", pool.pool_token, "s"
        segment.is_header_current, segment.free_list = True, pool.free.setdefault(4096, [])
        segment.restore(0, segment.free_list)
        self.lists: list[Any] = [held, by_hand, tags, mapped, self.deaths, pool.free, pool.to_retire, pool.viewed]
        self.lists.append(segment.free_list)
        self.pages = [sending, receiving, status]
        tags["a"] = Ref("a", "s", 5)
        self.objects += [
            *self.paths,
            *ends[0],
            *ends[1],
            *bells,
            pool,
            segment,
            mapped["s"],
            shown,
            n.LeaseWords(memory()),
        ]
        self.objects += [
            n.Heartbeat(status),
            n.Mirror(status, "mirror.txt", b"exit"),
            segment.loan(),
            mapped["s"].view(5),
        ]
        kinds = (
            n.ControllerFastPath,
            n.FreeLists,
            n.OwnerSegment,
            n.ReaderSegment,
            n.MessagePage,
            n.Mirror,
            n.Semaphore,
        )
        self.objects += [kind.__new__(kind) for kind in (*kinds, n.WorkerFastPath, n.LeaseWords, n.Heartbeat)]
        self.functions = [getattr(n, name) for name in dir(n) if callable(getattr(n, name)) and name not in HIDDEN]
        self.fd = os.memfd_create("fuzz")
        os.truncate(self.fd, NBYTES)

    def close(self) -> None:
        os.close(self.fd)
        self.depth = DEPTH  # destructors do no more
        self.__dict__.update(objects=[], lists=[], paths=[])

    # -- values ----------------------------------------------------------------------------------------------------

    def buffer(self) -> Any:
        made: list[Callable[[], Any]] = [
            lambda: memory(self.random.choice([b"", BLANK_PAGE, *MESSAGES]), NBYTES),
            lambda: memory(nbytes=4096)[self.random.randrange(16) :],
            lambda: memory(nbytes=4096).toreadonly(),
            lambda: memory(nbytes=8192).cast("Q")[:: self.random.choice([1, 2, -1])],
            lambda: bytearray(self.random.choice(NUMBERS[:12]) % 8192),
            lambda: array.array("d", [0.0] * 64),
            lambda: (ctypes.c_char * 128)(),
            lambda: np.zeros((4, 4), self.random.choice(["f4", "i8", "O", "S3", "V16"])),
            lambda: np.zeros((8, 512), "f4")[:, :: self.random.choice([1, 2, -1])],
            lambda: b"x" * self.random.choice([0, 1, 15, 16, 128, 5000]),
        ]
        return self.random.choice(made)()

    def tensor(self) -> Any:
        shape = self.random.choice([(4,), (4,), (2, 2), (0,), (), (1,) * 16, (30000,), (5,)])
        return np.ones(shape, self.random.choice(["f4", "f4", "f8", "i1"]))

    def value(self) -> Any:
        made: list[Callable[[], Any]] = [
            lambda: self.random.choice(NUMBERS),
            lambda: self.random.choice([None, True, False, 0.0, 0.001, -1.0, float("nan"), float("inf"), 1e300]),
            lambda: self.random.choice(["", "a", "$0", "run", "run a", "s", "\ud800", "grüß", 'q"', "x" * 5000]),
            lambda: self.random.choice([b"", b"x", *MESSAGES]),
            lambda: self.random.choice([(), (4,), (2, 2), (-1,), (2**62, 2**62), (0, 2**63 - 1), ("x",), (4,) * 17]),
            lambda: self.random.choice(
                [FLOATS, ("f4", (-4,), OFFSET), ("f4", (4,), -1), (1, 2, 3), ("f4", (4,), 2**63)]
            ),
            lambda: np.dtype(self.random.choice(["f4", "f8", "O", "V0", "S0", "(2,)f4", "i1"])),
            lambda: Callback(self),
            lambda: Server(Callback(self)),
            lambda: tuple(self.tensor() for _ in range(self.random.randrange(4))),
            self.tensor,
            self.buffer,
            lambda: self.random.choice(self.objects) if self.objects else None,
            lambda: self.random.choice(self.objects) if self.objects else None,
            lambda: self.random.choice(self.lists) if self.lists else None,
            lambda: [self.random.choice(NUMBERS[:4])] * self.random.randrange(3),
        ]
        return self.random.choice(made)()

    def arguments(self, name: str) -> list[Any]:
        """Of a call: mostly such as the method takes."""
        if self.random.random() < 0.3 or name not in FITTING:
            return [self.value() for _ in range(self.random.choice([0, 1, 1, 2, 2, 3, 4, 5]))]
        return [self.value() if self.random.random() < 0.15 else self.fitting(kind) for kind in FITTING[name].split()]

    def fitting(self, kind: str) -> Any:
        made: dict[str, Callable[[], Any]] = {
            "seq": lambda: self.random.choice([1, 2, 3, 5, 99999999]),
            "text": lambda: self.random.choice(["run", "run a", "$0", "a", "a $0", "float32"]),
            "bytes": lambda: self.random.choice(MESSAGES),
            "time": lambda: self.random.choice([0, 0.0, 0.001]),
            "tensors": lambda: tuple(self.tensor() for _ in range(self.random.randrange(3))),
            "tensor": lambda: self.random.choice([self.tensor(), *(o for o in self.objects if type(o) is np.ndarray)]),
            "list": lambda: self.random.choice([[], *(each for each in self.lists if isinstance(each, list))]),
            "layout": lambda: self.random.choice([FLOATS, ("float32", (2, 2), 4096), ("float32", (), 8192)]),
            "dtype": lambda: np.dtype(self.random.choice(["f4", "f4", "f8"])),
            "shape": lambda: self.random.choice([(4,), (2, 2), (), (0,), 4]),
            "offset": lambda: self.random.choice([0, 4096, 8192, NBYTES - 16]),
            "server": lambda: Server(Callback(self)),
            "mirrors": lambda: tuple(each for each in self.objects if isinstance(each, n.Mirror)),
            "buffer": self.buffer,
            "whole": lambda: memory(nbytes=NBYTES),
        }
        return made[kind]()

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
        elif isinstance(target, n.MessagePage):
            target.wait(
                self.target(),
                self.random.choice([0, 0.002]),
                self.random.choice([0.001, Callback(self)]),
                Callback(self),
            )

    def use_function(self) -> None:
        function = self.random.choice(self.functions)
        self.keep(function(*self.arguments(function.__name__)))

    def make(self) -> None:
        kinds = [
            n.Semaphore,
            n.LeaseWords,
            n.OwnerSegment,
            n.ReaderSegment,
            n.MessagePage,
            n.FreeLists,
            n.Mirror,
            n.Heartbeat,
        ]
        kind = self.random.choice(kinds)
        arguments = [
            self.buffer() if self.random.random() < 0.7 else self.value() for _ in range(self.random.randrange(4))
        ]
        if self.random.random() < 0.3:
            target = self.target()
            type(target).__init__(target, *arguments)
        self.keep(kind(*arguments))

    def make_path(self) -> None:
        kind, made = self.random.choice(
            [
                (n.ControllerFastPath, [*controller_arguments(), mirror(self.pages[2])]),
                (n.WorkerFastPath, worker_arguments()),
            ]
        )
        deaths = made[12 if kind is n.WorkerFastPath else 8]
        deaths += [1] if kind is n.WorkerFastPath else []  # so that no call waits
        for _ in range(self.random.randrange(3)):
            place = self.random.randrange(len(made))
            alike = [each for each in self.objects if type(each) is type(made[place])]
            made[place] = self.random.choice(alike) if alike and self.random.random() < 0.7 else self.value()
        path = kind(*made)
        self.keep(path)
        if kind is n.ControllerFastPath:
            path.send(1, "run", (self.tensor(),) * self.random.randrange(2))
            deaths.append(1)

    def map_file(self) -> None:
        nbytes = self.random.choice([0, 1, 4096, NBYTES, -1, 2**62, 2**63 - 1])
        offset = self.random.choice([0, 0, 0, 1, -4096, 2**62])
        self.keep(n.map_file(self.fd, nbytes, offset, self.random.random() < 0.5, self.random.random() < 0.5))

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
        page, line = self.random.choice(self.pages), self.random.choice(MESSAGES)
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
        seq = self.random.choice([1, 2, 3, 99999999])
        tensors = tuple(self.tensor() for _ in range(self.random.randrange(3)))
        asking.send(seq, self.random.choice(["run", "run a", "run $0 a"]), tensors)
        self.deaths.append(1)
        self.keep(answering.serve(Server(Callback(self))))
        self.keep(answering.quick_fetch(self.random.choice(["a", "$0 a", "a,b", " a "])))
        self.keep(asking.receive(seq, 0))

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
        except (Exception, RecursionError):
            pass
        finally:
            self.depth -= 1

    def interrupt(self, number: int, frame: object) -> None:
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
