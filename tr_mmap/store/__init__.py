"""A memory of records that processes share: texts, vectors and tensors, found by vectors, words and filters."""

from ..errors import OutOfSpace
from .aio import AsyncStore
from .errors import (
    EmbedderMismatch,
    NoSuchRecord,
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
