"""The interface of a transfer, for each side. Moves no message.

A controller's side is not safe for threads: its session holds a lock. A worker's side has a lock of its own, for a
handler may have threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from typing import Any

from ..native import TensorParts
from ..protocol.messages import Request, Response, TensorRef
from ..shm.pool import PoolStats

__all__ = ["ControllerTransfer", "WorkerTransfer"]

QuickLoan = Callable[[Any, Any], Any]


def _no_loan(shape: Any, dtype: Any) -> Any:  # noqa: ARG001
    return None


class WorkerTransfer(ABC):
    """The worker's side. For each request: ``begin``, any number of ``fetch`` and ``publish``, ``end``.

    Attributes:
        tags: what names a tensor now.
        results: what was published since ``begin``.
        quick_loan: the fast path of ``empty`` for numpy: an array for a shape and a dtype, or None if the slow path is
            needed.
    """

    tags: Container[str]
    results: list[TensorRef]
    quick_loan: QuickLoan = staticmethod(_no_loan)

    @abstractmethod
    def begin(self, request: Request) -> None:
        """A request is there, so the last answer was taken; these tags are new or gone."""

    @abstractmethod
    def fetch(self, tag: str, framework: str) -> Any:
        """The tensor of a tag.

        Raises:
            MissingTag: there is none.
            StaleTensor, TSRFormatError: what is there is not it.
        """

    @abstractmethod
    def publish(self, tensors: Sequence[Any]) -> None:
        """Add tensors to the results.

        Raises:
            UnsupportedTensor: not a tensor, or one that the peer cannot read.
            OutOfSpace: no room.
        """

    @abstractmethod
    def end(self, request: Request, is_kept: bool) -> list[TensorRef]:
        """The request was handled; its results, which stay until the next ``begin``, or none if they are not kept."""

    @abstractmethod
    def withdraw(self) -> None:
        """The answer could not be sent: nobody will take its results."""

    @abstractmethod
    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        """A tensor of undefined content, in memory that ``publish`` need not copy, if there is such memory."""

    def fast_path_parts(self) -> TensorParts | None:
        """What the compiled fast path works on; None where it cannot be taken."""
        return None

    @abstractmethod
    def close(self, *, is_orphan: bool) -> None:
        """Release everything; if the controller is gone, remove the results too."""


class ControllerTransfer(ABC):
    """The controller's side. For each request: ``prepare``, then ``withdraw`` if it was not sent, else ``answered``.

    Attributes:
        decode: reads a response's text; its ``tensors`` are then what ``receive`` takes.
        receive: the tensor of a result; once for each.
        unannounced: tags that the next request must announce to the worker; empty where a peer finds them by itself.
        has_request_in_flight: the worker may still read what tags release meanwhile.
        quick_loan: as a worker's.
    """

    decode: Callable[[bytes], Response]
    receive: Callable[[TensorRef, str], Any]
    unannounced: Container[str] = ()
    has_request_in_flight = False
    quick_loan: QuickLoan = staticmethod(_no_loan)

    @abstractmethod
    def put(self, tag: str, tensor: Any) -> None:
        """Let a tag name a tensor from the next request on.

        Raises:
            UnsupportedTensor: not a tensor, or one that the peer cannot read.
            OutOfSpace: no room; the tag keeps what it had.
        """

    @abstractmethod
    def drop(self, tag: str) -> None:
        """Forget a tag.

        Raises:
            MissingTag: there is no such tag.
        """

    @abstractmethod
    def prepare(self, seq: int, command: str, parameters: str, tensors: Sequence[Any]) -> Request:
        """A request, everything that it needs in its place.

        Args:
            seq: its number.
            command: the command.
            parameters: words for it.
            tensors: for this request only; their tags follow the words.
        """

    @abstractmethod
    def withdraw(self) -> None:
        """What was prepared is not sent, or will not be answered any more."""

    @abstractmethod
    def acknowledged(self, request: Request) -> None:
        """The request was answered: its own tensors are free, and the worker knows the tags that it announced."""

    @abstractmethod
    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        """A tensor of undefined content, in memory that sending need not copy, if there is such memory."""

    def fast_path_parts(self) -> TensorParts | None:
        """What the compiled fast path works on; None where it cannot be taken. Asked after ``worker_started``."""
        return None

    @abstractmethod
    def stats(self) -> PoolStats:
        """What this side holds."""

    @abstractmethod
    def collect(self) -> None:
        """Release the leases of views that have ended, while a worker waits for them."""

    @abstractmethod
    def worker_started(self, is_over: Callable[[], bool]) -> None:
        """There is a new worker, which knows nothing.

        Args:
            is_over: whether it has ended, so that nobody waits for it to release anything.
        """

    @abstractmethod
    def worker_ended(self) -> None:
        """The worker has ended; tags stay, and so do views of its results."""

    @abstractmethod
    def close(self) -> None:
        """Release everything."""
