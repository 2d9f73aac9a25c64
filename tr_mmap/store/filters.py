"""Filters: they choose the records of a search or a listing. Use the index of fields where there is one.

A filter is a mapping. ``{"kind": "note"}`` says that a field equals a value, ``{"size": {"gte": 3, "lt": 9}}`` compares
it, and several entries must all hold. ``AND`` and ``OR`` take a list of filters, ``NOT`` takes one or a list. A field
is a name in ``metadata``, or one of the record's own attributes (``user_id``, ``created_at``, ``importance``, ...).
A record without the field fulfils only ``ne``, ``nin`` and ``{"field": None}``. A value that metadata cannot hold is
refused, because no field could be equal to it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import numpy as np

from ..errors import BadMessage
from .catalogue import Transaction
from .records import SCOPES, Record

__all__ = ["Filter", "Rows", "field_keys", "parse"]

Rows = np.ndarray[Any, np.dtype[np.uint64]]

_OWN: Final = frozenset({"id", "version", "content", *SCOPES, "importance", "created_at", "updated_at", "expires_at"})
_MAX_TEXT_NBYTES: Final = 200  # of a text in a key; longer texts may share a key, and are compared in the record
_MAX_NAME_NBYTES: Final = 100  # of a field's name in a key; longer names are hashed
_MAX_EXACT: Final = 2**53  # beyond it, several whole numbers share a key
_MAX_DEPTH: Final = 32  # of a filter
_MAX_VALUE_DEPTH: Final = 64  # of a value, as of metadata
_NUMBER: Final = struct.Struct(">d").pack
_NONE, _BOOL, _NUMBER_KIND, _TEXT, _ELEMENT = b"\0", b"\1", b"\2", b"\3", b"\4"


def _number_key(value: float) -> bytes:
    """Eight bytes that sort as the numbers do."""
    raw = int.from_bytes(_NUMBER(value + 0.0), "big")  # + 0.0 makes 0.0 of -0.0
    return (raw ^ (-(raw >> 63) & (2**64 - 1) | 2**63)).to_bytes(8, "big")


def _value_key(value: Any) -> tuple[bytes, bool] | None:
    """The key of a value in the index, and whether no other value has the same key; None if it cannot be indexed."""
    if value is None:
        return _NONE, True
    if isinstance(value, bool):
        return _BOOL + bytes([value]), True
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            number = float("inf") if value > 0 else float("-inf")
        return _NUMBER_KIND + _number_key(number), abs(number) < _MAX_EXACT
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return _TEXT + raw[:_MAX_TEXT_NBYTES], len(raw) < _MAX_TEXT_NBYTES
    return None


def field_keys(record: Record, indexed: Collection[str]) -> list[bytes]:
    """The keys under which a record is in the index of fields."""
    keys = []
    for field in (*SCOPES, *indexed):
        value = _value_of(record, field)
        for each in (value, *_elements(value)):
            found = _value_key(each)
            if found is not None and each is not None:
                prefix = _prefix(field) + (_ELEMENT if each is not value else b"")
                keys.append(prefix + found[0])
    return list(dict.fromkeys(keys))


def _elements(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


@functools.lru_cache(256)
def _prefix(field: str) -> bytes:
    """The bytes with which all keys of a field begin, and no key of another field."""
    raw = field.encode("utf-8", "surrogatepass")
    if len(raw) > _MAX_NAME_NBYTES:
        return b"\xff" + hashlib.blake2b(raw, digest_size=32).digest()
    return bytes([len(raw)]) + raw


def _value_of(record: Record, field: str) -> Any:
    return getattr(record, field) if field in _OWN else record.metadata.get(field)


def _compare(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(found: Any, wanted: Any) -> bool:
        if isinstance(found, bool) or isinstance(wanted, bool):
            return False
        both = (int | float, str)
        if not any(isinstance(found, kind) and isinstance(wanted, kind) for kind in both):
            return False
        return test(found, wanted)

    return holds


def _equals(found: Any, wanted: Any) -> bool:
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_equals, found, wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_equals(value, wanted[name]) for name, value in found.items())
    if isinstance(found, bool) is not isinstance(wanted, bool):
        return False
    return bool(found == wanted)


def _contains(found: Any, wanted: Any) -> bool:
    if isinstance(found, str):
        return isinstance(wanted, str) and wanted in found
    if isinstance(found, list):
        return any(_equals(each, wanted) for each in found)
    return isinstance(found, dict) and isinstance(wanted, str) and wanted in found


_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": _equals,
    "ne": lambda found, wanted: not _equals(found, wanted),
    "in": lambda found, wanted: any(_equals(found, each) for each in wanted),
    "nin": lambda found, wanted: not any(_equals(found, each) for each in wanted),
    "gt": _compare(lambda found, wanted: found > wanted),
    "gte": _compare(lambda found, wanted: found >= wanted),
    "lt": _compare(lambda found, wanted: found < wanted),
    "lte": _compare(lambda found, wanted: found <= wanted),
    "contains": _contains,
}
_LOGIC: Final = ("AND", "OR", "NOT")
_COMPARISONS: Final = frozenset({"gt", "gte", "lt", "lte"})


class Filter:
    """One filter, checked.

    Args:
        test: whether a record fulfils it.
        candidates: returns the rows of all records that may fulfil it, ascending, and whether all of them do; None if
            the index cannot say, so that each record must be tested.
    """

    def __init__(
        self,
        test: Callable[[Record], bool],
        candidates: Callable[[Transaction, Collection[str]], tuple[Rows, bool] | None],
    ) -> None:
        self.test = test
        self.candidates = candidates

    def __and__(self, other: Filter) -> Filter:
        return _all_of([self, other])


def parse(given: Mapping[str, Any] | None, scopes: Mapping[str, str | None]) -> Filter | None:
    """Parse a user's filter, and combine it with the scopes; None if every record passes.

    Raises:
        BadMessage: it is not a filter; ``detail`` says where.
    """
    parts = [_compare_field(name, "eq", value) for name, value in scopes.items() if value is not None]
    if given is not None:
        parts += _entries(given, 0)
    return _all_of(parts) if parts else None


def _entries(given: Any, depth: int) -> list[Filter]:
    if not isinstance(given, Mapping):
        raise BadMessage(f"a filter is a mapping, not {type(given).__name__}", detail=repr(given)[:80])
    if depth > _MAX_DEPTH:
        raise BadMessage(f"a filter has at most {_MAX_DEPTH} levels", detail="depth")
    parts = []
    for name, value in given.items():
        if not isinstance(name, str):
            raise BadMessage(f"a filter names fields by texts, not {name!r:.40}", detail=repr(name)[:80])
        if name in _LOGIC:
            several = [value] if isinstance(value, Mapping) and name == "NOT" else value
            if not isinstance(several, list | tuple) or not several:
                raise BadMessage(f"{name} takes a list of filters, one at least; leave it out", detail=name)
            if any(isinstance(one, Mapping) and not one for one in several):
                raise BadMessage(f"{name} has an empty filter; leave it out", detail=name)
            each = [_all_of(_entries(one, depth + 1)) for one in several]
            parts.append(_any_of(each) if name == "OR" else _all_of(each) if name == "AND" else _none_of(each))
        elif isinstance(value, Mapping):
            if not value:
                raise BadMessage(f"the field {name!r:.40} has no operator; leave it out", detail=name[:80])
            for operator, wanted in value.items():
                if operator not in _OPERATORS:
                    known = ", ".join(_OPERATORS)
                    raise BadMessage(
                        f"the field {name!r:.40} has the operator {operator!r:.40}; known are {known}. To compare it "
                        "with a mapping, write {'eq': {...}}",
                        detail=str(operator)[:80],
                    )
                parts.append(_compare_field(name, operator, wanted))
        elif name.upper() in _LOGIC and _has_mapping(value):
            raise BadMessage(f"{name!r} would be a field; write {name.upper()}", detail=name)
        else:
            parts.append(_compare_field(name, "eq", value))
    return parts


def _has_mapping(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value)


def _compare_field(field: str, operator: str, wanted: Any) -> Filter:
    test = _OPERATORS[operator]
    if operator in ("in", "nin"):
        wanted = wanted.tolist() if isinstance(wanted, np.ndarray) else wanted
        if isinstance(wanted, str | bytes | Mapping) or not hasattr(wanted, "__iter__"):
            raise BadMessage(f"{operator} takes a list of values, not {wanted!r:.40}", detail=field[:80])
        wanted = list(wanted)
    wanted = _plain(field, wanted, _MAX_VALUE_DEPTH)
    if operator in _COMPARISONS and (isinstance(wanted, bool) or not isinstance(wanted, int | float | str)):
        raise BadMessage(f"{operator} takes a number or a text, not {wanted!r:.40}", detail=field[:80])

    def candidates(transaction: Transaction, indexed: Collection[str]) -> tuple[Rows, bool] | None:
        if field not in SCOPES and field not in indexed:
            return None
        if operator in ("eq", "in"):
            values = wanted if operator == "in" else [wanted]
            found = [_rows_of(transaction, _prefix(field), each) for each in values if each is not None]
            if any(each is None for each in (*found, *values)):
                return None
            return _union([rows for rows, _ in found]), all(is_exact for _, is_exact in found)  # type: ignore[misc]
        if operator == "contains" and wanted is not None and not isinstance(wanted, str):  # part of a text, or a name
            return _rows_of(transaction, _prefix(field) + _ELEMENT, wanted)
        if operator in _COMPARISONS:
            return _range(transaction, _prefix(field), operator, wanted)
        return None

    return Filter(lambda record: test(_value_of(record, field), wanted), candidates)


def _plain(field: str, value: Any, depth: int) -> Any:
    """A value that a field is compared with, as metadata hold it; numpy's numbers and arrays become Python's.

    Raises:
        BadMessage: metadata cannot hold such a value.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and not math.isnan(value)):
        return value
    if isinstance(value, list | tuple) and depth:
        return [_plain(field, each, depth - 1) for each in value]
    if isinstance(value, Mapping) and depth and all(isinstance(name, str) for name in value):
        return {name: _plain(field, each, depth - 1) for name, each in value.items()}
    raise BadMessage(
        f"the field {field!r:.40} is compared with {value!r:.40} (of type {type(value).__name__}); metadata hold "
        "texts, numbers, True, False, None, lists and mappings, and times are seconds since 1970",
        detail=field[:80],
    )


