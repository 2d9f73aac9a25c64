"""The interface of the peers that the benchmark compares, and how their workers are started.

The semantics are the same for all: the client has ``x``, a float32 array in its own memory; the worker makes ``x + 1``
by one pass from what it received into the memory that it answers from; the client reads the first and the last element
of the answer where it arrived. What a library copies beyond that is its own doing.

Loaned peers leave those two passes out, because they have no copies to measure: client and worker ask for shared
memory, write and read its first and last elements there, and hand it over. What is left is the transport itself.
"""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar, Final

import numpy as np

__all__ = [
    "FULL_PASS",
    "JOIN_S",
    "Array",
    "LoanedPeer",
    "Peer",
    "TimedPeer",
    "answer_ends",
    "end_with_parent",
    "missing",
    "spawn",
]

Array = np.ndarray[Any, Any]

JOIN_S: Final = 3.0
FULL_PASS: Final = np.float32(-7.0)  # in element 1 of a loaned request: compute all of x + 1, for the check of a size
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class Peer(ABC):
    """One way of asking another process for ``x + 1``.

    Attributes:
        key: what ``--only`` and the results call it.
        label: what people read.
        is_loaned: whether it measures the hand-over alone.
        is_floor: whether it is no library but the least that any could take.
        payloads: copies of the payload that both its processes hold at once, beyond ``x``; for planning memory.
        note: what a reader has to know to judge its figures; may be empty.
    """

    key: ClassVar[str]
    label: ClassVar[str]
    is_loaned: ClassVar[bool] = False
    is_floor: ClassVar[bool] = False
    payloads: ClassVar[int] = 2
    note: ClassVar[str] = ""

    def unavailable(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        return None

    @abstractmethod
    def start(self, max_nbytes: int) -> None:
        """Start the worker; returns when it can answer requests of up to so many bytes."""

    @abstractmethod
    def roundtrip(self, x: Array) -> Array:
        """Ask for ``x + 1``. The answer need be valid until :meth:`release` only."""

    def release(self) -> None:  # noqa: B027 - most have nothing to do
        """The client has read the answer and holds no view of it."""

    @abstractmethod
    def close(self) -> None:
        """End the worker and remove all that it left. Also after a start that failed half way."""


class LoanedPeer(Peer):
    """A peer that lends shared memory; :meth:`roundtrip` sends a loan that the client has filled in place."""

    is_loaned = True

    @abstractmethod
    def loan(self, count: int) -> Array:
        """Shared memory for a request of ``count`` float32; :meth:`roundtrip` sends it."""


class TimedPeer(Peer):
    """A peer whose client is a program of its own, in another language: it takes the times itself, batch by batch."""

    @abstractmethod
    def check(self, count: int) -> int:
        """Ask for ``x + 1`` over ``count`` float32 and compare every element; nanoseconds that the round trip took."""

    @abstractmethod
    def measure(self, count: int, most: int, quota_s: float) -> list[int]:
        """Nanoseconds of each of at least one and at most ``most`` round trips, begun before the time was over."""

    def roundtrip(self, x: Array) -> Array:  # noqa: ARG002
        raise TypeError(f"{self.label} is not measured from here")


def answer_ends(x: Array, out: Array) -> None:
    """A loaned worker's computation: the ends, or everything if the request says so."""
    if x[1] == FULL_PASS:
        np.add(x, 1, out=out)
    else:
        out[0] = x[0] + 1
        out[-1] = x[-1] + 1


def missing(*modules: str) -> str | None:
    """Why a peer that needs these packages is absent."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            return f"not installed: {module}"
    return None


def spawn(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Run a worker in a new interpreter that does not outlive this one."""
    process = multiprocessing.get_context("spawn").Process(target=_enter, args=(target, *arguments), daemon=True)
    process.start()
    return process


def end(process: BaseProcess | None) -> None:
    """Wait for a worker that was told to end, and end it if it does not."""
    if process is None:
        return
    process.join(JOIN_S)
    if process.is_alive():
        process.kill()
        process.join()


def end_with_parent() -> None:
    """Let the kernel end this process when the one that started it has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _enter(target: Callable[..., None], *arguments: Any) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's to handle
    target(*arguments)
