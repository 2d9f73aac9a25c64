"""A memory of records that processes share: texts, vectors and tensors, found by vectors, words and filters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ..errors import OutOfSpace
    from .aio import AsyncStore
    from .errors import (
        EmbedderMismatch,
        NoSuchRecord,
        NoSuchStore,
        OptionMismatch,
        RecordExists,
        SnapshotExpired,
        StoreBusy,
        StoreClosed,
        StoreCorrupt,
        VersionConflict,
        WrongShape,
    )
    from .reads import StoreSnapshot
    from .records import Event, Hit, Page, Record, Stats
    from .store import Store

__all__ = [
    "AsyncStore",
    "EmbedderMismatch",
    "Event",
    "Hit",
    "NoSuchRecord",
    "NoSuchStore",
    "OptionMismatch",
    "OutOfSpace",
    "Page",
    "Record",
    "RecordExists",
    "SnapshotExpired",
    "Stats",
    "Store",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreSnapshot",
    "VersionConflict",
    "WrongShape",
]

_HOMES: Final = {
    "AsyncStore": ".aio",
    "OutOfSpace": "..errors",
    "Store": ".store",
    "StoreSnapshot": ".reads",
    **dict.fromkeys(("Event", "Hit", "Page", "Record", "Stats"), ".records"),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: a gateway's client needs the records and errors, and has no lmdb."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES.get(name, ".errors"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
