"""The interface of a transfer, for each side. Never sends or receives a message.

Both sides have locks of their own, which they never hold while they wait for the peer. Only one thread at a time
receives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from math import inf
from typing import Any, NamedTuple

from ..native import TensorParts
from ..protocol.messages import Request, Response, TensorRef, now_ms
from ..shm.stats import PoolStats, ReaderStats

__all__ = ["ControllerTransfer", "Draft", "WorkerTransfer"]

QuickLoan = Callable[[Any, Any, str], Any]


class Draft(NamedTuple):
    """A request whose tensors are where the worker will read them.

    Attributes:
        command: the command.
        parameters: words for it, its own tags among them.
        tensors: where its own tensors are.
        form: of the parameters, as in a request.
    """

    command: str
    parameters: str
    tensors: Sequence[TensorRef] = ()
    form: str = ""


def _no_loan(shape: Any, dtype: Any, framework: str) -> Any:  # noqa: ARG001
    return None


class WorkerTransfer(ABC):
    """The worker's side. For each request: ``begin``, any number of ``fetch`` and ``publish``, ``end``.

    Attributes:
        tags: the tags that name a tensor now.
        results: where the tensors are that were published since ``begin``.
        quick_loan: the fast path of ``empty``; None if the slow path is needed.
    """

    tags: Container[str]
    results: list[TensorRef]
    quick_loan: QuickLoan = staticmethod(_no_loan)

    @abstractmethod
    def begin(self, request: Request) -> None:
        """A request is here. Learn the tags that it announces."""

    def of_request(self, request: Request) -> WorkerTransfer:
        """A transfer for one of several requests that are handled at once, in place of :meth:`begin`.

        It has the tags of this moment, whatever later requests announce, and results of its own. Memory and locks are
        those of this transfer.
        """
        raise NotImplementedError

    def forked_in_child(self) -> None:  # noqa: B027 - a transfer of files has no lock
        """In a forked child: another thread of the parent may have held a lock of this side."""

    @abstractmethod
    def fetch(self, tag: str, framework: str) -> Any:
        """The tensor of a tag, in the named framework.

        Raises:
            MissingTag: there is no such tag.
            StaleTensor, TSRFormatError: the segment or file does not hold that tensor.
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
        """The handler has ended.

        Args:
            request: that it handled.
            is_kept: whether the results are sent; if not, they are released now.

        Returns:
            Where the results are; they stay until the next ``begin``.
        """

    @abstractmethod
    def withdraw(self) -> None:
        """The response could not be sent: release its results."""

    def responded(self, order: int) -> None:  # noqa: B027 - a transfer of files holds nothing
        """The response was sent, after so many others: its results stay until the controller has consumed it."""

    def consumed(self, count: int) -> None:  # noqa: B027 - as above
        """The controller has consumed so many responses: release their results."""

    @abstractmethod
    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        """A tensor of undefined content; ``publish`` need not copy it, if the transfer has memory for that.

        Args:
            shape: sizes in elements, outermost first.
            dtype: a name like ``"float32"``, or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``.

        Raises:
            UnsupportedTensor: no such dtype, or a shape that TSR cannot hold.
            BadMessage: no such framework.
            OutOfSpace: no room.
        """

    def release_free(self) -> None:  # noqa: B027 - a transfer of files keeps nothing
        """Give up the memory that is kept for later tensors, because the controller needs room."""

    def look_from_thread(self) -> None:  # noqa: B027 - as above
        """Unmap what the end of others has left, about once a second, from another thread. Never waits."""

    def fast_path_parts(self) -> TensorParts | None:
        """What the compiled fast path works on; None where it cannot be taken."""
        return None

    @abstractmethod
    def close(self, *, is_orphan: bool) -> None:
        """Release everything; if the controller is gone, remove the results too."""


