"""Values by name, as the text of a message: arguments of a request, or the result of a response. No I/O.

The text is a JSON object. A tensor in it is ``{"tensor": 0}``, its place among the message's own tensors; and a number
that JSON lacks is ``{"float": "nan"}``. A message with such a text says so in its member ``form``, so no plain text is
ever taken for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from ..base.strict_json import UNREADABLE
from ..errors import BadMessage
from ..wire.messages import FORM_NAMED

__all__ = ["FORM_NAMED", "pack", "unpack"]

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()
_PLAIN: Final = (str, int, bool, type(None))
_MIN_INT: Final = -(1 << 63)
_MAX_INT: Final = (1 << 64) - 1  # a decoder makes a float of a larger one
_TENSOR: Final = "tensor"
_FLOAT: Final = "float"
_NOT_FINITE: Final = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def pack(values: Mapping[Any, Any]) -> tuple[str, list[Any]]:
    """The text for values by name, and the tensors that it refers to.

    Args:
        values: by name: tensors, texts, numbers, None, and lists of these. What is nothing else counts as a tensor.

    Raises:
        BadMessage: a name is no text, or a value is a dict, an int of more than 64 bits, or lists without an end.
    """
    tensors: list[Any] = []
    plain = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise BadMessage(f"{name!r:.80} names no value: names are texts", detail=repr(name)[:80])
        try:
            plain[str.__str__(name)] = _packed(value, tensors)
        except (BadMessage, RecursionError) as error:
            why = error if isinstance(error, BadMessage) else "it is a list in a list without an end"
            raise BadMessage(f"the value {name[:80]!r} cannot be sent: {why}", detail=name[:80]) from None
    try:
        return _encoder.encode(plain).decode(), tensors
    except UnicodeError as error:
        raise BadMessage(f"the values cannot be written as a message: {error}", detail=str(error)) from error


def _packed(value: Any, tensors: list[Any]) -> Any:
    kind = type(value)
    if kind is int and not _MIN_INT <= value <= _MAX_INT:
        raise BadMessage("an int of more than 64 bits; send a text", detail=str(value.bit_length()))
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if value - value == 0.0 else {_FLOAT: repr(value)}
    if isinstance(value, list | tuple):
        return [_packed(each, tensors) for each in value]
    if isinstance(value, Mapping):
        raise BadMessage("a dict in a dict; give its values names of their own", detail=_TENSOR)
    if not isinstance(value, np.generic):  # a numpy scalar is a tensor, also one that is a float or a str
        for base in (str, int, float):  # an enum's member, say
            if isinstance(value, base):
                return _packed(base.__str__(value) if base is str else base(value), tensors)
    tensors.append(value)
    return {_TENSOR: len(tensors) - 1}


def unpack(text: str, tensors: Sequence[Any]) -> dict[str, Any]:
    """The values by name of a text.

    Args:
        text: of the message.
        tensors: that it refers to.

    Raises:
        BadMessage: it is no text of :func:`pack`.
    """
    try:
        values = _decoder.decode(text)
        if not isinstance(values, dict):
            raise BadMessage("it is no JSON object", detail=type(values).__name__)
        return {name: _unpacked(value, tensors) for name, value in values.items()}
    except (BadMessage, *UNREADABLE) as error:
        raise BadMessage(f"the message has no values by name: {error}", detail=str(error)) from error


def _unpacked(value: Any, tensors: Sequence[Any]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        index, number = value.get(_TENSOR), value.get(_FLOAT)
        if type(index) is int and 0 <= index < len(tensors):
            return tensors[index]
        if isinstance(number, str) and number in _NOT_FINITE:
            return _NOT_FINITE[number]
    raise BadMessage(f"{value!r:.80} is neither one of its {len(tensors)} tensors nor a number", detail=_TENSOR)
