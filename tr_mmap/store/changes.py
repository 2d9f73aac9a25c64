"""What one commit changes in the catalogue: it adds, replaces and removes records, with all their index entries.

Used inside one writing transaction only. Writes the vectors into rows after the last committed one; does nothing else
that is slow.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from . import histories
from .budget import microseconds, nbytes_without_tensors, to_evict, worth_keys
from .catalogue import Transaction, key_of
from .filters import field_keys
from .options import Options
from .records import Record, decode_record
from .slabs import FIRST_BARE_ROW, NewRow, Slab, SlabEntry, SlabFiles, write_rows
from .words import Words, add_text, remove_text, words_in

__all__ = [
    "ROWS_OF_CHUNK",
    "SUMS",
    "Changes",
    "NoSlab",
    "UnknownWords",
    "index_entries",
    "last_slab",
    "room_of_slabs",
    "slabs_of",
]

ROWS_OF_CHUNK: Final = 4096  # rows whose "live" bits are stored as one value
_CHUNK_NBYTES: Final = ROWS_OF_CHUNK // 8
_EXPIRED_AT_ONCE: Final = 32  # how many expired records one commit removes beside its own work
_EXPIRED_NBYTES: Final = 16 << 10  # of these records: taking their words out of the index takes some 20 ms
_QUICK_LETTERS: Final = 2048  # words of so long a text are found in 2 ms, which other writers can wait
_MOMENT: Final = struct.Struct(">QQ").pack
SUMS: Final = struct.Struct(">II")  # CRC-32 of the record as it is stored, and of its vector

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_slab: Final = msgspec.msgpack.Decoder(SlabEntry).decode


def index_entries(record: Record, options: Options) -> list[tuple[str, bytes, bytes]]:
    """The index entries of a record, as database, key and value; without those for its id, its order and its words."""
    row, record_id = key_of(record._row), record.id.encode()
    entries = [("rows", row, record_id)]
    entries += [("fields", key, row) for key in field_keys(record, options.indexed)]
    if record.expires_at is not None:
        entries.append(("expiry", _MOMENT(microseconds(record.expires_at), record._row), record_id))
    if options.at_budget == "evict":
        entries += [("worth", key, record_id) for key in worth_keys(record)]
    return entries


def room_of_slabs(transaction: Transaction) -> int:
    """For how many rows there are slabs. The next slab gets as many, so slabs are few, and about half is used."""
    return sum(entry.room for entry in slabs_of(transaction))


def slabs_of(transaction: Transaction) -> list[SlabEntry]:
    """What the catalogue says of all slabs, in the order of their rows."""
    return [_decode_slab(value) for _, value in transaction.items("slabs")]


def last_slab(transaction: Transaction) -> SlabEntry | None:
    """The slab of the last rows; None if there is none."""
    # Not by items(): an error that a signal handler raises while an unfinished generator is freed would be lost.
    with transaction.raw.cursor(db=transaction.slabs) as cursor:
        return _decode_slab(cursor.value()) if cursor.last() else None


class NoSlab(Exception):
    """There is no slab with room for the next row: one must be made first, outside the transaction.

    Attributes:
        rows: for how many rows there are slabs.
        placed: how many rows the transaction has filled so far.
    """

    def __init__(self, rows: int, placed: int) -> None:
        super().__init__(rows, placed)
        self.rows = rows
        self.placed = placed


class UnknownWords(Exception):
    """The words of long texts must be found first, outside the transaction.

    Attributes:
        texts: the texts whose words are needed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__(texts)
        self.texts = texts


