"""The interface of a channel. Never knows what a message means, only which side sends which kind."""

from __future__ import annotations

import enum
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, ClassVar

from ..errors import BadMessage, HostilePath, TRException
from ..native import ChannelParts
from ..protocol.messages import Failure, Request, Response
from ..protocol.status import Status, StatusLine
from ..wire.messages import MAX_MESSAGE_NBYTES, REQUEST_STEM, RESPONSE_STEM

if TYPE_CHECKING:
    from ..processes.watch import Watched

__all__ = ["Channel", "Overtaken", "Role", "check_bounds", "never"]


def never() -> bool:
    """The ``stop`` of a wait that only its end in time stops."""
    return False


class Overtaken(Exception):
    """A request was not sent, because one with a higher number was sent meanwhile, for example by a signal handler."""


class Role(enum.Enum):
    """Which side of the channel; the value is the kind of message that this side sends."""

    CONTROLLER = REQUEST_STEM
    WORKER = RESPONSE_STEM

    @property
    def peer(self) -> Role:
        """The other side."""
        return Role.WORKER if self is Role.CONTROLLER else Role.CONTROLLER


class Channel(ABC):
    """One side of a session's control channel.

    Every wait takes a function ``stop``, which is called when the wait begins, after every :meth:`wake`, and from time
    to time. If it returns True, the wait ends.

    Attributes:
        may_carry_legacy: a legacy peer can put a request there; such a request has no number.
        capacity: most requests in flight.
        has_bell: the worker can wake a controller that sleeps on the descriptor of ``BELL_FILE``.
    """

    may_carry_legacy: ClassVar[bool] = False
    capacity: ClassVar[int] = 1
    has_bell: ClassVar[bool] = False

    @property
    @abstractmethod
    def doorbells(self) -> list[str]:
        """Names of the semaphores that a sweep must remove if both sides die; may be empty."""

    @abstractmethod
    def send(
        self, message: Request | Response, deadline_s: float | None = None, stop: Callable[[], bool] = never
    ) -> None:
        """Send a message whole, or raise and leave the previous one. Two threads may send at once.

        Args:
            message: what to send.
            deadline_s: of the monotonic clock: how long to wait for the peer to take the previous message; None for
                the channel's own time. Only a channel of files waits.
            stop: True ends that wait.

        Raises:
            BadMessage: longer than ``MAX_MESSAGE_NBYTES``, or cannot be encoded.
            OutOfSpace: no room for it.
            ResponseTimeout: a channel of files, and the peer has not taken the previous message, or ``stop`` said so.
        """

    def has_just_sent(self, seq: int) -> bool:  # noqa: ARG002 - a channel of files keeps each message until it is taken
        """Whether the message of that number is one of the latest that this side has sent, as far as can be told."""
        return False

    def is_taken_up(self, order: int | None = None) -> bool:  # noqa: ARG002 - a channel of files has one at a time
        """Whether the worker has begun with a request of this side, and is not in one that somebody wrote by hand.

        Args:
            order: how many were sent to this worker before; None for the last one.
        """
        return self.read_status().status is Status.BUSY

    def keep_order(self) -> None:  # noqa: B027 - a wrapper asks the channel in it
        """From now on, :meth:`send` raises Overtaken for a message whose number is below that of the last one sent."""

    def set_spin(self, us: float) -> None:  # noqa: B027 - a channel that polls never sleeps until it is rung
        """Poll for a message for up to so many microseconds before each sleep."""

    @abstractmethod
    def has_message(self) -> bool:
        """Whether a message waits to be received. Takes nothing."""

    # -- a message is looked at, dealt with, and then taken: a signal handler in between loses none --------------------

    @abstractmethod
    def peek(self) -> bytes | None:
        """The peer's next message, as JSON text; None if there is none. The same until :meth:`advance`.

        Raises:
            BadMessage: the message cannot be read, or is too long for one. It is there until :meth:`advance`.
            HostilePath: the peer did not make the message's file. So it is until :meth:`advance`.
            SystemLimit, OSError: it cannot be read now.
        """

    def next_seq(self) -> int | None:
        """The number of the next message, if it has one that can be read without the rest."""
        return None

    @property
    @abstractmethod
    def position(self) -> int:
        """How many messages were taken."""

    @abstractmethod
    def advance(self, position: int, *, is_consumed: bool = True) -> bool:
        """Take the message that :meth:`peek` has given, unless it was taken meanwhile.

        Args:
            position: that of the time of :meth:`peek`.
            is_consumed: whether the worker may release the tensors of it, and of all before it.

        Returns:
            Whether this call has taken it.
        """

    def all_consumed(self) -> None:  # noqa: B027 - a channel of files has one message at a time
        """The worker may release the tensors of all messages that were taken."""

    @abstractmethod
    def wait(self, timeout_ms: float, stop: Callable[[], bool]) -> bool:
        """Wait until :meth:`peek` may have something new.

        Args:
            timeout_ms: how long to wait.
            stop: True ends the wait.

        Returns:
            Whether it may.
        """

    def receive(self, timeout_ms: float | None, stop: Callable[[], bool]) -> bytes | None:
        """Take the peer's next message, as JSON text; each is given once.

        Args:
            timeout_ms: how long to wait; None is for ever, 0 is not at all.
            stop: True ends the wait, after a last check for a message.

        Returns:
            The message; None if there was none.

        Raises:
            BadMessage: the message cannot be read, or is too long for one. It counts as taken.
            HostilePath: the peer did not make the message's file. It counts as taken, if it can be removed.
            SystemLimit, OSError: it cannot be read now, and stays.
        """
        left_ms = inf if timeout_ms is None else timeout_ms
        deadline_s = time.monotonic() + left_ms / 1000
        is_over = was_there = False
        while True:
            position = self.position
            try:
                message = self.peek()
            except (BadMessage, HostilePath):
                self.advance(position)
                raise
            if message is not None:
                if self.advance(position):
                    return message
            # Whoever forges messages without pause must not make this longer.
            elif is_over or (was_there and (left_ms == 0 or stop())):
                return None
            else:
                was_there = self.wait(left_ms, stop)
                is_over = not was_there
                left_ms = max(0.0, (deadline_s - time.monotonic()) * 1000)

    def arm(self) -> bool:
        """Let the worker ring the bell after its next message.

        Returns:
            Whether a message is there already, for which it may not ring.
        """
        raise NotImplementedError

    def cancel(self, order: int) -> bool:  # noqa: ARG002 - the request is with the worker
        """Say that nobody wants the answer to a request any more; one comes all the same.

        Args:
            order: how many requests were sent to this worker before.

        Returns:
            Whether its handler had not been called, and now will not be.
        """
        return False

    def withdraw(self, order: int) -> bool:  # noqa: ARG002 - the request is with the worker
        """Take a request back, to send it to another worker; an answer comes all the same, that it is cancelled.

        Args:
            order: as above.

        Returns:
            Whether its handler had not been called, and now will not be. If it was called, it does not learn of this.
        """
        return False

    def hurry(self) -> None:  # noqa: B027 - only a legacy worker gives several answers
        """The time for an answer is over: give one that the peer could still follow up with a better one."""

    # -- the worker's side ---------------------------------------------------------------------------------------------

    def is_cancelled(self, order: int) -> bool:  # noqa: ARG002 - its controller cannot say so
        """Whether the controller has cancelled a request that was taken.

        Args:
            order: how many requests it had sent before.
        """
        return False

    def is_withdrawn(self, order: int) -> bool:  # noqa: ARG002 - as above
        """Whether it has taken that request back. Asked before the handler is called."""
        return False

    @property
    def requests_sent(self) -> int | None:
        """How many requests this side has sent; None for a channel that does not count them."""
        return None

    @property
    def requests_taken(self) -> int:
        """How many requests of the controller this side has taken; 0 for a channel that does not count them."""
        return 0

    @property
    def responses_sent(self) -> int:
        """How many messages this side has sent, as far as :meth:`responses_consumed` counts."""
        return 0

    def responses_consumed(self) -> int:
        """How many of them the controller has consumed. Asked when a request is here."""
        return 1  # all: there is one request at a time

    def reply_unreadable(self, failure: Failure) -> None:  # noqa: B027 - it cannot say to which request that is
        """The message just received was no request: tell a peer that expects a response without a number."""

    def reject(self) -> None:  # noqa: B027 - most channels have nothing to do
        """The message just received was not the peer's; the peer's own may still come in place of it."""

    @abstractmethod
    def read_status(self) -> StatusLine:
        """The present status; the last one that could be read if the text there is no status.

        Raises:
            HostilePath: a channel of files, and the status is no file of the peer's.
        """

    def says_farewell(self) -> bool:
        """Whether the worker's status says that it serves no more. It has sent all its responses before that."""
        try:
            return self.read_status().status is Status.TERMINATED
        except (TRException, OSError):
            return False  # somebody has replaced its status

    @abstractmethod
    def is_exit_requested(self) -> bool:
        """Whether the status is ``exit``, which requests that the worker exit."""

    def request_exit(self, request: Request, deadline_s: float | None = None, stop: Callable[[], bool] = never) -> bool:
        """Send the request to exit to the worker.

        Args:
            request: with the command ``exit``.
            deadline_s: as in :meth:`send`.
            stop: as in :meth:`send`.

        Returns:
            True if it stays there until the worker reads it; False if the worker may overwrite it, so that the caller
            must repeat it.

        Raises:
            ResponseTimeout: as :meth:`send`.
        """
        self.send(request, deadline_s, stop)
        return True

    def show(self) -> None:  # noqa: B027 - a channel of files has shown it already
        """Write the files for people: what this side has sent or written last. A wait does so itself, after a while."""

    @abstractmethod
    def write_status(self, status: Status, detail: str = "") -> None:
        """Replace the status. Does not wake the peer: a message or :meth:`ring` follows.

        Raises:
            OutOfSpace: no room for it.
        """

    def advance_status(self, status: Status, detail: str = "") -> bool:
        """Replace the worker's own status. After a request to exit, write only a status that says that it ends.

        Returns:
            Whether the status was written.
        """
        if not status.is_ending and self.is_exit_requested():
            return False
        self.write_status(status, detail)
        return True

    @abstractmethod
    def wait_status(
        self, until: Callable[[StatusLine], bool], timeout_ms: float, stop: Callable[[], bool]
    ) -> StatusLine | None:
        """Wait for a status.

        Args:
            until: tells whether a status is the one.
            timeout_ms: how long to wait.
            stop: True ends the wait.

        Returns:
            The status; None when the time is over or ``stop`` returned True.
        """

    def touch(self) -> None:  # noqa: B027 - most channels have no heartbeat
        """Note that the worker works now. Costs no system call."""

    def heartbeat_age_ms(self) -> float | None:
        """Milliseconds since the worker last worked; None if this channel cannot tell, or if it never has."""
        return None

    # -- what somebody writes by hand ------------------------------------------------------------------------------

    def watch_by_hand(self, *, may_exit: bool = True) -> Watched | None:  # noqa: ARG002 - nothing to notice
        """Begin to notice what somebody writes by hand; None if this channel has nothing to notice apart.

        On the worker's side. Requests wait until they are taken, and end a wait for a message whose ``stop`` asks
        :meth:`has_by_hand`.

        Args:
            may_exit: whether ``exit``, written by hand into the status, is a request to exit.
        """
        return None

    def has_by_hand(self) -> bool:
        """Whether a request that somebody wrote by hand waits to be taken."""
        return False

    def take_by_hand(self) -> bytes | None:
        """The oldest request that somebody wrote by hand, whatever its text is; None if there is none."""
        return None

    def reply_by_hand(self, response: Response) -> None:  # noqa: B027 - who takes no such request answers none
        """Show the answer to such a request where its writer looks for it."""

    def fast_path_parts(self) -> ChannelParts | None:
        """What the compiled fast path works on; None if this channel has no fast path."""
        return None

    @abstractmethod
    def ring(self) -> None:
        """Wake the peer."""

    @abstractmethod
    def wake(self) -> None:
        """Wake this end's own wait. For other threads; never blocks."""

    @abstractmethod
    def unlink(self) -> None:
        """Remove the names of system-wide resources. Idempotent; open ends go on working."""

    @abstractmethod
    def close(self) -> None:
        """Release all that this end holds. Idempotent."""


def check_bounds(text: bytes) -> bytes:
    """The encoded message, if it is not too long.

    Raises:
        BadMessage: longer than ``MAX_MESSAGE_NBYTES``.
    """
    if len(text) > MAX_MESSAGE_NBYTES:
        raise BadMessage(
            f"the message has {len(text)} bytes, more than {MAX_MESSAGE_NBYTES}; send large data as a tensor",
            detail=str(len(text)),
        )
    return text
