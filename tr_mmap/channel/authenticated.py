"""A channel that signs what it sends and drops what the peer has not signed. The MACs are in ``protocol.mac``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..errors import BadMessage, HostilePath
from ..protocol.mac import Signer, Verifier
from ..protocol.messages import Request, Response
from ..protocol.status import Status, StatusLine
from .interface import Channel, Role

__all__ = ["AuthenticatedChannel", "RejectionCounter", "protect"]


class RejectionCounter:
    """A count that outlives the channels that add to it.

    Attributes:
        rejected: messages that were not the peer's: forged, replayed, reordered, or garbled.
    """

    __slots__ = ("rejected",)

    def __init__(self) -> None:
        self.rejected = 0


def protect(channel: Channel, role: Role, secret: bytes | None, counter: RejectionCounter) -> Channel:
    """The channel, authenticated if there is a secret."""
    return channel if secret is None else AuthenticatedChannel(channel, role, secret, counter)


class AuthenticatedChannel(Channel):
    """A channel that adds a MAC to what it sends, and passes on only what bears the right one.

    What does not is counted and otherwise as if it had never been there: the wait for the real message goes on.

    Args:
        inner: does the work.
        role: which side this is.
        secret: shared with the peer.
        counter: counts what is rejected.
    """

    def __init__(self, inner: Channel, role: Role, secret: bytes, counter: RejectionCounter) -> None:
        self._inner = inner
        self._counter = counter
        self._signer = Signer(secret, role.value)
        self._verifier = Verifier(secret, role.peer.value)
        self._taking = threading.Lock()
        self._held: bytes | None = None  # a message that has_message found

    def send(self, message: Request | Response) -> None:
        number = self._signer.sign(message)
        self._inner.send(message)
        self._signer.sent(number)

    def has_message(self) -> bool:
        if self._held is not None:
            return True
        # While another thread waits the next message is that one's.
        if not self._inner.has_message() or not self._taking.acquire(blocking=False):
            return False
        try:
            self._held = self._receive(0.0, _never)
        finally:
            self._taking.release()
        return self._held is not None

    def receive(self, timeout_ms: float | None, stop: Callable[[], bool]) -> bytes | None:
        with self._taking:
            held, self._held = self._held, None
            return held if held is not None else self._receive(timeout_ms, stop)

    def _receive(self, timeout_ms: float | None, stop: Callable[[], bool]) -> bytes | None:
        deadline_s = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        remaining_ms = timeout_ms
        while True:
            try:
                message = self._inner.receive(remaining_ms, stop)
                if message is None or self._verifier.accept(message):
                    return message
            except BadMessage:
                pass  # not even a message
            except HostilePath:
                if self._inner.has_message():
                    raise  # it could not be removed, so nothing else can come
            self._counter.rejected += 1
            self._inner.reject()
            if deadline_s is not None:
                remaining_ms = (deadline_s - time.monotonic()) * 1000
                if remaining_ms <= 0:  # a process that forges without pause does not keep us beyond our time
                    return None
            if stop():
                return None

    def reject(self) -> None:
        """Nothing that this channel gives needs to be rejected."""

    @property
    def doorbells(self) -> list[str]:
        return self._inner.doorbells

    def read_status(self) -> StatusLine:
        return self._inner.read_status()

    def is_exit_requested(self) -> bool:
        """Never: any process may have written the status. The controller asks for the end by a signed request."""
        return False

    def write_status(self, status: Status, detail: str = "") -> None:
        self._inner.write_status(status, detail)

    def wait_status(
        self, until: Callable[[StatusLine], bool], timeout_ms: float, stop: Callable[[], bool]
    ) -> StatusLine | None:
        return self._inner.wait_status(until, timeout_ms, stop)

    def ring(self) -> None:
        self._inner.ring()

    def wake(self) -> None:
        self._inner.wake()

    def unlink(self) -> None:
        self._inner.unlink()

    def close(self) -> None:
        self._inner.close()


def _never() -> bool:
    return False