class Changes:
    """The changes of one transaction. Call :meth:`finish` at its end.

    Args:
        transaction: a writing one.
        options: of the store.
        files: the slabs; None if the store has no vectors and gets none.
        spares: new slabs that the transaction may use; it takes those that it uses off the list.
        words: the words of texts that come or go, found in advance, because other writers wait for this transaction.
    """

    def __init__(
        self,
        transaction: Transaction,
        options: Options,
        files: SlabFiles | None,
        spares: list[SlabEntry],
        words: Mapping[str, Words],
    ) -> None:
        self._transaction = transaction
        self._spares = spares
        self._words = words
        self._tail: Slab | None = None
        self._options = options
        self._files = files
        self._unwritten: list[NewRow] = []
        self._live: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}  # chunks that change, by number
        self.state = transaction.state()
        self._nbytes_before = self.state.nbytes
        self._first_row = self.state.next_row
        self.now_s = time.time()

    # -- records ------------------------------------------------------------------------------------------------------

    def find(self, record_id: str) -> Record | None:
        """The record of an id; None if there is none. Removes it if it has expired."""
        raw = self._transaction.get(record_id.encode(), db=self._transaction.records)
        if raw is None:
            return None
        record = decode_record(raw)
        if record.is_expired(self.now_s):
            self.remove(record, event=None)
            return None
        return record

    def add(self, record: Record, vector: np.ndarray[Any, Any] | None, norm: np.ndarray[Any, Any] | None) -> None:
        """Add a record; its row, number, moments and version are set here."""
        record._number = self.state.next_number
        self.state.next_number += 1
        record.created_at = record.updated_at = self.now_s
        record.version = histories.next_version(self._transaction, self.state, record.id)
        self._place(record, vector, norm)
        self._transaction.put(key_of(record._number), record.id.encode(), db=self._transaction.order)
        self.state.records += 1
        self._store(record, vector)
        histories.note(self._transaction, record, "add", self.now_s)

    def replace(
        self,
        old: Record,
        new: Record,
        vector: np.ndarray[Any, Any] | None,
        norm: np.ndarray[Any, Any] | None,
        *,
        has_new_vector: bool,
    ) -> None:
        """Put a record in place of its former version.

        Args:
            old: as the catalogue has it.
            new: with the same id.
            vector: of the new one; None for no vector, and without ``has_new_vector``.
            norm: the vector's length.
            has_new_vector: whether ``vector`` replaces the old vector; False to keep the old one.
        """
        new.version, new.created_at, new.updated_at, new._number = (
            old.version + 1,
            old.created_at,
            self.now_s,
            old._number,
        )
        has_same_words = not has_new_vector and new.content == old.content  # then they are found by the same row
        self._forget(old, has_words=not has_same_words)
        if has_new_vector:
            self._leave_row(old)
            self._place(new, vector, norm)
        else:
            new._row, new._has_vector = old._row, old._has_vector
        gone = {part.file for part in old._parts} - {part.file for part in new._parts}
        self._throw_away("tensors", gone)
        self._store(new, vector, has_words=not has_same_words)
        histories.note(self._transaction, new, "update", self.now_s)

    def remove(self, record: Record, event: str | None = "delete") -> None:
        """Remove a record.

        Args:
            record: as the catalogue has it.
            event: the reason, for its history; None if it has expired.
        """
        transaction = self._transaction
        self._forget(record)
        self._leave_row(record)
        transaction.pop("records", record.id.encode())
        transaction.pop("sums", record.id.encode())
        transaction.pop("order", key_of(record._number))
        self._throw_away("tensors", {part.file for part in record._parts})
        self.state.records -= 1
        gone = Record(record.id, record.version + 1, None, record.user_id, None, None, {}, 0.0, 0.0, self.now_s, None)
        histories.note(transaction, gone, event or "expire", self.now_s)
        histories.bury(transaction, self.state, gone.id, gone.version)

    def remove_expired(self, limit: int = _EXPIRED_AT_ONCE) -> int:
        """Remove expired records: at most ``limit``, and fewer if their texts are long. Returns how many."""
        end = _MOMENT(microseconds(self.now_s), 2**64 - 1)
        found: list[Record] = []
        nbytes = 0
        for key, record_id in self._transaction.items("expiry"):
            if key > end or len(found) == limit:
                break
            raw = self._transaction.get(record_id, db=self._transaction.records)
            if raw is None:
                continue
            nbytes += len(raw)
            if found and nbytes > _EXPIRED_NBYTES:
                break
            found.append(decode_record(raw))
        self._remove_all(found, None)
        return len(found)

    def _remove_all(self, records: Sequence[Record], event: str | None) -> None:
        unknown = [each.content for each in records if each.content and each.content not in self._words]
        if sum(map(len, unknown)) > _QUICK_LETTERS:
            raise UnknownWords(unknown)
        for each in records:
            self.remove(each, event)

    def noted(self, key: bytes) -> bytes | None:
        """A value of the database ``meta``, which describes the whole store; None if it has no such key."""
        found: bytes | None = self._transaction.get(key, db=self._transaction.meta)
        return found

    def remove_lost(self, lost: Mapping[str, bytes], slabs: Iterable[SlabEntry]) -> list[str]:
        """Remove records and slabs whose bytes are not what was written.

        Args:
            lost: the records by id, as they were stored when they were judged; one that has changed since stays.
            slabs: that cannot be read.

        Returns:
            The ids of the records that are gone.
        """
        records = self._transaction.records
        raws = [raw for each, raw in lost.items() if self._transaction.get(each.encode(), db=records) == raw]
        found = [decode_record(raw) for raw in raws]
        self._remove_all(found, "lost")
        for entry in slabs:
            self.replace_slab(entry, None)
        return [record.id for record in found]

    def make_room(self, kept: Collection[str] = (), scope: str | None = None) -> None:
        """Keep to the budget: evict the records that are worth least, or refuse the commit.

        Args:
            kept: ids that must stay: what the commit adds.
            scope: the only user whose records may be evicted; None for all.

        Raises:
            OutOfSpace: the records would count for more than the budget.
        """
        if self._options.at_budget == "fail" and self.state.nbytes <= self._nbytes_before:
            return  # over a budget that was lowered since; a change that needs no more than before is allowed
        self._remove_all(to_evict(self._transaction, self._options, self.state.nbytes, kept, scope), "evict")

    def finish(self) -> None:
        """Write the vectors and the "live" bits, and store the counts."""
        write_rows(self._unwritten, is_synced=self._options.durability == "fsync")
        for chunk, bits in self._live.items():
            key = key_of(chunk)
            if bits.any():
                self._transaction.put(key, bits.tobytes(), db=self._transaction.live)
            else:
                self._transaction.pop("live", key)
        self._transaction.put_state(self.state)

    # -- parts of a record --------------------------------------------------------------------------------------------

    def _store(self, record: Record, vector: np.ndarray[Any, Any] | None, *, has_words: bool = True) -> None:
        """Write a record, its checksums and its index entries, except its place in the order.

        Args:
            record: to be written.
            vector: its vector if that is new; None if it keeps the one that it has, or has none.
            has_words: whether its words must be added to the index; False if they are there.
        """
        transaction, record_id = self._transaction, record.id.encode()
        record._nbytes += nbytes_without_tensors(record, self._options.vector_nbytes)
        self.state.nbytes += record._nbytes
        raw = _encode(record)
        transaction.put(record_id, raw, db=transaction.records)
        transaction.put(record_id, self._sums(record_id, raw, vector), db=transaction.sums)
        for name, key, value in index_entries(record, self._options):
            transaction.put(key, value, db=getattr(transaction, name))
        if record.content and has_words:
            add_text(transaction, self.state, self._words_in(record.content), record._row)
        for part in record._parts:
            transaction.put(part.file.encode(), b"", db=transaction.files)

    def _sums(self, record_id: bytes, raw: bytes, vector: np.ndarray[Any, Any] | None) -> bytes:
        if vector is not None:
            return SUMS.pack(zlib.crc32(raw), zlib.crc32(vector.view(np.uint8).data))
        old = self._transaction.get(record_id, db=self._transaction.sums)
        return SUMS.pack(zlib.crc32(raw), 0 if old is None else SUMS.unpack(old)[1])

    def _words_in(self, text: str) -> Words:
        found = self._words.get(text)
        if found is None:
            if len(text) > _QUICK_LETTERS:
                raise UnknownWords([text])
            found = words_in(text)
        return found

    def tensors_nbytes(self, record: Record) -> int:
        """What the tensors of a stored record count for."""
        return record._nbytes - nbytes_without_tensors(record, self._options.vector_nbytes)

    def _forget(self, record: Record, *, has_words: bool = True) -> None:
        """Remove a record's index entries, except its own entry and its place in the order; and with ``has_words``,
        its words."""
        transaction = self._transaction
        self.state.nbytes -= record._nbytes
        for name, key, value in index_entries(record, self._options):
            transaction.pop(name, key, value)
        if record.content and has_words:
            remove_text(transaction, self.state, self._words_in(record.content), record._row)

    def _throw_away(self, folder: str, names: set[str]) -> None:
        """Note files that no new snapshot needs. They are removed when the present snapshots have ended."""
        transaction = self._transaction
        for name in names:
            if folder == "tensors":
                transaction.pop("files", name.encode())
            key = key_of(transaction.raw.id()) + f"{folder}/{name}".encode()
            transaction.put(key, b"", db=transaction.garbage)

    # -- rows of vectors ----------------------------------------------------------------------------------------------

    def _place(self, record: Record, vector: np.ndarray[Any, Any] | None, norm: np.ndarray[Any, Any] | None) -> None:
        """Give a record the next row, and write its vector there."""
        record._has_vector = vector is not None
        if vector is not None and norm is not None:
            record._row = row = self.state.next_row
            self._unwritten.append((self._slab_with_room(row), row, vector, norm))
            self._set_live(row, True)
            self.state.vectors += 1
            self.state.next_row += 1
        else:
            record._row = FIRST_BARE_ROW + self.state.bare_rows
            self.state.bare_rows += 1

    def _slab_of(self, entry: SlabEntry) -> Slab:
        assert self._files is not None
        return self._files.for_writing(entry)

    def _slab_with_room(self, row: int) -> Slab:
        if self._tail is None:
            last = last_slab(self._transaction)
            if last is not None and not last.rows:
                self._tail = self._slab_of(last)
        if self._tail is None or not self._tail.entry.first <= row < self._tail.entry.first + self._tail.entry.span:
            if not self._spares:
                raise NoSlab(room_of_slabs(self._transaction), row - self._first_row)
            entry = msgspec.structs.replace(self._spares.pop(0), first=row)
            self._transaction.put(key_of(row), _encode(entry), db=self._transaction.slabs)
            self._tail = self._slab_of(entry)
        return self._tail

    def replace_slab(self, old: SlabEntry, new: SlabEntry | None, next_row: int | None = None) -> bool:
        """Replace a slab by a compacted one, or remove it.

        Args:
            old: the slab to replace.
            new: the slab with its live rows; None if there are none.
            next_row: ``state.next_row`` when the compaction read a slab that was not full; None for a full slab.

        Returns:
            False if the old slab has changed meanwhile; then nothing is done.
        """
        if next_row not in (None, self.state.next_row):
            return False  # rows were added meanwhile, perhaps to the old slab
        transaction, key = self._transaction, key_of(old.first)
        raw = transaction.get(key, db=transaction.slabs)
        if raw is None or _decode_slab(raw) != old:
            return False
        if new is None:
            transaction.pop("slabs", key)
        else:
            transaction.put(key, _encode(new), db=transaction.slabs)
        # Never use the old slab's rows again: a reader that still has it open would look there for the new rows.
        self.state.next_row = max(self.state.next_row, old.first + old.span)
        self._throw_away("vec", {name for name in (old.file, old.norms, old.rows) if name})
        return True

    def _leave_row(self, record: Record) -> None:
        if record._has_vector:
            self._set_live(record._row, False)
            self.state.vectors -= 1

    def _set_live(self, row: int, is_live: bool) -> None:
        chunk, bit = divmod(row, ROWS_OF_CHUNK)
        bits = self._live.get(chunk)
        if bits is None:
            raw = self._transaction.get(key_of(chunk), db=self._transaction.live)
            bits = np.zeros(_CHUNK_NBYTES, np.uint8) if raw is None else np.frombuffer(raw, np.uint8).copy()
            self._live[chunk] = bits
        mask = np.uint8(1 << (bit & 7))
        if is_live:
            bits[bit >> 3] |= mask
        else:
            bits[bit >> 3] &= ~mask
