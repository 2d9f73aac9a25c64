"""Requests and responses, to JSON text and back. No I/O, no clocks but the timestamp.

A request names one command for the worker; its response has the same ``seq``. Requests and responses alternate
strictly: a controller writes its next request after the response to the previous one. Timestamps are milliseconds since
1970.
"""

from __future__ import annotations

import enum
import time
from typing import Final

import msgspec
from msgspec.structs import astuple

from ..base import system
from ..base.strict_json import UNREADABLE, refuse_duplicates
from ..errors import BadMessage
from ..native import has_as_many_colons
from ..wire.messages import FAILURE_BAD_INPUT, FAILURE_CANCELLED, FAILURE_HANDLER, FAILURE_UNKNOWN_COMMAND
from .commands import command_of

__all__ = [
    "Failure",
    "FailureKind",
    "Request",
    "Response",
    "TensorRef",
    "decode_request",
    "decode_response",
    "encode",
    "now_ms",
]


class TensorRef(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a tensor is.

    Attributes:
        tag: its name on both sides; "" for a result.
        segment: file name of its segment in the session directory.
        seq: the sequence number that the segment's header must have.
    """

    tag: str
    segment: str
    seq: int


class FailureKind(enum.StrEnum):
    """Why a request has no result."""

    UNKNOWN_COMMAND = FAILURE_UNKNOWN_COMMAND
    BAD_INPUT = FAILURE_BAD_INPUT  # missing tag, wrong count: the handler was not to blame
    HANDLER = FAILURE_HANDLER  # the handler raised
    CANCELLED = FAILURE_CANCELLED  # the controller has cancelled it, and its handler was not called, or has noticed


class Failure(msgspec.Struct, omit_defaults=True, gc=False):
    """How a request failed.

    Attributes:
        kind: what was wrong.
        type: the name of the exception's class.
        message: what went wrong, for the user.
        traceback: the handler's traceback, for the developer; "" if no handler raised.
        needed_nbytes: if the worker had no room for a tensor: how many bytes it needed; else None.
        free_nbytes: how many were free then; else None.
    """

    kind: FailureKind
    type: str
    message: str
    traceback: str = ""
    needed_nbytes: int | None = None
    free_nbytes: int | None = None


class Request(msgspec.Struct, omit_defaults=True, gc=False):
    """What the controller sends.

    Attributes:
        seq: number of the request; 0 in the legacy dialect, where requests have none.
        command: first word of the message.
        parameters: the other words of the message, mostly tags.
        timestamp: when it was written, milliseconds since 1970.
        tensors: tags that are announced, and where their tensors are.
        drops: tags that were dropped.
        form: ``FORM_NAMED`` if the parameters are arguments by name; "" for words. See :mod:`.named_values`.
        mac: proof that the peer wrote it, the last member; "" without authentication. See :mod:`.mac`.
    """

    seq: int = 0
    command: str = ""
    parameters: str = ""
    timestamp: int = 0
    tensors: list[TensorRef] = []
    drops: list[str] = []
    form: str = ""
    mac: str = ""


class Response(msgspec.Struct, omit_defaults=True, gc=False):
    """What the worker answers.

    Attributes:
        seq: number of the request that this answers.
        command: the request's command, or what the handler called it.
        result: the text.
        message: a remark, for example why a result is "invalid".
        timestamp: when it was written, milliseconds since 1970.
        tensors: where the results are, in order.
        error: set when the request failed.
        form: ``FORM_NAMED`` if the result holds values by name; "" for a text.
        mac: as in a request.
    """

    seq: int = 0
    command: str = ""
    result: str = ""
    message: str = ""
    timestamp: int = 0
    tensors: list[TensorRef] = []
    error: Failure | None = None
    form: str = ""
    mac: str = ""


_LONG_TEXT: Final = 1 << 16  # shorter ones skip the check of memory, because it takes time
_BYTES_OF_CHARACTER: Final = 4  # bytes of memory that the encoder may need: its buffer grows by half, and moves

_encoder = msgspec.json.Encoder()
_request_decoder = msgspec.json.Decoder(Request)
_response_decoder = msgspec.json.Decoder(Response)
_any_decoder = msgspec.json.Decoder()


def now_ms() -> int:
    """The wall clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def encode(message: Request | Response) -> bytes:
    """The message as JSON text, its number first.

    Raises:
        BadMessage: it has characters that no UTF-8 text can hold.
        SystemLimit: it is long, and there is no memory for it.
    """
    size = len(message.parameters if isinstance(message, Request) else message.result)
    if size > _LONG_TEXT:  # msgspec 0.22 crashes when it gets no more memory while it writes a text
        system.require_memory(_BYTES_OF_CHARACTER * size, "a message")
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError as error:
        raise BadMessage(
            f"the message cannot be written: {error}; encode what is no text, with repr() say", detail=str(error)
        ) from error


# Every member of a message has one colon, and all defaults are false (empty, 0 or None). So a text with exactly as many
# colons as true members has no member twice, and no unknown member. Only a text with more colons needs the slow check.


def decode_response(raw: bytes) -> Response:
    """Parse a response.

    Raises:
        BadMessage: the text is no response.
    """
    try:
        response = _response_decoder.decode(raw)
    except UNREADABLE as error:
        raise _bad("response", raw, error) from error
    if not has_as_many_colons(raw, astuple(response)):
        refuse_duplicates(raw)
    return response


def decode_request(raw: bytes) -> Request:
    """Parse a request in either spelling of its keys.

    Raises:
        BadMessage: the text is no request.
    """
    try:
        request = _request_decoder.decode(raw)
    except msgspec.ValidationError:  # for example a list of parameters
        return _decode_other_request(raw)
    except UNREADABLE as error:
        raise _bad("request", raw, error) from error
    if request.command and has_as_many_colons(raw, astuple(request)):
        return request
    return _decode_other_request(raw)


def _decode_other_request(raw: bytes) -> Request:
    """Parse a request that may have other keys than ours, or a key twice, or colons in its texts."""
    try:
        fields = _any_decoder.decode(raw)
        command, parameters = command_of(fields)
        request = msgspec.convert({**fields, "command": command, "parameters": parameters}, Request)
    except UNREADABLE as error:
        raise _bad("request", raw, error) from error
    refuse_duplicates(raw)
    return request


def _bad(what: str, raw: bytes, error: Exception) -> BadMessage:
    start = raw[:80].decode("utf-8", "replace")
    return BadMessage(f"the {what} cannot be read: {error}; it begins {start!r}", detail=str(error))
