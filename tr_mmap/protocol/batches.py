"""Several requests for one command in one message, and their results in one response. No I/O.

Both are values by name (:mod:`.named_values`) whose first name is ``BATCH``. A request has columns: each tensor
argument of all items is one tensor, stacked. A response has the results stacked too, if they are alike; else an entry
for each item. An item that fails does not touch the others: its entry says how it failed.
"""

from __future__ import annotations

from typing import Any, Final

from ..wire.messages import FORM_NAMED
from .messages import Failure, FailureKind

__all__ = [
    "BATCH",
    "BATCH_START",
    "COLUMNS",
    "ENTRIES",
    "NO_BATCHES",
    "SECONDS",
    "STACK",
    "TEXTS",
    "entry_of_failure",
    "entry_of_named",
    "entry_of_tensors",
    "entry_of_text",
    "item_of_entry",
]

BATCH: Final = "tr_mmap.batch"  # the number of items
BATCH_START: Final = f'{{"{BATCH}":'  # how the text of such a message begins
TEXTS: Final = "texts"  # of a request: the words of each item; one text if all have the same
COLUMNS: Final = "columns"  # of a request: the tensors
SECONDS: Final = "seconds"  # of a response: how long the handlers took in all
STACK: Final = "stack"  # of a response: all results
ENTRIES: Final = "entries"  # of a response: one list for each result
NO_BATCHES: Final = "this worker takes one request at a time"

_TEXT: Final = "text"
_TENSORS: Final = "tensors"
_NAMED: Final = "named"
_ERROR: Final = "error"


def entry_of_text(text: str) -> list[Any]:
    """The entry of an item whose result is a text."""
    return [_TEXT, text]


def entry_of_tensors(tensors: list[Any]) -> list[Any]:
    """The entry of an item whose result is one tensor or several."""
    return [_TENSORS, *tensors]


def entry_of_named(text: str, tensors: list[Any]) -> list[Any]:
    """The entry of an item whose result is values by name, packed."""
    return [_NAMED, text, *tensors]


def entry_of_failure(failure: Failure) -> list[Any]:
    """The entry of an item whose handler has failed."""
    room = failure.needed_nbytes, failure.free_nbytes
    return [_ERROR, failure.kind.value, failure.type, failure.message, failure.traceback, *room]


def item_of_entry(entry: list[Any]) -> tuple[str, str, list[Any], Failure | None]:
    """What an entry says: the form of its text, the text, its tensors, and how its item failed."""
    kind, *rest = entry
    if kind == _ERROR:
        failure = Failure(FailureKind(rest[0]), rest[1], rest[2], rest[3])
        failure.needed_nbytes, failure.free_nbytes = rest[4], rest[5]
        return "", "", [], failure
    if kind == _TENSORS:
        return "", "", rest, None
    return FORM_NAMED if kind == _NAMED else "", rest[0], rest[1:], None
