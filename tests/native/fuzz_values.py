"""What the fuzzer of the native objects calls them with: what fits, what does not, and objects that call again."""

from __future__ import annotations

import array
import contextlib
import ctypes
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from native_objects import EMPTY_RING, FLOATS, NBYTES, OFFSET, Server, memory, n

__all__ = ["MESSAGES", "NUMBERS", "Callback", "Values"]

MESSAGES = (
    b'{"seq":1,"command":"run","parameters":"a $0","timestamp":5,"tensors":[["a","s",5],["$0","s",5]]}',
    b'{"seq":2,"command":"run","result":"done","message":"m","timestamp":5,"tensors":[["","s",5]]}',
    b'{"seq":3,"command":"\xff","timestamp":5}',
    rb'{"seq":5,"command":"run","parameters":"{\"x\":{\"tensor\":0}}","timestamp":5,"tensors":[["$0","s",5]],"form":"named"}',
    rb'{"seq":6,"command":"r\n\t\\n","timestamp":5,"drops":["a","\"","$0"]}',
    rb'{"seq":7,"command":"run","result":"{\"x\":1}","timestamp":5,"form":"named"}',
    b'{"seq":4}',
)
NUMBERS = (
    *(0, 1, 2, 3, 4, 5, -1, 8, 16, 4096, 4097, NBYTES, 65536),
    *(2**31, 2**32, 2**62, 2**63 - 1, -(2**63), 2**64, 2**70),
)
FITTING = {
    "send": "pending tensors",
    "call": "text tensors time framework",
    "advance": "seq seq",
    "add": "seq list",
    "release": "seq",
    "has_stored": "seq",
    "cancel": "seq",
    "withdraw": "seq",
    "is_withdrawn": "seq",
    "serve": "server",
    "quick_fetch": "text framework",
    "quick_send": "tensors",
    "store": "seq bytes",
    "set_layout": "layout dtype",
    "restore": "seq list",
    "view": "seq whole",
    "quick_publish": "tensor list seq",
    "quick_loan": "shape text framework",
    "acquire": "seq",
    "stamp": "seq",
    "write": "bytes time",
    "set_mirrors": "mirrors",
    "set_spin": "time",
    "copy": "buffer offset buffer",
    "freeze": "tensor",
    "loan_of": "tensor",
    "has_as_many_colons": "bytes shape",
    "set_member": "whole line truth",
}  # what some methods take


class Callback:
    """Whatever Python's code can be called by: each call makes another step first."""

    def __init__(self, world: Values) -> None:
        self._world = world

    def _again(self) -> Any:
        self._world.step()
        return self._world.value()

    def __call__(self, *_: Any) -> Any:
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


class Values:
    """Makes values, from the objects and the lists that there are.

    Attributes:
        random: chooses.
        objects: whatever calls have returned, and what there was at first.
        lists: lists and dicts that native objects use.
    """

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.objects: list[Any] = []
        self.lists: list[Any] = []

    def step(self) -> None:
        """Do something, in the middle of something else."""
        raise NotImplementedError

    def buffer(self) -> Any:
        made: list[Callable[[], Any]] = [
            lambda: memory(self.random.choice([b"", *MESSAGES]), NBYTES),
            lambda: memory(self.random.choice([b"", EMPTY_RING])),
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

    def _of(self, kind: type) -> list[Any]:
        return [each for each in self.objects if isinstance(each, kind)]

    def fitting(self, kind: str) -> Any:
        made: dict[str, Callable[[], Any]] = {
            "seq": lambda: self.random.choice([1, 2, 3, 5, 99999999]),
            "pending": lambda: self.random.choice([n.Pending("run", "numpy"), *self._of(n.Pending)]),
            "framework": lambda: self.random.choice([None, "numpy", "torch"]),
            "text": lambda: self.random.choice(["run", "run a", "$0", "a", "a $0", "float32"]),
            "bytes": lambda: self.random.choice(MESSAGES),
            "time": lambda: self.random.choice([0, 0.0, 0.001]),
            "tensors": lambda: self.random.choice(
                [tuple(self.tensor() for _ in range(self.random.randrange(3))), ({"x": self.tensor(), "y": 'q"'},)]
            ),
            "tensor": lambda: self.random.choice([self.tensor(), *(o for o in self.objects if type(o) is np.ndarray)]),
            "list": lambda: self.random.choice([[], *(each for each in self.lists if isinstance(each, list))]),
            "layout": lambda: self.random.choice([FLOATS, ("float32", (2, 2), 4096), ("float32", (), 8192)]),
            "dtype": lambda: np.dtype(self.random.choice(["f4", "f4", "f8"])),
            "shape": lambda: self.random.choice([(4,), (2, 2), (), (0,), 4]),
            "offset": lambda: self.random.choice([0, 4096, 8192, NBYTES - 16]),
            "server": lambda: Server(Callback(self)),
            "line": lambda: self.random.choice([0, 1, 55, 56, -1, None]),
            "truth": lambda: self.random.choice([True, False, Callback(self)]),
            "mirrors": lambda: tuple(self._of(n.Mirror)),
            "buffer": self.buffer,
            "whole": lambda: memory(nbytes=NBYTES),
        }
        return made[kind]()
