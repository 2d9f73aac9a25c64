"""The two ends of a store: where a session's tensors are, and how they get from one side to the other.

A store never sends or receives a message, and knows no status; a channel never touches a tensor. What crosses between
the two are the :class:`TensorRef` of requests and responses. A controller's end is not safe for threads: its session
holds a lock. A worker's end has a lock of its own, for a handler may have threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from typing import Any

from ..protocol import Request, Response, TensorRef
from ..segments import PoolStats

__all__ = ["ControllerStore", "WorkerStore"]

LendAgain = Callable[[Any, Any], Any]


def _lend_nothing(shape: Any, dtype: Any) -> Any:  # noqa: ARG001
    return None


class WorkerStore(ABC):
    """The worker's end. For each request: ``begin``, any number of ``fetch`` and ``publish``, ``end``.

    Attributes:
        tags: what names a tensor now.
        results: what was published since ``begin``.
        lend_again: the short cut of ``empty`` for numpy: an array for a shape and a dtype, or None if it needs more
            thought.
    """

    tags: Container[str]
    results: list[TensorRef]
    lend_again: LendAgain = staticmethod(_lend_nothing)

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

    @abstractmethod
    def close(self, *, is_orphan: bool) -> None:
        """Let go of everything; if the controller is gone, remove the results too."""


class ControllerStore(ABC):
    """The controller's end. For each request: ``prepare``, then ``withdraw`` if it was not sent, else ``answered``.

    Attributes:
        decode: reads a response's text; its ``tensors`` are then what ``receive`` takes.
        receive: the tensor of a result; once for each.
        news: tags that the next request has to tell of, or none that it does not find by itself.
        is_asked: a request is under way, and may read what tags let go of meanwhile.
        lend_again: as a worker's.
    """

    decode: Callable[[bytes], Response]
    receive: Callable[[TensorRef, str], Any]
    news: Container[str] = ()
    is_asked = False
    lend_again: LendAgain = staticmethod(_lend_nothing)

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
            tensors: lent for this request only; their tags follow the words.
        """

    @abstractmethod
    def withdraw(self) -> None:
        """What was prepared is not sent, or will not be answered any more."""

    @abstractmethod
    def answered(self, request: Request) -> None:
        """The request was answered: what it lent is free, and what it told is known."""

    @abstractmethod
    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        """A tensor of undefined content, in memory that sending need not copy, if there is such memory."""

    @abstractmethod
    def stats(self) -> PoolStats:
        """What this side holds."""

    @abstractmethod
    def collect(self) -> None:
        """Give back what nobody looks at any more, while a worker waits for it."""

    @abstractmethod
    def begin_run(self, is_over: Callable[[], bool]) -> None:
        """There is a new worker, which knows nothing.

        Args:
            is_over: whether it has ended, so that nobody waits for it to let go of anything.
        """

    @abstractmethod
    def end_run(self) -> None:
        """The worker has ended; tags stay, and so do views of its results."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""
