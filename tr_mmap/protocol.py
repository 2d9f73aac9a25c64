"""The messages and the status words that two sides exchange. No I/O, no clocks but the timestamp.

A request asks the worker for one command; the response to it carries the same ``seq``. The wire alternates strictly:
a controller writes its next request when the previous one was answered. Timestamps are milliseconds since 1970.
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import astuple

from .errors import BadMessage
from .native import has_as_many_colons
from .strict import refuse_duplicates

__all__ = [
    "EXIT_COMMAND",
    "MAX_SEQ",
    "TRANSITIONS",
    "Failure",
    "FailureKind",
    "Message",
    "Request",
    "Response",
    "Status",
    "StatusLine",
    "TensorRef",
    "decode_request",
    "decode_response",
    "encode",
    "now_ms",
    "parse_command",
    "parse_status",
    "split_words",
]

EXIT_COMMAND: Final = "exit"  # the controller's wish that the worker end; no handler sees it
MAX_SEQ: Final = 99_999_999  # 8 digits; then from 1 again: the wire alternates, so only neighbours must differ
MAX_DETAIL_CHARS: Final = 1000  # the status line is one page of 4 KiB; a character is at most 4 bytes of it


class TensorRef(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Says where a tensor is.

    Attributes:
        tag: the name the two sides know it by; "" for a result.
        segment: file name of its segment in the session directory.
        seq: the sequence number that the segment's header must bear.
    """

    tag: str
    segment: str
    seq: int


class FailureKind(enum.StrEnum):
    """Why a request has no result."""

    UNKNOWN_COMMAND = "unknown_command"
    BAD_INPUT = "bad_input"  # missing tag, wrong count: the handler was not to blame
    HANDLER = "handler"  # the handler raised


class Failure(msgspec.Struct, omit_defaults=True, gc=False):
    """A failed request: the message for the person, the traceback for the developer."""

    kind: FailureKind
    type: str
    message: str
    traceback: str = ""


class Request(msgspec.Struct, omit_defaults=True, gc=False):
    """What the controller asks.

    Attributes:
        seq: number of the request; 0 where the peer does not count.
        command: first word of the message.
        parameters: the rest, usually tags.
        timestamp: when it was written, milliseconds since 1970.
        tensors: tags that the worker does not know yet, and where they are.
        drops: tags that are gone.
        mac: proof of who wrote it, last; "" without authentication. See ``tr_mmap.auth``.
    """

    seq: int = 0
    command: str = ""
    parameters: str = ""
    timestamp: int = 0
    tensors: list[TensorRef] = []
    drops: list[str] = []
    mac: str = ""


class Response(msgspec.Struct, omit_defaults=True, gc=False):
    """What the worker answers.

    Attributes:
        seq: number of the request that this answers.
        command: the request's command, or what the handler called it.
        result: the text.
        message: a remark, why a result is "invalid" say.
        timestamp: when it was written, milliseconds since 1970.
        tensors: where the results are, in order.
        error: set when the request failed.
        mac: as in a request.
    """

    seq: int = 0
    command: str = ""
    result: str = ""
    message: str = ""
    timestamp: int = 0
    tensors: list[TensorRef] = []
    error: Failure | None = None
    mac: str = ""


_encoder = msgspec.json.Encoder()
_request_decoder = msgspec.json.Decoder(Request)
_response_decoder = msgspec.json.Decoder(Response)
_any_decoder = msgspec.json.Decoder()

# What decoders raise; msgspec lets Python's own errors through for text that is not UTF-8.
_UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeError)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def encode(message: Request | Response) -> bytes:
    """The message as JSON text, its number first.

    Raises:
        BadMessage: it has characters that no UTF-8 text can hold.
    """
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError as error:
        raise BadMessage(
            f"the message cannot be written: {error}; encode what is no text, with repr() say", detail=str(error)
        ) from error


# Every member of a message has one colon. So a text with no more colons than members that are not at their defaults,
# which are all false, has no member twice, and none that we do not know; only where it has more do we have to look at
# it closely.


def decode_response(raw: bytes) -> Response:
    """Parse a response.

    Raises:
        BadMessage: it is not one.
    """
    try:
        response = _response_decoder.decode(raw)
    except _UNREADABLE as error:
        raise _bad("response", raw, error) from error
    if not has_as_many_colons(raw, astuple(response)):
        refuse_duplicates(raw)
    return response


def decode_request(raw: bytes) -> Request:
    """Parse a request in either spelling of its keys.

    Raises:
        BadMessage: it is not one.
    """
    try:
        request = _request_decoder.decode(raw)
    except msgspec.ValidationError:  # a list of parameters, say
        return _decode_other_request(raw)
    except _UNREADABLE as error:
        raise _bad("request", raw, error) from error
    if request.command and has_as_many_colons(raw, astuple(request)):
        return request
    return _decode_other_request(raw)


def _decode_other_request(raw: bytes) -> Request:
    """Parse a request that may have other keys than ours, or a key twice, or colons in its texts."""
    try:
        fields = _any_decoder.decode(raw)
        command, parameters = _command_of(fields)
        request = msgspec.convert({**fields, "command": command, "parameters": parameters}, Request)
    except _UNREADABLE as error:
        raise _bad("request", raw, error) from error
    refuse_duplicates(raw)
    return request


