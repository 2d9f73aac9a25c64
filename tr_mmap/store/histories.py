"""The history of each record: an event for each version, by id. Part of a commit; changes no record.

The events of a deleted record stay until many other records were deleted. Until then a new record with its id
continues its version numbers. When the events are forgotten, new records begin above the highest version among them. So
no version number is ever used twice for an id, and a reader never takes a new record for one that it read before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from .catalogue import State, Transaction, key_of
from .records import Event, Record, decode_record

__all__ = ["bury", "events_of", "faults_of", "next_version", "note"]

_KEPT_EVENTS: Final = 32  # of each record, its deletion included
_KEPT_GRAVES: Final = 10_000  # deletions after which a deleted record's history is forgotten
_VERSION_NBYTES: Final = 8

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Event).decode


def _prefix_of(record_id: bytes) -> bytes:
    return record_id + b"\0"  # which no id has in it


def _key_of(record_id: bytes, version: int) -> bytes:
    return _prefix_of(record_id) + version.to_bytes(_VERSION_NBYTES, "big")


def events_of(transaction: Transaction, record_id: str) -> Iterator[Event]:
    """The events of a record, oldest first."""
    for _, value in transaction.items_with("history", _prefix_of(record_id.encode())):
        yield _decode(value)


def _last_version(transaction: Transaction, record_id: bytes) -> int:
    """The version of the last event of a record; 0 if there is none."""
    prefix = _prefix_of(record_id)
    with transaction.raw.cursor(db=transaction.history) as cursor:
        is_behind = cursor.set_range(prefix + b"\xff" * _VERSION_NBYTES)
        is_there = cursor.prev() if is_behind else cursor.last()
        if is_there and cursor.key().startswith(prefix):
            return int.from_bytes(cursor.key()[-_VERSION_NBYTES:], "big")
    return 0


def next_version(transaction: Transaction, state: State, record_id: str) -> int:
    """The version of a new record: higher than any that a record of this id ever had."""
    return (_last_version(transaction, record_id.encode()) or state.forgotten_version) + 1


def note(transaction: Transaction, record: Record, event: str, now_s: float) -> None:
    """Add an event to a record's history. The event has the record's version; the oldest event may be dropped."""
    record_id = record.id.encode()
    what = record.content, record.metadata, record.importance, record.user_id
    entry = _encode(Event(event, record.version, now_s, *what))
    transaction.put(_key_of(record_id, record.version), entry, db=transaction.history)
    if record.version > _KEPT_EVENTS:
        transaction.pop("history", _key_of(record_id, record.version - _KEPT_EVENTS))


def bury(transaction: Transaction, state: State, record_id: str, version: int) -> None:
    """Note that a record was deleted, and forget the history of the one that was deleted long before.

    Args:
        transaction: a writing one.
        state: what the catalogue counts; is changed.
        record_id: of the record.
        version: of its last event.
    """
    last = _key_of(record_id.encode(), version)
    transaction.put(key_of(state.next_grave), last, db=transaction.graves)
    state.next_grave += 1
    old = key_of(max(0, state.next_grave - 1 - _KEPT_GRAVES))
    if state.next_grave > _KEPT_GRAVES and (last_of_old := transaction.get(old, db=transaction.graves)) is not None:
        transaction.pop("graves", old)
        _forget(transaction, state, last_of_old)


def _forget(transaction: Transaction, state: State, last: bytes) -> None:
    """Forget the history that ends with the event of the key ``last``, unless a new record has continued it."""
    record_id = last[: -_VERSION_NBYTES - 1]
    version = int.from_bytes(last[-_VERSION_NBYTES:], "big")
    if _last_version(transaction, record_id) != version:
        return
    state.forgotten_version = max(state.forgotten_version, version)
    for key in [key for key, _ in transaction.items_with("history", _prefix_of(record_id))]:
        transaction.pop("history", key)


def faults_of(transaction: Transaction) -> list[str]:
    """What is wrong with the histories, a line each."""
    wrong = []
    last: dict[bytes, int] = {}  # version by id
    for key, value in transaction.items("history"):
        record_id, version = key[: -_VERSION_NBYTES - 1], int.from_bytes(key[-_VERSION_NBYTES:], "big")
        if key != _key_of(record_id, version) or _decode(value).version != version:
            wrong.append(f"the history of {record_id!r:.80} has an event in another one's place")
        last[record_id] = version
    buried = {key for _, key in transaction.items("graves")}
    for record_id, version in last.items():
        raw = transaction.get(record_id, db=transaction.records)
        if raw is None and _key_of(record_id, version) not in buried:
            wrong.append(f"the history of {record_id!r:.80} does not end with the end of the record")
        elif raw is not None and decode_record(raw).version != version:
            wrong.append(f"record {record_id.decode()!r}: its history does not end with its version")
    wrong += [
        f"record {record_id.decode()!r}: it has no history"
        for record_id, _ in transaction.items("records")
        if record_id not in last
    ]
    return wrong
