"""Control messages that prove who wrote them: a secret shared by a session and its worker, a MAC in every message.

The secret: 32 random bytes for each start of a worker. They are in a pipe, whose reading end the worker inherits;
``TR_MMAP_AUTH_FD`` in its environment is that descriptor's number. So the secret is in no file, argument or
environment, and that a worker demands MACs cannot be undone by editing a file.

The message: as without authentication, with one more member, the last::

    {"seq":12,"command":"echo",...,"mac":"0123456789abcdef0123456789abcdef"}
             |--------- rest ----|

    mac = BLAKE2b(key = secret, digest size 16, person = "tr_mmap request" or "tr_mmap response",
                  data = number as u64 little-endian, then rest as it stands, from the first comma), in hex

The number: how often this side has sent, gaps allowed. ``seq`` shows it in 8 digits, (number - 1) % MAX_SEQ + 1, and
whoever reads takes the smallest one above the last that it accepted. So an old message, even one from before seq began
again at 1, is checked with a number that is not its own, and is refused; so is a message that came too late, one of the
other direction, and one of an earlier worker. A response has the number of its request.

What it is good for: another process, also of the same user, that can write to the session's files cannot make the
worker do anything, nor have an answer of its own taken for the worker's. What it is not: a process that may read this
one's memory (ptrace) has the secret; one that may write to the session's files can still destroy messages, so that a
wait times out, change ``status.txt``, which is a hint and bears no MAC, or change the tensors themselves.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final

from . import system
from .channel import Channel, Role
from .errors import BadMessage, HostilePath, SessionNotStarted
from .protocol import MAX_SEQ, Request, Response, Status, StatusLine, encode

__all__ = ["AUTH_FD", "AuthenticatedChannel", "Tally", "handed_over", "inherited_secret", "new_secret", "protect"]

AUTH_FD: Final = "TR_MMAP_AUTH_FD"
SECRET_NBYTES: Final = 32  # as strong as BLAKE2b's and AES-256's keys
MAC_NBYTES: Final = 16  # 2**-128 a guess, and every guess costs a wake-up

_TAIL_NBYTES: Final = len(b',"mac":""}') + 2 * MAC_NBYTES


def new_secret() -> bytes:
    """A secret for one worker."""
    return secrets.token_bytes(SECRET_NBYTES)


@contextmanager
def handed_over(secret: bytes | None) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """What a worker that is started now needs to get the secret: environment variables, and descriptors to pass."""
    if secret is None:
        yield {}, ()
        return
    reading, writing = system.make_pipe()
    try:
        try:
            system.write_pipe(writing, secret)  # far less than a pipe holds, so this waits for nobody
        finally:
            system.close(writing)
        yield {AUTH_FD: str(reading)}, (reading,)
    finally:
        system.close(reading)


def inherited_secret(environ: MutableMapping[str, str] = os.environ) -> bytes | None:
    """The secret that this process was started with; None if its session does not authenticate. Works once.

    Raises:
        SessionNotStarted: there should be one, and it cannot be read.
    """
    number = environ.pop(AUTH_FD, None)  # our children have neither the descriptor nor the secret
    if number is None:
        return None
    secret = b""
    if re.fullmatch("[0-9]{1,9}", number):
        try:
            secret = system.read_pipe(int(number), SECRET_NBYTES + 1)
        except OSError:
            secret = b""
    if len(secret) != SECRET_NBYTES:
        raise SessionNotStarted(
            f"the session's secret cannot be read from descriptor {number[:20]!r} ({AUTH_FD}); workers of a session "
            "with auth=True are started by it, and inherit the descriptor"
        )
    return secret


class Tally:
    """A count that survives the channels that add to it.

    Attributes:
        rejected: messages that were not the peer's: forged, replayed, reordered, or garbled.
    """

    __slots__ = ("rejected",)

    def __init__(self) -> None:
        self.rejected = 0


def protect(channel: Channel, role: Role, secret: bytes | None, tally: Tally) -> Channel:
    """The channel, authenticated if there is a secret."""
    return channel if secret is None else AuthenticatedChannel(channel, role, secret, tally)


class AuthenticatedChannel(Channel):
    """A channel that adds a MAC to what it sends, and passes on only what bears the right one.

    What does not is counted and otherwise as if it had never been there: the wait for the real message goes on.

    Args:
        inner: does the work.
        role: which end this is.
        secret: shared with the peer.
        tally: counts what is refused.
    """

    def __init__(self, inner: Channel, role: Role, secret: bytes, tally: Tally) -> None:
        self._inner = inner
        self._tally = tally
        self._own, self._peers = (
            hashlib.blake2b(digest_size=MAC_NBYTES, key=secret, person=f"tr_mmap {each.value}".encode())
            for each in (role, role.peer)
        )
        self._sent = 0  # the number of our last message
        self._accepted = 0  # that of the peer's last one
        self._taking = threading.Lock()
        self._held: bytes | None = None  # a message that has_message found

    @classmethod
    def create(cls, directory: str, doorbells: list[str] | None = None) -> Channel:
        raise NotImplementedError("made by wrapping a channel")

    @classmethod
    def attach(cls, directory: str, doorbells: list[str]) -> Channel:
        raise NotImplementedError("made by wrapping a channel")

    def send(self, message: Request | Response) -> None:
        if not 0 < message.seq <= MAX_SEQ:
            raise BadMessage(f"a message's number is 1 to {MAX_SEQ}, not {message.seq}", detail=str(message.seq))
        number = _number_of(message.seq, self._sent)
        message.mac = ""
        text = encode(message)
        comma = text.find(b",")
        message.mac = _mac(self._own, number, text[comma:-1] if comma > 0 else b"")
        self._inner.send(message)
        self._sent = number  # not before: what was not sent may be sent again under the same number

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
                if message is None or self._is_peers(message):
                    return message
            except BadMessage:
                pass  # not even a message
            except HostilePath:
                if self._inner.has_message():
                    raise  # it could not be removed, so nothing else can come
            self._tally.rejected += 1
            self._inner.refuse()
            if deadline_s is not None:
                remaining_ms = (deadline_s - time.monotonic()) * 1000
                if remaining_ms <= 0:  # whoever forges without pause does not keep us beyond our time
                    return None
            if stop():
                return None

    def _is_peers(self, message: bytes) -> bool:
        rest_end = len(message) - _TAIL_NBYTES
        if message[rest_end : rest_end + 8] != b',"mac":"' or message[-2:] != b'"}' or message[:7] != b'{"seq":':
            return False
        comma = message.find(b",")
        digits = message[7:comma].lstrip(b" ")
        if not digits.isdigit() or len(digits) > 8 or not 0 < (seq := int(digits)) <= MAX_SEQ:
            return False
        number = _number_of(seq, self._accepted)
        wanted = _mac(self._peers, number, message[comma:rest_end])
        if not hmac.compare_digest(wanted.encode(), message[rest_end + 8 : -2]):
            return False
        self._accepted = number
        return True

    def refuse(self) -> None:
        """Nothing that this channel gives needs to be refused."""

    @property
    def doorbells(self) -> list[str]:
        return self._inner.doorbells

    def read_status(self) -> StatusLine:
        return self._inner.read_status()

    def is_exit_asked(self) -> bool:
        """Never: anybody may have written the status, and whoever may ask for the end sends a request."""
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


def _number_of(seq: int, last: int) -> int:
    """The smallest number above ``last`` that ``seq`` shows."""
    return last + 1 + (seq - last - 1) % MAX_SEQ


def _mac(keyed: hashlib.blake2b, number: int, rest: bytes) -> str:
    state = keyed.copy()
    state.update(number.to_bytes(8, "little"))
    state.update(rest)
    return state.hexdigest()


def _never() -> bool:
    return False