def _bad(what: str, raw: bytes, error: Exception) -> BadMessage:
    start = raw[:80].decode("utf-8", "replace")
    return BadMessage(f"the {what} cannot be read: {error}; it begins {start!r}", detail=str(error))


def _pick(fields: Mapping[str, Any], long: str, short: str) -> Any:
    if long in fields and short in fields and fields[long] != fields[short]:
        raise BadMessage(f"{long!r} and {short!r} are both given and differ; give one", detail=long)
    return fields.get(long, fields.get(short))


def _command_of(fields: Any) -> tuple[str, str]:
    if not isinstance(fields, Mapping):
        raise BadMessage("a JSON message is an object with a command", detail=type(fields).__name__)
    command = _pick(fields, "command", "cmd")
    parameters = _pick(fields, "parameters", "params")
    if not isinstance(command, str) or not command.strip():
        raise BadMessage("a JSON message needs a text under 'command' (or 'cmd')", detail="command")
    if parameters is None:
        parameters = ""
    elif isinstance(parameters, list | tuple):
        parameters = " ".join([_word_of(each) for each in parameters])
    else:
        parameters = _word_of(parameters)
    return command.strip(), parameters


def _word_of(value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise BadMessage("'parameters' (or 'params') is a text, or a list of words and numbers", detail="parameters")
    try:
        return str(value)
    except ValueError as error:  # an int with more digits than Python writes
        raise BadMessage(f"a parameter cannot be written: {error}", detail="parameters") from error


Message = str | Mapping[str, Any]  # what users write: "matmul a b", or a JSON object, as text or as a dict


def parse_command(message: Message) -> tuple[str, str]:
    """Split what the user wrote into command and parameters.

    Args:
        message: ``"matmul a b"``, ``'{"cmd": "matmul", "params": "a,b"}'``, or that object as a dict.

    Raises:
        BadMessage: there is no command in it.
    """
    if isinstance(message, str):
        command, _, parameters = message.partition(" ")
        if command.isidentifier():  # most are
            return command, parameters.strip()
        words = message.split(None, 1)
        if not words:
            raise BadMessage("the message is empty; it begins with a command", detail="")
        if words[0][0] != "{":
            return words[0], words[1].rstrip() if len(words) > 1 else ""
        try:
            text, message = message, _any_decoder.decode(message)
            refuse_duplicates(text)
        except _UNREADABLE as error:
            raise BadMessage(f"the message looks like JSON and is not: {error}", detail=str(error)) from error
    return _command_of(message)


_SEPARATORS: Final = re.compile(r"[\s,]+")


def split_words(parameters: str) -> list[str]:
    """The words of a parameter text, separated by spaces or commas."""
    if "," not in parameters:
        return parameters.split()
    return [word for word in _SEPARATORS.split(parameters) if word]


class Status(enum.StrEnum):
    """What the worker is doing. The values are the words in status.txt."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    OK = "ok"
    ERROR = "error"
    EXIT = "exit"  # written by the controller: please end
    EXITING = "exiting"
    TERMINATED = "terminated"

    @property
    def is_waiting(self) -> bool:
        """The worker waits for a request."""
        return self in _WAITING

    @property
    def is_end(self) -> bool:
        """Whoever wants the worker to end lets it say this, and nothing else."""
        return self in _ENDS

    @property
    def is_over(self) -> bool:
        """The worker has ended or is about to."""
        return self in _OVER


_WAITING: Final = frozenset({Status.READY, Status.OK, Status.ERROR})
_OVER: Final = frozenset({Status.EXITING, Status.TERMINATED})
_SYNONYMS: Final = {"running": Status.BUSY, "done": Status.OK}

_ENDS: Final = frozenset({Status.EXIT, Status.EXITING, Status.TERMINATED})
TRANSITIONS: Final[Mapping[Status, frozenset[Status]]] = {
    Status.STARTING: frozenset({Status.READY, Status.ERROR}) | _ENDS,
    # OK: a handler may say "ready" before its request is answered.
    Status.READY: frozenset({Status.READY, Status.BUSY, Status.OK, Status.ERROR}) | _ENDS,
    Status.BUSY: frozenset({Status.BUSY, Status.OK, Status.ERROR, Status.READY}) | _ENDS,
    Status.OK: frozenset({Status.BUSY, Status.OK, Status.READY, Status.ERROR}) | _ENDS,
    Status.ERROR: frozenset({Status.BUSY, Status.OK, Status.READY, Status.ERROR}) | _ENDS,
    Status.EXIT: _ENDS,
    Status.EXITING: frozenset({Status.EXITING, Status.TERMINATED}),
    Status.TERMINATED: frozenset({Status.TERMINATED}),
}


class StatusLine(msgspec.Struct, frozen=True):
    """A status word and what comes after its colon."""

    status: Status
    detail: str = ""

    def to_text(self) -> str:
        if not self.detail:
            return str(self.status.value)
        detail = " ".join(self.detail.split())
        return f"{self.status.value}: {detail[:MAX_DETAIL_CHARS]}"


_PLAIN_LINES: Final = {status.value: StatusLine(status) for status in Status}


def parse_status(text: str) -> StatusLine:
    """Read a status text: a known word, then perhaps a colon and a remark.

    Raises:
        BadMessage: the word is none of the protocol's.
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
