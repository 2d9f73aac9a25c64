"""The status words, what each means, and which may follow which. No I/O."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import msgspec

from ..errors import BadMessage
from ..wire import messages as wire

__all__ = ["TRANSITIONS", "Status", "StatusLine", "parse_status"]


class Status(enum.StrEnum):
    """What the worker is doing. The values are the words in status.txt."""

    STARTING = wire.STATUS_STARTING
    READY = wire.STATUS_READY
    BUSY = wire.STATUS_BUSY
    OK = wire.STATUS_OK
    ERROR = wire.STATUS_ERROR
    EXIT = wire.STATUS_EXIT  # the controller's request to exit
    EXITING = wire.STATUS_EXITING
    TERMINATED = wire.STATUS_TERMINATED

    @property
    def is_waiting(self) -> bool:
        """The worker waits for a request."""
        return self in _WAITING

    @property
    def is_ending(self) -> bool:
        """After the controller's request to exit, the worker may write such a status, and no other."""
        return self in _ENDING

    @property
    def is_over(self) -> bool:
        """The worker has ended or is about to."""
        return self in _OVER


_WAITING: Final = frozenset({Status.READY, Status.OK, Status.ERROR})
_OVER: Final = frozenset({Status.EXITING, Status.TERMINATED})
_SYNONYMS: Final = {wire.STATUS_RUNNING: Status.BUSY, wire.STATUS_DONE: Status.OK}

_ENDING: Final = frozenset({Status.EXIT, Status.EXITING, Status.TERMINATED})
TRANSITIONS: Final[Mapping[Status, frozenset[Status]]] = {
    Status.STARTING: frozenset({Status.READY, Status.ERROR}) | _ENDING,
    # READY to OK: a handler may write "ready" before its response is sent.
    Status.READY: frozenset({Status.READY, Status.BUSY, Status.OK, Status.ERROR}) | _ENDING,
    Status.BUSY: frozenset({Status.BUSY, Status.OK, Status.ERROR, Status.READY}) | _ENDING,
    Status.OK: frozenset({Status.BUSY, Status.OK, Status.READY, Status.ERROR}) | _ENDING,
    Status.ERROR: frozenset({Status.BUSY, Status.OK, Status.READY, Status.ERROR}) | _ENDING,
    Status.EXIT: _ENDING,
    Status.EXITING: frozenset({Status.EXITING, Status.TERMINATED}),
    Status.TERMINATED: frozenset({Status.TERMINATED}),
}


class StatusLine(msgspec.Struct, frozen=True):
    """A status word, and the text after its colon."""

    status: Status
    detail: str = ""

    def to_text(self) -> str:
        """The line for the status file, without its newline; a long detail is cut."""
        if not self.detail:
            return str(self.status.value)
        detail = " ".join(self.detail.split())
        return f"{self.status.value}: {detail[: wire.MAX_DETAIL_CHARS]}"


_PLAIN_LINES: Final = {status.value: StatusLine(status) for status in Status}


def parse_status(text: str) -> StatusLine:
    """Parse a status text: a known word, then perhaps a colon and a remark.

    Raises:
        BadMessage: the word is no status.
    """
    line = _PLAIN_LINES.get(text)
    if line is not None:
        return line
    word, _, detail = text.strip().partition(":")
    word = word.strip().lower()
    status = _SYNONYMS.get(word)
    if status is None:
        try:
            status = Status(word)
        except ValueError:
            known = ", ".join([*_PLAIN_LINES, *_SYNONYMS])
            raise BadMessage(f"{text[:80]!r} is no status; known are {known}", detail=text[:80]) from None
    return StatusLine(status, detail.strip())
