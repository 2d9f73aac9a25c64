"""Checks what users give to a store: new records, ids, limits. Opens nothing."""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..errors import BadMessage
from ..tsr.tensors import to_array
from .records import FIELDS, SCOPES, Record

__all__ = [
    "Fresh",
    "array_of",
    "check_id",
    "check_limit",
    "check_max_age",
    "check_scopes",
    "check_threshold",
    "check_ttl",
    "check_version",
    "checked_scope",
    "is_text",
]

_MAX_ID_NBYTES: Final = 255
_MAX_DEPTH: Final = 64  # of metadata
_LEAST: Final = -(2**63)  # of the whole numbers that are stored as they are
_MOST: Final = 2**64 - 1


class Fresh:
    """A new record, its arguments checked; not stored yet.

    Attributes:
        record: the record, without its moments, row and number, which the commit sets.
        vector: as it was given, or as the embedder has made it; None for none.
        ttl_s: seconds until it expires; None for never.
        tensors: by name, as they were given.
        parts, nbytes: where its tensors were written, and their bytes; set when they are written.

    Raises:
        BadMessage: an argument is wrong; ``detail`` says which.
        UnsupportedTensor: a tensor has no TSR form.
    """

    def __init__(self, given: dict[str, Any], scope: str | None) -> None:
        known = {"id", *FIELDS, "vector", "tensors", "ttl_s"}
        if unknown := set(given) - known:
            raise BadMessage(f"a record has no {sorted(unknown)[0]!r:.40}", detail=str(sorted(unknown)[0])[:80])
        record_id = given.get("id")
        record_id = uuid.uuid4().hex if record_id is None else record_id
        check_id(record_id)
        for name in ("content", *SCOPES):
            value = given.get(name)
            if value is not None and not isinstance(value, str):
                raise BadMessage(f"{name} is {value!r:.40}; it is a text, or None", detail=name)
            if value is not None and not is_text(value):
                raise BadMessage(f"{name} has half a character (a surrogate)", detail=name)
        user_id = given.get("user_id")
        if scope is not None:
            if user_id not in (None, scope):
                raise BadMessage(f"this handle is bound to the user {scope!r}", detail="user_id")
            user_id = scope
        self.vector = given.get("vector")
        self.ttl_s = given.get("ttl_s")
        if self.ttl_s is not None:
            check_ttl(self.ttl_s)
        self.tensors = dict(given.get("tensors") or {})
        for name, tensor in self.tensors.items():
            if not isinstance(name, str) or not name:
                raise BadMessage(f"a tensor is named {name!r:.40}; its name is a text", detail="tensors")
            to_array(tensor)
        self.parts: list[Any] = []
        self.nbytes = 0
        self.record = Record(
            record_id,
            1,
            given.get("content"),
            user_id,
            given.get("agent_id"),
            given.get("run_id"),
            _plain(given.get("metadata") or {}),
            _importance(given.get("importance", 0.5)),
            0.0,
            0.0,
            None,
        )


def _plain(metadata: Any) -> dict[str, Any]:
    """A copy of metadata as they are stored; refuses each value that JSON would turn into another one."""
    if not isinstance(metadata, Mapping) or not all(isinstance(name, str) for name in metadata):
        raise BadMessage("metadata is a mapping whose names are texts", detail="metadata")
    found: dict[str, Any] = _as_json(metadata, _MAX_DEPTH)
    return found


def _as_json(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _as_text(value)
    if isinstance(value, int) and _LEAST <= value <= _MOST:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if not depth:
        raise BadMessage(f"metadata have at most {_MAX_DEPTH} levels", detail="metadata")
    if isinstance(value, list | tuple):
        return [_as_json(each, depth - 1) for each in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {_as_text(name): _as_json(each, depth - 1) for name, each in value.items()}
    raise BadMessage(
        f"metadata hold {value!r:.40} (of type {type(value).__name__}), which JSON does not have; numbers have 64 bits",
        detail="metadata",
    )


def _as_text(text: str) -> str:
    if not is_text(text):
        raise BadMessage("metadata have half a character (a surrogate)", detail="metadata")
    return str.__str__(text)


def _importance(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise BadMessage(f"importance is {value!r:.40}; it is 0 to 1", detail="importance")
    return float(value)


def is_text(text: str) -> bool:
    """Whether a text can be stored as UTF-8: it has no surrogate, which is half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_ttl(ttl_s: Any) -> None:
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0 < ttl_s < 1e12:
        raise BadMessage(f"ttl_s is {ttl_s!r:.40}; it is seconds, above 0, or None", detail="ttl_s")


def check_max_age(max_age_s: Any) -> None:
    is_number = isinstance(max_age_s, int | float) and not isinstance(max_age_s, bool)
    if not is_number or not 0 < max_age_s <= threading.TIMEOUT_MAX:
        raise BadMessage(f"max_age_s is {max_age_s!r:.40}; it is seconds, above 0", detail="max_age_s")


def check_id(record_id: Any) -> None:
    if (
        type(record_id) is str
        and record_id.isascii()
        and 0 < len(record_id) <= _MAX_ID_NBYTES
        and "\0" not in record_id
    ):
        return  # as nearly all are
    if not isinstance(record_id, str):
        raise BadMessage(f"an id is a text, not {type(record_id).__name__}", detail="id")
    try:
        nbytes = len(record_id.encode())
    except UnicodeEncodeError:
        nbytes = 0
    if not 1 <= nbytes <= _MAX_ID_NBYTES or "\0" in record_id:
        raise BadMessage(
            f"{record_id!r:.80} is no id; use 1 to {_MAX_ID_NBYTES} bytes of UTF-8, none of them zero", detail="id"
        )


def checked_scope(scope: Any) -> str | None:
    if scope is not None and (not isinstance(scope, str) or not scope):
        raise BadMessage(f"scope is {scope!r:.40}; it is a user's id, or None", detail="scope")
    return scope


def check_scopes(**scopes: Any) -> dict[str, str | None]:
    for name, value in scopes.items():
        if value is not None and not isinstance(value, str):
            raise BadMessage(f"{name} is {value!r:.40}; it is a text, or None", detail=name)
    return scopes


def check_threshold(threshold: Any) -> None:
    is_number = isinstance(threshold, int | float | np.number) and not isinstance(threshold, bool)
    if threshold is not None and (not is_number or threshold != threshold):
        raise BadMessage(f"threshold is {threshold!r:.40}; it is a number, or None", detail="threshold")


def check_version(if_version: Any) -> None:
    if if_version is not None and (isinstance(if_version, bool) or not isinstance(if_version, int)):
        raise BadMessage(f"if_version is {if_version!r:.40}; it is a record's version, or None", detail="if_version")


def check_limit(limit: Any, *, may_be_none: bool = True) -> None:
    if limit is None and may_be_none:
        return
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise BadMessage(f"limit is {limit!r:.40}; it is a whole number, 1 or more", detail="limit")


def array_of(vector: Any) -> Any:
    if hasattr(vector, "detach"):
        return to_array(vector)[1]
    return vector