def _rows_of(transaction: Transaction, prefix: bytes, value: Any) -> tuple[Rows, bool] | None:
    key = _value_key(value)
    if key is None:
        return None
    return _as_rows(transaction.values_of("fields", prefix + key[0], 8)), key[1]


def _range(transaction: Transaction, prefix: bytes, operator: str, wanted: Any) -> tuple[Rows, bool] | None:
    key = _value_key(wanted)
    if key is None or wanted is None:
        return None
    kind, found = prefix + key[0][:1], []
    start = prefix + key[0] if operator in ("gt", "gte") else kind
    is_exact = key[1]
    with transaction.raw.cursor(db=transaction.fields) as cursor:
        is_there = cursor.set_range(start)
        while is_there:
            here = cursor.key()
            if not here.startswith(kind) or (operator in ("lt", "lte") and here > prefix + key[0]):
                break
            if here != prefix + key[0] or operator in ("gte", "lte") or not key[1]:
                found.append(_as_rows(transaction.values_of("fields", here, 8)))
            is_there = cursor.next_nodup()
    return _union(found), is_exact and key[0][:1] == _NUMBER_KIND


def _as_rows(raw: bytes) -> Rows:
    return np.frombuffer(raw, ">u8").astype(np.uint64)


def _union(parts: list[Rows]) -> Rows:
    if not parts:
        return np.zeros(0, np.uint64)
    return parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))


def _all_of(parts: list[Filter]) -> Filter:
    if len(parts) == 1:
        return parts[0]

    def candidates(transaction: Transaction, indexed: Collection[str]) -> tuple[Rows, bool] | None:
        found = [each.candidates(transaction, indexed) for each in parts]
        known = [each for each in found if each is not None]
        if not known:
            return None
        rows = known[0][0]
        for each, _ in known[1:]:
            rows = np.intersect1d(rows, each, assume_unique=True)
        return rows, len(known) == len(parts) and all(is_exact for _, is_exact in known)

    return Filter(lambda record: all(each.test(record) for each in parts), candidates)


def _any_of(parts: list[Filter]) -> Filter:
    def candidates(transaction: Transaction, indexed: Collection[str]) -> tuple[Rows, bool] | None:
        known: list[tuple[Rows, bool]] = []
        for each in parts:
            found = each.candidates(transaction, indexed)
            if found is None:
                return None
            known.append(found)
        return _union([rows for rows, _ in known]), all(is_exact for _, is_exact in known)

    return Filter(lambda record: any(each.test(record) for each in parts), candidates)


def _none_of(parts: list[Filter]) -> Filter:
    return Filter(lambda record: not any(each.test(record) for each in parts), lambda *_: None)
