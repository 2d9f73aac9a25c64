"""The inputs and outputs that are not tensors: JSON values, and nothing that JSON would silently change.

A contained process may write JSON of any depth, and JSON parsers recurse once for each level. Python's recursion limit
does not protect the stack: any program may change it, and it does not depend on the thread's stack. So the depth of
what a process has written is checked first, by a loop.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import numpy as np

__all__ = ["MAX_DEPTH", "MAX_VALUES_NBYTES", "check_depth", "parse_values", "plain"]

MAX_DEPTH: Final = 100
MAX_VALUES_NBYTES: Final = 8 << 20  # as objects they take up to thirty times as much
_MARKS: Final = b'"[]{}'
_OTHERS: Final = bytes(set(range(256)) - set(_MARKS))
_STEPS: Final = np.array([{0x5B: 1, 0x7B: 1, 0x5D: -1, 0x7D: -1}.get(each, 0) for each in range(256)], np.int8)
_CONTAINERS: Final = (list, tuple, dict)
_NUMPY: Final = (np.bool_, np.integer, np.floating)
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1


class _Bad(Exception):
    """A value that JSON lacks.

    Attributes:
        kind: the class of the error to raise for it.
        text: what is wrong.
        path: the indices and keys that lead to it, innermost first.
    """

    def __init__(self, kind: type[Exception], text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.path: list[str] = []


def check_depth(text: bytes, depth: int) -> None:
    """Refuse JSON that is nested too deeply for a parser.

    Args:
        text: JSON, or anything else.
        depth: how many lists and dictionaries may be nested.

    Raises:
        ValueError: a parser would find more of them nested.
    """
    if text.count(b"[") + text.count(b"{") <= depth:  # true for most, and a hundred times as fast
        return
    # In a text, a backslash escapes a backslash or the quote; these pairs are removed. Outside of texts, a parser stops
    # at a backslash, so what follows there does not matter.
    marks = np.frombuffer(text.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS), np.uint8)
    is_text = np.bitwise_xor.accumulate(marks == _MARKS[0])
    if np.cumsum(np.where(is_text, 0, _STEPS[marks]), dtype=np.int32).max(initial=0) > depth:
        raise ValueError(f"it is nested deeper than {depth}")


def parse_values(text: bytes) -> dict[str, Any]:
    """Parse the JSON of values by name that a process has written.

    Raises:
        ValueError: it is not that, or is nested deeper than :func:`plain` allows.
    """
    check_depth(text, MAX_DEPTH + 1)
    try:
        found: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return found


def plain(value: Any, where: str) -> Any:
    """Check that JSON can hold a value, and return it; tuples become lists, and numpy's numbers become Python's.

    Args:
        value: the value.
        where: a name for it, for errors.

    Raises:
        TypeError: JSON has no such type.
        ValueError: JSON has no such number or text, or it is nested too deeply.
    """
    try:
        return _plain(value, 0)
    except _Bad as bad:
        path = "".join(f"[{each}]" for each in reversed(bad.path[-5:]))
        raise bad.kind(f"{where}{path}{bad.text}") from None


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is list or kind is dict:  # first, because there may be many
        return _plain_within(value, depth)
    if value is None or kind is bool:
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Bad(ValueError, " has half a surrogate pair, which UTF-8 lacks") from None
        return str(value)
    if isinstance(value, int):
        if not _SMALLEST <= value <= _LARGEST:
            raise _Bad(ValueError, " is an int that needs more than 64 bits; give it as a text or a float")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _Bad(ValueError, f" is {float(value)}, which JSON lacks; give None, or an array, which has it")
        return float(value)
    if isinstance(value, _CONTAINERS):
        return _plain_within(value, depth)
    if isinstance(value, _NUMPY):
        return _plain(value.item(), depth)
    raise _Bad(TypeError, _why_not(value))


def _plain_within(value: list[Any] | tuple[Any, ...] | dict[str, Any], depth: int) -> Any:
    if depth >= MAX_DEPTH:
        raise _Bad(ValueError, f" is nested deeper than {MAX_DEPTH}, or contains itself")
    place: Any = None
    try:
        if not isinstance(value, dict):
            items = []
            for place, each in enumerate(value):  # noqa: B007 - said if it is a bad one
                items.append(_plain(each, depth + 1))
            return items
        found = {}
        for place, each in value.items():
            if not isinstance(place, str):
                raise _Bad(TypeError, f" is under a key of type {type(place).__name__}, and in JSON keys are texts")
            found[_plain(place, depth)] = _plain(each, depth + 1)
        return found
    except _Bad as bad:
        bad.path.append(repr(place)[:80])
        raise


def _why_not(value: Any) -> str:
    name = f" is of type {type(value).__name__}"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{name}, which JSON lacks; give an array of uint8"
    if isinstance(value, set | frozenset):
        return f"{name}, which JSON lacks; give a sorted list"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return " is a tensor inside of a value; give it a name of its own"
    return f"{name}, which JSON lacks"
