"""MACs of control messages: proof that the peer wrote them. Pure: text in, MAC out.

A signed message has one more member than an unsigned one, the last::

    {"seq":12,"command":"echo",...,"mac":"0123456789abcdef0123456789abcdef"}
             |--------- rest ----|

    mac = BLAKE2b(key = secret, digest size 16, person = "tr_mmap request" or "tr_mmap response",
                  data = number as u64 little-endian, then rest as it stands, from the first comma), in hex

The number counts the messages of this side, gaps allowed. ``seq`` shows it in 8 digits, as
(number - 1) % MAX_MESSAGE_SEQ + 1. A verifier takes the smallest number that ``seq`` can show and that is above the
number of the last message it accepted. So an old message, even one from before seq began again at 1, is checked with a
number that is not its own, and is rejected. A message that came too late, one of the other direction, and one of an
earlier worker are rejected too. A response has the number of its request.

What this protects from: another process, also of the same user, may write to the session's files. It cannot make the
worker do anything, and the controller does not take its response for the worker's. What this does not protect from: a
process that may read this one's memory (ptrace) has the secret. A process that may write to the session's files can
still destroy messages, so that a wait times out. It can change ``status.txt``, which is a hint and has no MAC, and it
can change the tensors.
"""

from __future__ import annotations

from typing import Final

from ..errors import BadMessage
from ..wire.messages import MAX_MESSAGE_SEQ
from .messages import Request, Response, encode

try:
    # Where hashlib and hmac have these from. To import those two loads OpenSSL: 5 ms of each worker's start.
    from _blake2 import blake2b
    from _operator import _compare_digest as compare_digest
except ImportError:  # another Python than CPython
    from hashlib import blake2b
    from hmac import compare_digest  # type: ignore[no-redef] # the same, with OpenSSL's signature

__all__ = ["MAC_NBYTES", "SECRET_NBYTES", "Signer", "Verifier"]

SECRET_NBYTES: Final = 32  # as strong as a key of AES-256
MAC_NBYTES: Final = 16  # a guess is right with probability 2**-128, and every guess costs a wake-up

_TAIL_NBYTES: Final = len(b',"mac":""}') + 2 * MAC_NBYTES


class Signer:
    """Signs the messages of one side.

    Args:
        secret: shared with the peer.
        kind: what this side sends, "request" or "response".
    """

    def __init__(self, secret: bytes, kind: str) -> None:
        self._keyed = _keyed(secret, kind)
        self._last = 0  # the number of the last message that was sent

    def sign(self, message: Request | Response) -> int:
        """Put the MAC into a message. Returns the message's number, for :meth:`sent`.

        Raises:
            BadMessage: the message's ``seq`` is out of bounds.
        """
        if not 0 < message.seq <= MAX_MESSAGE_SEQ:
            raise BadMessage(
                f"a message's number is 1 to {MAX_MESSAGE_SEQ}, not {message.seq}", detail=str(message.seq)
            )
        number = _number_of(message.seq, self._last)
        message.mac = ""
        text = encode(message)
        comma = text.find(b",")
        message.mac = _mac(self._keyed, number, text[comma:-1] if comma > 0 else b"")
        return number

    def is_overtaken(self, number: int) -> bool:
        """Whether a message with a higher ``seq`` was sent before the one that :meth:`sign` gave that number."""
        return number > self._last + MAX_MESSAGE_SEQ // 2

    def sent(self, number: int) -> None:
        """The message with that number was sent. A message that was not sent leaves its number for the next one."""
        self._last = number


class Verifier:
    """Tells which messages the peer has signed.

    Args:
        secret: shared with the peer.
        kind: what the peer sends, "request" or "response".

    Attributes:
        last_message: the last message that was accepted; None before.
    """

    def __init__(self, secret: bytes, kind: str) -> None:
        self._keyed = _keyed(secret, kind)
        self._last = 0  # the number of the last message that was accepted
        self.last_message: bytes | None = None

    def accept(self, message: bytes) -> bool:
        """Whether the peer wrote this message, and wrote it after the last one that was accepted."""
        rest_end = len(message) - _TAIL_NBYTES
        if message[rest_end : rest_end + 8] != b',"mac":"' or message[-2:] != b'"}' or message[:7] != b'{"seq":':
            return False
        comma = message.find(b",")
        digits = message[7:comma].lstrip(b" ")
        if not digits.isdigit() or len(digits) > 8 or not 0 < (seq := int(digits)) <= MAX_MESSAGE_SEQ:
            return False
        number = _number_of(seq, self._last)
        wanted = _mac(self._keyed, number, message[comma:rest_end])
        if not compare_digest(wanted.encode(), message[rest_end + 8 : -2]):
            return False
        if number <= self._last:  # a signal handler has accepted it, or a later one, in the middle of this call
            return False
        # No call since that look, so no signal handler either.
        self._last, self.last_message = number, message
        return True


def _keyed(secret: bytes, kind: str) -> blake2b:
    return blake2b(digest_size=MAC_NBYTES, key=secret, person=f"tr_mmap {kind}".encode())


def _number_of(seq: int, last: int) -> int:
    """The smallest number above ``last`` that ``seq`` can show."""
    return last + 1 + (seq - last - 1) % MAX_MESSAGE_SEQ


def _mac(keyed: blake2b, number: int, rest: bytes) -> str:
    state = keyed.copy()
    state.update(number.to_bytes(8, "little"))
    state.update(rest)
    return state.hexdigest()
