"""The messages of the legacy dialect, to and from ours, and requests that somebody writes by hand. No I/O.

::

    request    {"cmd": "matmul", "params": "a,b"}   or the words alone: matmul a b
    response   {"params": "result_0", ...}          tags of the results, or the text

A request has no number: a controller waits for its response before it sends the next one. The status ``error: why``
says that a request failed; our response says it in ``params`` too.

**What we write.** Some legacy readers use a JSON parser. Others search the text for ``"params": "``, take what comes
before the next quote, and undo no escapes. So a message of ours is always JSON. ``params`` is the first member of a
response, in the spacing of ``json.dumps``, and our own members follow. A quote is written ``\\u0022``: a JSON parser
gets the exact text, and the search finds the end of the text at its end. With ``\\"`` it would cut the text there. A
reader that searches sees ``\\u0022``, ``\\\\`` and ``\\n`` as they stand. No form of these characters says the same to
both kinds, and a JSON writer of the original framework gives the last two in this form too. Letters outside ASCII are
written as they are, because only a parser would read ``\\u0142``. Nothing that we write has a line break in it.

**What we read.** A text that is JSON means what JSON says. Other writers put a text between two quotes as it is. If it
has a quote, a backslash or a control character, the message may be no JSON. Then we read it as their own readers do:
up to the next quote, and no escape is undone. (``C:\\temp`` is JSON and has a tab: nobody can tell who wrote it.)

**Where words end and JSON begins.** A request that begins with ``{``, ``[`` or a quote is meant as JSON; whatever else
is command words. JSON is an object with a command, or a string that holds such an object or command words. An object
that is torn, or has no command, or says two things, is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..base.identifiers import is_plain_tag, tensor_file
from ..base.strict_json import UNREADABLE, refuse_duplicates
from ..errors import BadMessage
from ..wire.messages import HAND_GRACE_S
from .commands import parse_command, split_words
from .messages import Failure, FailureKind, Request, Response, TensorRef, decode_request, encode
from .status import Status, StatusLine

__all__ = [
    "LEGACY",
    "LEGACY_FORBIDDEN_MODE",
    "decode_legacy_request",
    "decode_legacy_response",
    "encode_legacy",
    "results_of",
    "silence_of",
]

LEGACY: Final = "legacy"  # the channel's name

LEGACY_FORBIDDEN_MODE: Final = 0o002  # a legacy peer makes files by its umask, which often lets its group write

_SILENCE_S: Final = HAND_GRACE_S / 2  # no program pauses for so long in the middle of a text
_SHORT_SILENCE_S: Final = 0.05  # nor for so long between two writes of one short text
_BLANK: Final = b"\0 \r\n\t"
_OF_JSON: Final = (b"{", b"[", b'"')
_decoder = msgspec.json.Decoder()
_escapes = re.compile(rb"\\(.)")
_raw_command = re.compile(r'"(?:command|cmd)"\s*:\s*"([^"]*)"')
_raw_params = re.compile(r'"(?:parameters|params)"\s*:\s*"([^"]*)"')
_raw_result = re.compile(r'"(?:result|error)"\s*:\s*"([^"]*)"')
_has_params = re.compile(r'"(?:parameters|params)"\s*:').search


# -- what we write ---------------------------------------------------------------------------------------------------


def encode_legacy(message: Request | Response) -> bytes:
    """The message as a legacy peer reads it.

    Raises:
        BadMessage: it has characters that no UTF-8 text can hold.
    """
    if isinstance(message, Request):
        fields: dict[str, Any] = {"cmd": message.command, "params": message.parameters}
    else:
        own = msgspec.json.decode(encode(message))
        own.pop("seq", None)
        fields = {"params": _params_of(message), "cmd": message.command, **own}
    try:
        text = json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadMessage(
            f"the message cannot be written: {error}; encode what is no text, with repr() say", detail=str(error)
        ) from error
    return _escapes.sub(lambda found: b"\\u0022" if found[1] == b'"' else found[0], text) if b'\\"' in text else text


def _params_of(response: Response) -> str:
    if response.error is not None:
        return f"error: {response.error.message}"
    return ",".join([ref.tag for ref in response.tensors]) or response.result


# -- what we read ----------------------------------------------------------------------------------------------------


def silence_of(text: bytes) -> float:
    """For how long a file's writer must have been silent before its text is taken as whole, in seconds.

    A file that was put in place by rename is whole at once; one that is written in place may be read too early.
    """
    if text.startswith(b'{"seq"'):
        return 0.0  # ours
    text = text.lstrip(_BLANK)
    end = text.rstrip(_BLANK)
    if not end.startswith(_OF_JSON):
        return _SILENCE_S if not end else 0.0 if text.endswith(b"\n") else _SHORT_SILENCE_S
    try:
        _decoder.decode(end)
    except UNREADABLE:
        return _SHORT_SILENCE_S if end.startswith(b"{") and end.endswith(b"}") else _SILENCE_S
    return 0.0


def decode_legacy_request(raw: bytes) -> Request:
    """Parse a request of a legacy controller, or of somebody who writes it by hand. See the module's docstring.

    Raises:
        BadMessage: there is no command in it.
    """
    text = raw.strip(_BLANK)
    if text.startswith(b"{"):
        try:
            return decode_request(text)
        except BadMessage as error:
            if (found := _raw_request(text)) is None:
                raise error from None
            return found
    try:
        words = _decoder.decode(text) if text.startswith(_OF_JSON) else text.decode()
    except UNREADABLE as error:
        raise BadMessage(f"the request cannot be read: {error}; it begins {_begin(raw)}", detail=str(error)) from error
    if not isinstance(words, str):
        raise BadMessage(f"a JSON request is an object with a command; this one begins {_begin(raw)}", detail="command")
    command, parameters = parse_command(words)
    return Request(command=command, parameters=parameters)


def _raw_request(text: bytes) -> Request | None:
    """A request that a writer has put between braces and quotes as it was; None if it is none."""
    if not text.endswith(b"}") or _is_json(text):
        return None
    try:
        plain = text.decode()
    except UnicodeError:
        return None
    if _is_followed(plain):
        return None
    command, params = _raw_command.search(plain), _raw_params.search(plain)
    if command is None or not command[1].strip() or (params is None and _has_params(plain)):
        return None
    return Request(command=command[1].strip(), parameters="" if params is None else params[1])


def _is_followed(text: str) -> bool:
    """Whether a whole JSON value has something behind it, which belongs to no request."""
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_json(text: bytes) -> bool:
    try:
        _decoder.decode(text)
    except UNREADABLE:
        return False
    return True


def _fields_of(raw: bytes) -> Mapping[str, Any]:
    """The members of a response.

    Raises:
        BadMessage: it is no JSON object, nor what a writer makes that escapes nothing.
    """
    text = raw.strip(_BLANK)
    try:
        fields = _decoder.decode(text)
        refuse_duplicates(text)
    except (*UNREADABLE, BadMessage) as error:  # BadMessage: a text that has '", "params": "' in it, say
        plain = text.decode("utf-8", "replace")
        found = _raw_params.search(plain) or _raw_result.search(plain)
        if not plain.startswith("{") or found is None:
            raise _bad(raw, str(error)) from error
        return {"params": found[1]}
    if not isinstance(fields, Mapping):
        raise _bad(raw, "it is no object")
    return fields


def _params_in(fields: Mapping[str, Any]) -> str | None:
    params = fields.get("params", fields.get("parameters", fields.get("result")))
    if params is None:
        params = fields.get("error")
    return ",".join(map(str, params)) if isinstance(params, list) else None if params is None else str(params)


def results_of(raw: bytes) -> list[str]:
    """The words of a response that may be tags of results; none if it cannot be read, or is a text for certain."""
    try:
        words = split_words(_params_in(_fields_of(raw)) or "")
    except BadMessage:
        return []
    return words if all(map(is_plain_tag, words)) else []


def decode_legacy_response(raw: bytes, seq: int, command: str, line: StatusLine) -> Response:
    """A legacy worker's response as one of ours.

    Its params may be tags of results or a text, and only the files tell which. So ``tensors`` has the words of the
    params, ``result`` has the text, and the transfer chooses: the words are results if there are files of these names.

    Args:
        raw: the text of the message.
        seq: number of the request that it answers.
        command: that request's command.
        line: the status that was read after the message.

    Raises:
        BadMessage: it is no object, or one without params.
    """
    fields = _fields_of(raw)
    text = _params_in(fields)
    if text is None:
        raise _bad(raw, "it has no params")
    words = split_words(text)
    return Response(
        seq=seq,
        command=command,
        result=str(fields.get("result", text)),
        message=str(fields.get("message", "")),
        tensors=[TensorRef(word, tensor_file(word), 0) for word in words] if all(map(is_plain_tag, words)) else [],
        error=_failure_of(fields.get("error"), line),
    )


def _failure_of(error: Any, line: StatusLine) -> Failure | None:
    if isinstance(error, Mapping):  # our own form, from a worker that speaks both dialects
        try:
            return msgspec.convert(error, Failure)
        except msgspec.ValidationError:
            error = str(dict(error))
    if not error and line.status is not Status.ERROR:
        return None
    message = str(error or line.detail or "it does not say why")
    is_unknown = "unknown command" in message.lower()
    return Failure(FailureKind.UNKNOWN_COMMAND if is_unknown else FailureKind.HANDLER, "error", message)


def _bad(raw: bytes, why: str) -> BadMessage:
    return BadMessage(f"the legacy peer's response cannot be read: {why}; it begins {_begin(raw)}", detail=why)


def _begin(raw: bytes) -> str:
    return repr(raw[:80].decode("utf-8", "replace"))
