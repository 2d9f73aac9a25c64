"""The interface of a channel. Never knows what a message means, only which side sends which kind."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from ..errors import BadMessage
from ..native import ChannelParts
from ..protocol.messages import Failure, Request, Response
from ..protocol.status import Status, StatusLine
from ..wire.messages import MAX_MESSAGE_NBYTES

__all__ = ["Channel", "Role", "check_bounds"]


class Role(enum.Enum):
    """Which side of the channel; the value is the kind of message that this side writes."""

    CONTROLLER = "request"
    WORKER = "response"

    @property
    def peer(self) -> Role:
        return Role.WORKER if self is Role.CONTROLLER else Role.CONTROLLER


class Channel(ABC):
    """One side of a session's control channel.

    A wait returns early when its ``stop`` says so, which is asked after every :meth:`wake`.

    Attributes:
        may_carry_legacy: a legacy peer can put a request there, which has no number.
    """

    may_carry_legacy: ClassVar[bool] = False

    @property
    @abstractmethod
    def doorbells(self) -> list[str]:
        """Names of the semaphores that a sweep must remove if both sides die; may be empty."""

    @abstractmethod
    def send(self, message: Request | Response) -> None:
        """Publish a message whole, or raise and leave the previous one.

        Raises:
            BadMessage: longer than ``MAX_MESSAGE_NBYTES``.
            OutOfSpace: no room for it.
        """

    def set_spin(self, us: float) -> None:  # noqa: B027 - a channel that polls never sleeps until it is rung
        """Poll for a message for up to so many microseconds before each sleep."""

    @abstractmethod
    def has_message(self) -> bool:
        """Whether a message waits to be received. Takes nothing."""

    @abstractmethod
    def receive(self, timeout_ms: float | None, stop: Callable[[], bool]) -> bytes | None:
        """Take the peer's next message, as JSON text; each is given once.

        Args:
            timeout_ms: how long to wait; None is for ever, 0 only looks.
            stop: asked when woken; True ends the wait, after a last look.
        """

    def put_back(self) -> None:  # noqa: B027 - a channel of files has taken the message away
        """A wait was interrupted: if it had taken a message already, let the next one take that again."""

    def reply_unreadable(self, failure: Failure) -> None:  # noqa: B027 - it cannot say to which request that is
        """The message just received was no request: tell the peer, if it waits for an answer without a number."""

    def reject(self) -> None:  # noqa: B027 - most channels have nothing to do
        """The message just received was not the peer's: the peer's own may still come in its place."""

    @abstractmethod
    def read_status(self) -> StatusLine:
        """The status as it stands.

        Raises:
            BadMessage: somebody wrote what is no status.
        """

    @abstractmethod
    def is_exit_requested(self) -> bool:
        """Whether the status is ``exit``: somebody wants the worker to end."""

    def request_exit(self, request: Request) -> bool:
        """Tell the worker that it is to end; whether saying it once is enough, whatever the worker does.

        Args:
            request: of the command that says so.
        """
        self.send(request)
        return True

    @abstractmethod
    def write_status(self, status: Status, detail: str = "") -> None:
        """Replace the status. Wakes nobody: a message or :meth:`ring` follows."""

    def advance_status(self, status: Status, detail: str = "") -> bool:
        """Replace the worker's own status, unless somebody wants its end and this says anything else.

        Returns:
            Whether it stands.
        """
        if not status.is_ending and self.is_exit_requested():
            return False
        self.write_status(status, detail)
        return True

    @abstractmethod
    def wait_status(
        self, until: Callable[[StatusLine], bool], timeout_ms: float, stop: Callable[[], bool]
    ) -> StatusLine | None:
        """Wait for a status; None on timeout or stop."""

    def fast_path_parts(self) -> ChannelParts | None:
        """What the compiled fast path works on; None where it cannot be taken."""
        return None

    @abstractmethod
    def ring(self) -> None:
        """Tell the peer to look again."""

    @abstractmethod
    def wake(self) -> None:
        """Make this end's own wait look again. For other threads; never blocks."""

    @abstractmethod
    def unlink(self) -> None:
        """Remove the names of system-wide resources. Idempotent; open ends go on working."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything this end holds. Idempotent."""


def check_bounds(text: bytes) -> bytes:
    """An encoded message, if it is not too long for one."""
    if len(text) > MAX_MESSAGE_NBYTES:
        raise BadMessage(
            f"the message has {len(text)} bytes, more than {MAX_MESSAGE_NBYTES}; send large data as a tensor",
            detail=str(len(text)),
        )
    return text
