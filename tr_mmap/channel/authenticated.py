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
from ..wire.messages import EXIT_COMMAND
from .interface import Channel, Overtaken, Role, never

if TYPE_CHECKING:
    from ..processes.watch import Watched

__all__ = ["AuthenticatedChannel", "RejectionCounter", "protect"]

_LOOK_S: Final = 0.001  # how often a thread looks whether another has finished


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
        # Which thread sends and which takes, 0 for none: plain stores, because a signal handler that raised right after
        # the call that acquires a lock would leave it locked. A handler may send and take in the middle of either.
        self._sender = 0
        self._taker = 0
        # The last message that receive() gave. If the verifier has accepted another one since, that is to be given. The
        # verifier itself keeps it, so a signal handler's exception cannot lose it between accepting and keeping.
        self._given: bytes | None = None
        self._earlier: bytes | None = None  # the last message that was accepted before the last one was sent
        self._accepted_at = -1  # the position of the last message that peek() has accepted, or is about to
        self._put_backs = 0
        self._may_repeat = False  # after put_back(), the inner channel may give a message again
        self._is_controller = role is Role.CONTROLLER

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
            if self._is_controller and message.command != EXIT_COMMAND:  # exit may be sent while a response is taken
                # What came before this request must not be taken for its response.
                self._earlier = self._given = self._verifier.last_message
            self._inner.send(message, deadline_s, stop)
            self._signer.sent(number)
        finally:
            if self._sender == me and not is_nested:
                self._sender = 0

    def _is_one_held(self) -> bool:
        """Whether a message was accepted and not given."""
        return self._verifier.last_message is not self._given

    def has_message(self) -> bool:
        if self._is_one_held():
            return True
        # While another thread waits, the next message belongs to that thread.
        me = get_ident()
        if not self._inner.has_message() or self._taker not in (0, me):
            return False
        is_nested = self._taker == me
        try:
            self._taker = me
            self._accept_next(0.0, never)
        finally:
            if not is_nested:
                self._taker = 0
        return self._is_one_held()

    def receive(self, timeout_ms: float | None, stop: Callable[[], bool]) -> bytes | None:
        me = get_ident()
        is_nested = self._taker == me
        try:
            while self._taker and not is_nested:
                if stop():
                    return None
                time.sleep(_LOOK_S)
            self._taker = me
            if not self._is_one_held():
                self._accept_next(timeout_ms, stop)
            last = self._verifier.last_message
            if last is self._given:
                return None
            self._given = last
            return last
        finally:
            if self._taker == me and not is_nested:
                self._taker = 0

    def _accept_next(self, timeout_ms: float | None, stop: Callable[[], bool]) -> None:
        """Wait for a message of the peer's, until one is there to be given."""
        deadline_s = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        remaining_ms = timeout_ms
        while not self._is_one_held():  # a signal handler may have put one back meanwhile
            put_backs, is_known = self._put_backs, False
            try:
                message = self._inner.receive(remaining_ms, stop)
                if message is None:
                    return
                is_known = self._may_repeat and message in (self._verifier.last_message, self._earlier)
                if not is_known and self._verifier.accept(message):
                    return
            except BadMessage:
                pass  # it is no message at all
            except HostilePath:
                if self._inner.has_message():
                    raise  # what is there could not be removed, so no message can come
            if is_known:
                self._may_repeat = False  # once only: whoever sends it again is no peer
            elif put_backs == self._put_backs:  # else a signal handler may have taken this one meanwhile
                self._counter.rejected += 1
                self._inner.reject()
            if deadline_s is not None:
                remaining_ms = max(0.0, (deadline_s - time.monotonic()) * 1000)
                # A process that forges messages without pause must not extend our wait. After one that was put back the
                # next one may be there.
                if remaining_ms == 0 and not is_known:
                    return
            if stop():
                return

    # The controller's side. What peek() has accepted at a position, it gives again until that is taken. A signal
    # handler may look and take at each call in between.

    def peek(self) -> bytes | None:
        was_hostile = False
        while True:
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

    @property
    def position(self) -> int:
        return self._inner.position

    def advance(self, position: int, *, is_consumed: bool = True) -> None:
        self._inner.advance(position, is_consumed=is_consumed)

    def next_seq(self) -> int | None:
        return self._inner.next_seq()

    def all_consumed(self) -> None:
        self._inner.all_consumed()

    def wait(self, timeout_ms: float, stop: Callable[[], bool]) -> None:
        self._inner.wait(timeout_ms, stop)

    def arm(self) -> bool:
        return self._inner.arm()

    def disarm(self) -> None:
        self._inner.disarm()

    def cancel(self, order: int) -> bool:
        return self._inner.cancel(order)

    def is_cancelled(self, order: int) -> bool:
        return self._inner.is_cancelled(order)

    @property
    def requests_sent(self) -> int | None:
        return self._inner.requests_sent

    @property
    def requests_taken(self) -> int:
        return self._inner.requests_taken

    def taken_seq(self) -> int:
        return self._inner.taken_seq()

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

    def is_sent(self, seq: int) -> bool:
        return self._inner.is_sent(seq)

    def is_taken_up(self, order: int | None = None) -> bool:
        return self._inner.is_taken_up(order)

    def put_back(self) -> None:
        if self._verifier.last_message is not self._earlier:
            self._given = self._earlier
        self._put_backs += 1
        self._may_repeat = True
        self._inner.put_back()

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
