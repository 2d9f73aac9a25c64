"""JSON that says one thing: no key twice in an object. No I/O.

msgspec and most decoders take the last of two equal keys, and some take the first, so one text could have two meanings.
Our own encoder never writes such keys. A caller recognises our encoder's texts quickly
(``native.has_as_many_colons``). This module parses all other texts a second time for the check (5 µs).
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

import msgspec

from ..errors import BadMessage

__all__ = ["UNREADABLE", "refuse_duplicates"]

# What decoders raise. For text that is not UTF-8, msgspec raises Python's own errors.
UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeError)


def _object(pairs: list[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadMessage(f"the key {twice[:80]!r} is given twice in one object; give it once", detail=twice[:80])


def _constant(name: str) -> NoReturn:
    raise BadMessage(f"{name} is no JSON number", detail=name)


# Numbers stay text: the check does not need their values, and an integer of many digits costs nothing.
_decoder: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=_constant, strict=False
)


def refuse_duplicates(text: bytes | str) -> None:
    """Refuse a JSON text in which an object has a key twice.

    Raises:
        BadMessage: a key is there twice, or the text is no JSON.
    """
    try:
        _decoder.decode(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadMessage):
            raise
        raise BadMessage(f"the text is no JSON: {error}", detail=str(error)) from error
