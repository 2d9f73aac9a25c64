"""The messages of the legacy dialect, to and from ours. No I/O.

::

    request    {"cmd": "matmul", "params": "a,b"}
    response   {"params": "result_0", ...}          tags of the results, or the text

Legacy readers search the text for ``"params": "`` and take what comes before the next quote. So in a response of ours
``params`` is the first member, in the spacing of ``json.dumps``, and our own members follow. A request has no number: a
controller waits for its response before it sends the next one. The status ``error: why`` says that a request failed;
our response says it in ``params`` too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..base.identifiers import is_plain_tag, tensor_file
from ..base.strict_json import refuse_duplicates
from ..errors import BadMessage
from .commands import split_words
from .messages import Failure, FailureKind, Request, Response, TensorRef, encode
from .status import Status, StatusLine

__all__ = ["LEGACY", "LEGACY_FORBIDDEN_MODE", "decode_legacy_response", "encode_legacy"]

LEGACY: Final = "legacy"  # the channel's name

LEGACY_FORBIDDEN_MODE: Final = 0o002  # a legacy peer makes files by its umask, which often lets its group write

_decoder = msgspec.json.Decoder()


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
        return json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadMessage(
            f"the message cannot be written: {error}; encode what is no text, with repr() say", detail=str(error)
        ) from error


def _params_of(response: Response) -> str:
    if response.error is not None:
        return f"error: {response.error.message}"
    return ",".join([ref.tag for ref in response.tensors]) or response.result


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
        BadMessage: it is no JSON object, or one without params.
    """
    try:
        fields = _decoder.decode(raw)
        refuse_duplicates(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise _bad(raw, str(error)) from error
    if not isinstance(fields, Mapping):
        raise _bad(raw, "it is no object")
    params = fields.get("params", fields.get("parameters", fields.get("result")))
    if isinstance(params, list):
        params = ",".join(map(str, params))
    if params is None and (params := fields.get("error")) is None:
        raise _bad(raw, "it has no params")
    text = str(params)
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
    start = raw[:80].decode("utf-8", "replace")
    return BadMessage(f"the legacy peer's response cannot be read: {why}; it begins {start!r}", detail=why)
