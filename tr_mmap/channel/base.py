"""The interface of a channel's end. Never knows what a message means, only who sends which kind."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from ..errors import BadMessage
from ..protocol import Failure, Request, Response, Status, StatusLine

__all__ = ["MAX_MESSAGE_NBYTES", "Channel", "Role"]

# A control message names tensors and carries a text for people; more than this is data, and data goes in a tensor.
MAX_MESSAGE_NBYTES: Final = 16 << 20


class Role(enum.Enum):
    """Which end of the channel; the value is the file that this end writes."""

    CONTROLLER = "request"
    WORKER = "response"

    @property
    def peer(self) -> Role:
        return Role.WORKER if self is Role.CONTROLLER else Role.CONTROLLER


class Channel(ABC):
    """One end of a session's control channel.

    A wait returns early when its ``stop`` says so, which is asked after every :meth:`wake`.
    """

    @classmethod
    def new_doorbells(cls) -> list[str]:
        """Names for :meth:`create`, so that a manifest can tell of them before they exist and none is ever lost."""
        return []

    @classmethod
    @abstractmethod
    def create(cls, directory: str, doorbells: list[str] | None = None) -> Channel:
        """The controller's end, over new control files that replace any earlier ones.

        Args:
            directory: the session directory.
            doorbells: from :meth:`new_doorbells`, or None to make names up here.
        """

    @classmethod
    @abstractmethod
    def attach(cls, directory: str, doorbells: list[str]) -> Channel:
        """The worker's end."""

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

    def spin(self, us: float) -> None:  # noqa: B027 - a channel that polls never sleeps until it is rung
        """Look for a message for so long, at most, before each sleep."""

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

    def answer_unreadable(self, failure: Failure) -> None:  # noqa: B027 - it cannot say to which request that is
        """The message just received was no request: tell the peer, if it waits for an answer without a number."""

    def refuse(self) -> None:  # noqa: B027 - most channels have nothing to do
        """The message just received was not the peer's: the peer's own may still come in its place."""

    @abstractmethod
    def read_status(self) -> StatusLine:
        """The status as it stands.

        Raises:
            BadMessage: somebody wrote what is no status.
        """

    @abstractmethod
    def is_exit_asked(self) -> bool:
        """Whether the status is ``exit``: somebody wants the worker to end."""

    def ask_to_exit(self, request: Request) -> bool:
        """Tell the worker that it is to end; whether saying it once is enough, whatever the worker does.

        Args:
            request: of the command that says so.
        """
        self.send(request)
        return True

    @abstractmethod
    def write_status(self, status: Status, detail: str = "") -> None:
        """Replace the status. Wakes nobody: a message or :meth:`ring` follows."""

    def enter(self, status: Status, detail: str = "") -> bool:
        """Replace the worker's own status, unless somebody wants its end and this says anything else.

        Returns:
            Whether it stands.
        """
        if not status.is_end and self.is_exit_asked():
            return False
        self.write_status(status, detail)
        return True

    @abstractmethod
    def wait_status(
        self, until: Callable[[StatusLine], bool], timeout_ms: float, stop: Callable[[], bool]
    ) -> StatusLine | None:
        """Wait for a status; None on timeout or stop."""

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
