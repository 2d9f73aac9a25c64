"""What msgspec finds wrong with a request or a configuration, as people write it: where, and what is allowed there.

It names no key of a dictionary and no value of a list of choices, so these are looked for here. Opens nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect

from .api import NAME

__all__ = ["explain"]

_AT: Final = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)
_PART: Final = re.compile(r"\.(?P<field>[^.\[\]]+)|\[(?P<index>[0-9]+|\.\.\.)\]")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
_CHOICE: Final = re.compile(r"Invalid enum value (?P<value>.*)", re.DOTALL)
_TOO_LARGE: Final = "Number out of range"
_WORDS: Final = {
    f"Expected `str` matching regex {NAME!r}": "expected 1 to 128 of A-Za-z0-9_.-, not beginning with . or -",
    "Expected `str` matching regex '^[0-9a-fA-F]{64}$'": "expected 64 hexadecimal digits",
}


def explain(text: str, kind: Any, given: Any = None) -> tuple[str, str]:
    """Where something is wrong, and what.

    Args:
        text: of msgspec's error.
        kind: the type that was expected.
        given: what was there, of plain objects; None if that is not known, or too large to be looked at.

    Returns:
        The place, as ``workers.one.script`` or ``workers['a b']``, empty for all of it; and what is wrong.
    """
    match = _AT.fullmatch(text)
    assert match is not None  # all of it is optional
    what, path = match["what"], match["path"] or ""
    place, found, value = _follow(path, inspect.type_info(kind), given, what)
    if match["key"] is not None:
        place += _key(found, value)
    choice = _CHOICE.fullmatch(what)
    choices = next((each.values for each in _plain(found) if isinstance(each, inspect.LiteralType)), ())
    if choice is not None and choices:
        return place, f"there is no {choice['value']}; there are {', '.join(map(str, choices))}"
    return place, _WORDS.get(what, what[:1].lower() + what[1:])


def _follow(path: str, kind: Any, given: Any, what: str) -> tuple[str, Any, Any]:
    """The place that a path means, the type there, and the value."""
    place = ""
    for part in _PART.finditer(path):
        field, index = part["field"], part["index"]
        if field is not None:
            place += f".{field}"
            kind = next((each.type for one in _plain(kind) for each in _fields(one) if each.encode_name == field), None)
            given = given.get(field) if isinstance(given, Mapping) else None
            continue
        kind = next((inner for one in _plain(kind) if (inner := _inner(one)) is not None), None)
        key: Any = int(index) if index != "..." else _wrong_one(given, kind, what)
        place += "[...]" if key is None else _as_place(key)
        try:
            given = None if given is None or key is None else given[key]
        except (LookupError, TypeError):
            given = None
    return place.lstrip("."), kind, given


def _as_place(key: Any) -> str:
    return f".{key}" if isinstance(key, str) and _BARE.fullmatch(key) else f"[{key!r:.80}]"


def _plain(kind: Any) -> Iterator[Any]:
    """The types that a type may be."""
    if isinstance(kind, inspect.Metadata):
        yield from _plain(kind.type)
    elif isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from _plain(each)
    elif kind is not None:
        yield kind


def _fields(kind: Any) -> tuple[inspect.Field, ...]:
    return kind.fields if isinstance(kind, inspect.StructType) else ()


def _inner(kind: Any) -> Any:
    """The type of the elements; None if it has none."""
    return kind.value_type if isinstance(kind, inspect.DictType) else getattr(kind, "item_type", None)


def _wrong_one(given: Any, kind: Any, what: str) -> Any:
    """The key of the value that is wrong; None if that is not known."""
    if not isinstance(given, Mapping):
        return None
    if what == _TOO_LARGE:
        return next((key for key, each in given.items() if _has_infinity(each)), None)
    for key, value in given.items():
        for each in _plain(kind):
            if isinstance(each, inspect.StructType):
                try:
                    msgspec.convert(value, each.cls)
                except msgspec.ValidationError:
                    return key
    return None


def _has_infinity(value: Any) -> bool:
    """Whether a number in it is what Python makes of one that is too large."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, float) and math.isinf(each):
            return True
        if isinstance(each, dict | list):
            waiting.extend(each.values() if isinstance(each, dict) else each)
    return False


def _key(kind: Any, given: Any) -> str:
    """The key that is none, as a place."""
    for each in _plain(kind):
        if isinstance(each, inspect.DictType) and isinstance(given, Mapping):
            pattern = next((str(one.pattern) for one in _plain(each.key_type) if getattr(one, "pattern", None)), "")
            for key in given:
                if not re.search(pattern, str(key)):
                    return _as_place(key)
    return "[...]"
