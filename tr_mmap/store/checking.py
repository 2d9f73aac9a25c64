"""Checks all that a store holds: each record against its checksums, each entry of the catalogue. Changes nothing."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from ..errors import TRException
from .catalogue import Catalogue, Transaction, key_of
from .changes import SUMS, index_entries, slabs_of
from .closeness import has_length
from .errors import StoreCorrupt
from .histories import faults_of
from .options import Options
from .places import Places
from .records import Record, decode_record
from .slabs import Slab, SlabEntry, SlabFiles
from .turns import give_way
from .views import Live
from .words import postings_of, words_in

__all__ = ["check", "find_lost"]

_OF_RECORDS: Final = ("sums", "rows", "order", "fields", "postings", "expiry", "worth", "files")


def check(catalogue: Catalogue, places: Places, options: Options, files: SlabFiles | None) -> list[str]:
    """What is wrong with a store, a line each.

    Args:
        catalogue: of the store.
        places: of its files.
        options: of it.
        files: its slabs; None if it has no vectors yet.
    """
    try:
        catalogue.check_file()
    except StoreCorrupt as error:
        return [str(error)]  # reading more of a broken file could end the process
    wrong: list[str] = []
    with catalogue.read() as transaction:
        state = transaction.state()
        slabs: Sequence[Slab] = []
        if files is not None:
            try:
                slabs = files.open(slabs_of(transaction))
            except StoreCorrupt as error:
                wrong.append(str(error))
        live = Live().of(transaction)
        entries = Counter[str]()  # how many entries the records need, by database
        found = Counter[str]()
        for key, raw in transaction.items("records"):
            give_way()
            record = decode_record(raw)
            if record.id.encode() != key:
                wrong.append(f"record {record.id!r}: it is under the id {key!r:.80}")
            if record._has_vector and not (record._row < live.size and live[record._row]):
                wrong.append(f"record {record.id!r}: its row {record._row} is not live")
            wrong += _faults(transaction, places, record, raw, files, slabs)
            for database, entry_key, value in _entries_of(record, options):
                entries[database] += 1
                if not transaction.has(database, entry_key, value):
                    wrong.append(f"record {record.id!r}: its entry in {database!r} is not there, or another one's")
            found["vectors"] += record._has_vector
            found["bytes"] += record._nbytes
            found["texts"] += bool(record.content)
            found["words"] += sum(words_in(record.content).values()) if record.content else 0
            entries["sums"] += 1
        # Each entry that a record needs was looked up above. So if the counts agree, there are no other entries.
        for database in _OF_RECORDS:
            if (count := transaction.count(database)) != entries[database]:
                wrong.append(f"{database!r} has {count} entries, and records have {entries[database]}")
        found["pages of the reserve"] = transaction.count("reserve")
        found["records"], found["live rows"] = transaction.count("records"), int(live.sum())
        for what, noted in (
            ("records", state.records),
            ("vectors", state.vectors),
            ("texts", state.texts),
            ("words", state.words),
            ("bytes", state.nbytes),
            ("live rows", state.vectors),
            ("pages of the reserve", state.reserve),
        ):
            if found[what] != noted:
                wrong.append(f"there are {found[what]} {what}, and the catalogue counts {noted}")
        wrong += faults_of(transaction)
    return wrong


def find_lost(
    catalogue: Catalogue, places: Places, files: SlabFiles | None
) -> tuple[dict[str, bytes], list[SlabEntry]]:
    """Records whose own bytes, vectors or tensors are not what was written, and slabs that cannot be read.

    Returns:
        The records by id, as they are stored, and the slabs.
    """
    lost: dict[str, bytes] = {}
    broken: list[SlabEntry] = []
    with catalogue.read() as transaction:
        slabs: list[Slab] = []
        for entry in slabs_of(transaction):
            try:
                slabs += [] if files is None else files.open([entry])
            except StoreCorrupt:
                broken.append(entry)
        for _, raw in transaction.items("records"):
            record = decode_record(raw)
            if _faults(transaction, places, record, raw, files, slabs):
                lost[record.id] = bytes(raw)
    return lost, broken


def _entries_of(record: Record, options: Options) -> Iterator[tuple[str, bytes, bytes]]:
    """All entries that a record needs beside its own and its checksums: database, key, value."""
    yield from index_entries(record, options)
    yield "order", key_of(record._number), record.id.encode()
    for file in {part.file for part in record._parts}:
        yield "files", file.encode(), b""
    if record.content:
        for word, posting in postings_of(words_in(record.content), record._row)[0]:
            yield "postings", word, posting


def _faults(
    transaction: Transaction,
    places: Places,
    record: Record,
    raw: bytes,
    files: SlabFiles | None,
    slabs: Sequence[Slab],
) -> list[str]:
    """The faults of a record's own bytes, vector and tensors, a line each."""
    wrong = []
    sums = transaction.get(record.id.encode(), db=transaction.sums)
    of_record, of_vector = (None, None) if sums is None or len(sums) != SUMS.size else SUMS.unpack(sums)
    if zlib.crc32(raw) != of_record:
        wrong.append(f"record {record.id!r} is not what was written")
    if record._has_vector:
        slab = None if files is None else files.of_row(record._row, slabs)
        if slab is None:
            wrong.append(f"record {record.id!r}: its vector is in no file")
        elif zlib.crc32(slab.vector(record._row).view(np.uint8).data) != of_vector:
            wrong.append(f"record {record.id!r}: its vector is not what was written")
        elif not has_length(slab.vector(record._row), float(slab.norms[slab.position(record._row)])):
            wrong.append(f"record {record.id!r}: the length of its vector is not what was written")
    try:
        places.open_tensors(record.id, record._parts, verify=True)
    except (OSError, TRException) as error:
        wrong.append(str(error))
    return wrong
