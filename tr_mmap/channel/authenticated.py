"""A channel that signs what it sends and rejects what the peer has not signed. Never reads a message's meaning.

``protocol.mac`` has the MACs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Final

from ..errors import BadMessage, HostilePath, ResponseTimeout
from ..protocol.mac import Signer, Verifier
from ..protocol.messages import Request, Response
from ..protocol.status import Status, StatusLine
from .interface import Channel, Overtaken, Role, never

if TYPE_CHECKING:
    from ..processes.watch import Watched

__all__ = ["AuthenticatedChannel", "RejectionCounter", "protect"]

_LOOK_S: Final = 0.001  # how often a thread looks whether another has finished
_MOST_LOOKS: Final = 8  # at messages that are not the peer's, before this looks whether to stop


class RejectionCounter:
    """A count that outlives the channels that add to it.

    Attributes:
        rejected: how many messages were not the peer's: forged, replayed, reordered, or garbled.
    """

    __slots__ = ("rejected",)

    def __init__(self) -> None:
        self.rejected = 0


def protect(channel: Channel, role: Role, secret: bytes | None, counter: RejectionCounter) -> Channel:
    """The channel itself if ``secret`` is None, else an :class:`AuthenticatedChannel` over it."""
    return channel if secret is None else AuthenticatedChannel(channel, role, secret, counter)


class AuthenticatedChannel(Channel):
    """A channel that adds a MAC to what it sends, and passes on only messages that have the right MAC.

    Any other message is counted and ignored: the wait for the peer's message goes on.

    Args:
        inner: the channel that carries the messages.
        role: which side this is.
        secret: shared with the peer.
        counter: counts the messages that are rejected.
    """

    def __init__(self, inner: Channel, role: Role, secret: bytes, counter: RejectionCounter) -> None:
        self._inner = inner
        self._counter = counter
        self._is_ordered = False
        self._signer = Signer(secret, role.value)
        self._verifier = Verifier(secret, role.peer.value)
        # Which thread sends, 0 for none: plain stores, because a signal handler that raised right after the call that
        # acquires a lock would leave it locked. A handler may send in the middle of that.
        self._sender = 0
        self._accepted_at = -1  # the position of the last message that peek() has accepted, or is about to

    def send(
        self, message: Request | Response, deadline_s: float | None = None, stop: Callable[[], bool] = never
    ) -> None:
        # One at a time: the peer rejects a message whose number is not above the last one's.
        me = get_ident()
        is_nested = self._sender == me
        try:
            while self._sender and not is_nested:
                if stop() or (deadline_s is not None and time.monotonic() >= deadline_s):
                    raise ResponseTimeout(
                        "another thread's message waits for the peer to take the one before it",
                        timeout_ms=0.0,
                        command=message.command,
                    )
                time.sleep(_LOOK_S)
            self._sender = me
            number = self._signer.sign(message)
            if self._is_ordered and self._signer.is_overtaken(number):
                raise Overtaken
            self._inner.send(message, deadline_s, stop)
            self._signer.sent(number)
        finally:
            if self._sender == me and not is_nested:
                self._sender = 0

    def has_message(self) -> bool:
        try:
            return self.peek() is not None
        except (HostilePath, OSError):
            return True  # what is there could not be removed; or the message can be read later

    # What peek() has accepted at a position, it gives again until that is taken. A signal handler may look and take at
    # each call in between.

    def peek(self) -> bytes | None:
        was_hostile = False
        for _ in range(_MOST_LOOKS):
            position, last = self._inner.position, self._verifier.last_message
            try:
                message = self._inner.peek()
            except BadMessage:
                message = b""  # it is no message at all
            except HostilePath:
                if was_hostile:
                    raise  # what is there could not be removed, so no message can come
                was_hostile, message = True, b""
            if message is None:
                return None
            if self._inner.position != position:
                continue
            if message == last and self._accepted_at == position:
                return message
            if message:
                self._accepted_at = position  # before, because an exception may come when it is accepted
                if self._verifier.accept(message):
                    return message
            if self._inner.position != position or self._verifier.last_message is not last:
                continue  # a handler has accepted it
            self._accepted_at = -1
            self._counter.rejected += 1
            self._inner.reject()
        return None  # whoever forges messages without pause keeps nobody here

    @property
    def position(self) -> int:
        return self._inner.position

    def advance(self, position: int, *, is_consumed: bool = True) -> bool:
        return self._inner.advance(position, is_consumed=is_consumed)

    def next_seq(self) -> int | None:
        return self._inner.next_seq()

    def all_consumed(self) -> None:
        self._inner.all_consumed()

    def wait(self, timeout_ms: float, stop: Callable[[], bool]) -> bool:
        return self._inner.wait(timeout_ms, stop)

    def arm(self) -> bool:
        return self._inner.arm()

    def cancel(self, order: int) -> bool:
        return self._inner.cancel(order)

    def withdraw(self, order: int) -> bool:
        return self._inner.withdraw(order)

    def is_cancelled(self, order: int) -> bool:
        return self._inner.is_cancelled(order)

    def is_withdrawn(self, order: int) -> bool:
        return self._inner.is_withdrawn(order)

    @property
    def requests_sent(self) -> int | None:
        return self._inner.requests_sent

    @property
    def requests_taken(self) -> int:
        return self._inner.requests_taken

    @property
    def has_bell(self) -> bool:  # type: ignore[override]
        return self._inner.has_bell

    @property
    def capacity(self) -> int:  # type: ignore[override]
        return self._inner.capacity

    @property
    def responses_sent(self) -> int:
        return self._inner.responses_sent

    def responses_consumed(self) -> int:
        return self._inner.responses_consumed()

    def reject(self) -> None:
        """Does nothing: this channel has rejected other messages already."""

    @property
    def doorbells(self) -> list[str]:
        return self._inner.doorbells

    def read_status(self) -> StatusLine:
        return self._inner.read_status()

    def says_farewell(self) -> bool:
        return self._inner.says_farewell()

    def is_exit_requested(self) -> bool:
        """Never: any process may have written the status. The controller sends a signed request to exit."""
        return False

    def show(self) -> None:
        self._inner.show()

    def write_status(self, status: Status, detail: str = "") -> None:
        self._inner.write_status(status, detail)

    def wait_status(
        self, until: Callable[[StatusLine], bool], timeout_ms: float, stop: Callable[[], bool]
    ) -> StatusLine | None:
        return self._inner.wait_status(until, timeout_ms, stop)

    def keep_order(self) -> None:
        self._is_ordered = True
        self._inner.keep_order()

    def has_just_sent(self, seq: int) -> bool:
        return self._inner.has_just_sent(seq)

    def is_taken_up(self, order: int | None = None) -> bool:
        return self._inner.is_taken_up(order)

    def touch(self) -> None:
        self._inner.touch()

    def heartbeat_age_ms(self) -> float | None:
        return self._inner.heartbeat_age_ms()

    def watch_by_hand(self, *, may_exit: bool = True) -> Watched | None:  # noqa: ARG002 - nobody may by hand
        return self._inner.watch_by_hand(may_exit=False)

    def has_by_hand(self) -> bool:
        """Never: nobody has signed such a request. Those that there are count as rejected."""
        while self._inner.take_by_hand() is not None:
            self._counter.rejected += 1
        return False

    def ring(self) -> None:
        self._inner.ring()

    def wake(self) -> None:
        self._inner.wake()

    def unlink(self) -> None:
        self._inner.unlink()

    def close(self) -> None:
        self._inner.close()