class ControllerTransfer(ABC):
    """The controller's side. For each request: ``prepare``; ``request`` and ``sent`` when it is sent; ``release``.

    Attributes:
        decode: parses a response's text; ``receive`` takes the elements of its ``tensors``.
        receive: makes the tensor of a result, in a framework; called once for each.
        unannounced: tags that the next request must announce; empty if the peer finds tags by itself.
        tagged: what carries each tag that may be among them.
        quick_loan: as in :class:`WorkerTransfer`.
        left: what tags have left, and the worker may still read.
        has_request_in_flight: tells whether there is such a request.
        next_order: tells how many requests the worker may have been sent so far.
        fast_holds: what the requests hold that the fast path has sent.
        pool_directory: of the pool of this process, if its segments are there; "" for the session's directory.
        keeps_memory: both sides keep memory for later tensors, and can give it up when the other one needs room.
    """

    decode: Callable[[bytes], Response]
    receive: Callable[[TensorRef, str], Any]
    unannounced: dict[str, int]
    tagged: dict[str, Any]
    left: list[Any]
    has_request_in_flight: Callable[[], bool]
    next_order: Callable[[], int]
    fast_holds: Callable[[], list[list[Any]]]
    keeps_memory = False
    pool_directory = ""
    quick_loan: QuickLoan = staticmethod(_no_loan)

    def __init__(self) -> None:
        self.unannounced, self.tagged, self.left = {}, {}, []
        self.has_request_in_flight, self.next_order, self.fast_holds = bool, int, list

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
    def prepare(
        self, key: Any, command: str, parameters: str, tensors: Sequence[Any], deadline_s: float = inf
    ) -> Draft:
        """Put a request's tensors where the worker will read them.

        Args:
            key: the request, a ``Pending``; its ``held`` gets the segments.
            command: the command.
            parameters: words for it.
            tensors: for this request only; their tags follow the words. Or one dict: arguments by name.
            deadline_s: until when to wait for room, if it waits at all, by the monotonic clock.

        Raises:
            UnsupportedTensor: one is not a tensor, or the peer cannot read it.
            BadMessage: a dict that cannot be sent, or words beside it.
            OutOfSpace: no room; nothing is left of the request.
        """

    def request(self, seq: int, draft: Draft) -> Request:
        """The request as it is sent now, with the tags that it must announce."""
        return Request(seq, draft.command, draft.parameters, now_ms(), list(draft.tensors))

    def sent(self, key: Any, request: Request) -> None:  # noqa: B027 - a transfer of files announces nothing
        """The request was sent: the worker learns what it announces."""

    @abstractmethod
    def release(self, key: Any, oldest: int | None) -> None:
        """The request was answered, or not sent: release its tensors. May be called again.

        Args:
            key: as in :meth:`prepare`.
            oldest: how many requests were sent before the oldest that is in flight; None if there is none.
        """

    @abstractmethod
    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        """A tensor of undefined content; sending need not copy it, if the transfer has memory for that.

        Arguments and errors as in :meth:`WorkerTransfer.empty`.
        """

    def fast_path_parts(self) -> TensorParts | None:
        """What the compiled fast path works on; None if there is no fast path. Called after ``worker_started``."""
        return None

    @abstractmethod
    def stats(self) -> PoolStats:
        """What this side holds."""

    def reader_stats(self) -> ReaderStats:
        """What this side has of the worker's; nothing if results are files."""
        return ReaderStats()

    @abstractmethod
    def collect(self) -> None:
        """Release the leases of views that have ended, because a worker may wait for them."""

    def release_free(self) -> None:  # noqa: B027 - a transfer of files keeps nothing
        """Give up the memory that is kept for later tensors, because the worker needs room."""

    @abstractmethod
    def worker_started(self, is_over: Callable[[], bool]) -> None:
        """There is a new worker, which knows no tags yet.

        Args:
            is_over: returns whether the worker has ended, so that this side does not wait for it to release views.
        """

    @abstractmethod
    def worker_ended(self) -> None:
        """The worker has ended. Tags stay, and views of its results stay."""

    @abstractmethod
    def close(self) -> None:
        """Release everything."""
