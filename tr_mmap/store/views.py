"""What a reader sees: records, pages and searches of one snapshot. Changes nothing, and holds no lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import EllipsisType
from typing import Any, Final, Self, TypeVar

import msgspec
import numpy as np

from ..base.fork_safety import ForkAware
from ..errors import BadMessage, TSRFormatError
from .catalogue import Catalogue, Inconsistent, Transaction, key_of, number_of
from .changes import ROWS_OF_CHUNK, slabs_of
from .errors import SnapshotExpired, StoreClosed, StoreCorrupt
from .filters import Filter, Rows
from .histories import events_of
from .options import Options
from .places import Places
from .ranking import Ranking
from .records import Event, Hit, Page, Record, decode_record
from .slabs import Slab, SlabFiles
from .turns import give_way
from .words import search_words

__all__ = ["Live", "Snapshot", "View", "is_shown", "open_now"]

_T = TypeVar("_T")
_FEW_ROWS: Final = 0.3  # if a filter leaves at most this part of all rows, only these rows are compared
_FIRST_LOOK: Final = 4  # if records must be tested by a filter, a search first ranks so many times the wanted number


def is_shown(record: Record, scope: str | None, now_s: float) -> bool:
    """Whether a handle of a scope shows a record: it is in the scope, and has not expired."""
    if record.expires_at is not None and record.is_expired(now_s):
        return False
    return scope is None or record.user_id == scope


def open_now(raw: bytes, scope: str | None, files: SlabFiles | None, places: Places) -> Record | EllipsisType | None:
    """Complete a record whose snapshot has ended; None if it is not shown, ``...`` if that needs a new snapshot.

    A file's name is never used again, so a file that is there has the right content. If it is missing, the record has
    changed since.
    """
    try:
        record = decode_record(raw)
        if (record.expires_at is not None or scope is not None) and not is_shown(record, scope, time.time()):
            return None
        if record._parts:
            tensors = places.open_quickly(record._parts)
            if tensors is None:
                return ...
            record.__dict__["tensors_of"] = tensors
    except (msgspec.DecodeError, UnicodeDecodeError, FileNotFoundError, TSRFormatError):
        return ...
    if record._has_vector:
        slab = None if files is None else files.of_row(record._row)
        if slab is None:
            return ...
        record.__dict__["slab"] = slab
    return record


class Live:
    """Which rows are live, cached for the snapshot that asked last. Threads may use it at once."""

    def __init__(self) -> None:
        self._known: tuple[int, np.ndarray[Any, np.dtype[np.bool_]]] = (-1, np.zeros(0, np.bool_))

    def of(self, transaction: Transaction) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each row of the snapshot is live, by row."""
        state = transaction.state()
        epoch, known = self._known
        if epoch == state.epoch:
            return known
        chunks = -(-state.next_row // ROWS_OF_CHUNK)
        try:
            bits = np.zeros(chunks * (ROWS_OF_CHUNK // 8), np.uint8)
        except (MemoryError, ValueError):
            raise Inconsistent(f"there are no {state.next_row} rows") from None
        for key, value in transaction.items("live"):
            start = number_of(key) * (ROWS_OF_CHUNK // 8)
            if start + len(value) > bits.size:
                raise Inconsistent(f"the rows after {start * 8} were never used")
            bits[start : start + len(value)] = np.frombuffer(value, np.uint8)
        live = np.unpackbits(bits, bitorder="little").view(np.bool_)
        self._known = state.epoch, live
        return live


class View:
    """One snapshot.

    Args:
        transaction: of the snapshot; its owner ends it.
        options: of the store.
        places: of its files.
        files: its slabs; None if it has no vectors yet.
        live: which rows are live.
        scope: the only user whose records are shown; None for all.
        now_s: records that had expired at this moment are not shown; None for now.
        aside: makes a context manager for work that does not need the snapshot; others may use the snapshot then.
    """

    def __init__(
        self,
        transaction: Transaction,
        options: Options,
        places: Places,
        files: SlabFiles | None,
        live: Live,
        scope: str | None,
        now_s: float | None = None,
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._transaction = transaction
        self._options = options
        self._places = places
        self._files = files
        self._live = live
        self._scope = scope
        self._now_s = time.time() if now_s is None else now_s
        self._aside = aside

    # -- records ------------------------------------------------------------------------------------------------------

    def get(self, record_id: str) -> Record | None:
        """The record of an id; None if there is none.

        Raises:
            StoreCorrupt: it cannot be read; the message names it.
        """
        raw = self._transaction.get(record_id.encode(), db=self._transaction.records)
        try:
            return None if raw is None else self._open(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Inconsistent(f"record {record_id!r}: {error}") from error

    def _open(self, raw: bytes) -> Record | None:
        """A record with its vector and tensors; None if it has expired, or is not in the scope."""
        record = decode_record(raw)
        return record if self._complete(record) else None

    def _complete(self, record: Record) -> bool:
        """Give a record its vector and tensors; False if it has expired, or is not in the scope."""
        if not is_shown(record, self._scope, self._now_s):
            return False
        if record._has_vector:
            record.__dict__["slab"] = self._slab_of(record)
        if record._parts:
            record.__dict__["tensors_of"] = self._places.open_tensors(record.id, record._parts)
        return True

    def _slab_of(self, record: Record) -> Slab | None:
        if self._files is None:
            return None
        try:
            slab = self._files.of_row(record._row) or self._files.find(record._row, slabs_of(self._transaction))
        except StoreCorrupt as error:
            raise StoreCorrupt(f"record {record.id!r}: {error}", path=error.path) from error
        if slab is None:
            raise StoreCorrupt(
                f"record {record.id!r}: its vector, row {record._row}, is in no file of {self._places.vectors}; "
                "restore them from a copy, give the record another vector or None with update(), or delete it",
                path=self._places.vectors,
            )
        return slab

    def _of_row(self, row: int) -> bytes | None:
        record_id = self._transaction.get(key_of(row), db=self._transaction.rows)
        return None if record_id is None else self._transaction.get(record_id, db=self._transaction.records)

    def _named(self, record_id: bytes) -> bytes:
        """The stored record of an id that the order of records names."""
        raw: bytes | None = self._transaction.get(record_id, db=self._transaction.records)
        if raw is None:
            raise Inconsistent(f"there is no record {record_id!r:.80}, which is in the order of records")
        return raw

    def matching(self, wanted: Filter | None, below: int | None = None, limit: int | None = None) -> Iterator[Record]:
        """The records that pass a filter, newest first, without vectors and tensors; expired ones too.

        Args:
            wanted: the filter; None for all.
            below: only those with a lower number of creation; None for all.
            limit: about how many the caller will take; None for all.
        """
        found = None if wanted is None else wanted.candidates(self._transaction, self._options.indexed)
        if found is None or wanted is None or self._is_many(found[0].size, limit):
            yield from self._in_order(wanted, below)
            return
        numbered: list[tuple[int, bytes]] = []
        for row in found[0].tolist():
            give_way()
            raw = self._of_row(row)
            if raw is not None:
                record = decode_record(raw)
                if (below is None or record._number < below) and (found[1] or wanted.test(record)):
                    numbered.append((record._number, raw))
        numbered.sort(reverse=True)
        for _, raw in numbered:
            yield decode_record(raw)

    def _in_order(self, wanted: Filter | None, below: int | None) -> Iterator[Record]:
        start = b"" if below is None else key_of(below)
        for key, record_id in self._transaction.items("order", start, is_reverse=True):
            if start and key >= start:
                continue  # the cursor starts at the first key that is not below ``start``
            give_way()
            record = decode_record(self._named(record_id))
            if wanted is None or wanted.test(record):
                yield record

    def _is_many(self, candidates: int, limit: int | None) -> bool:
        """Whether a filter has so many candidates that a page is found sooner by testing all records in order."""
        return limit is not None and limit * self._transaction.state().records < candidates * candidates

    def ids(self, wanted: Filter | None) -> list[str]:
        """The ids of the records that pass a filter, newest first; expired ones too."""
        if wanted is not None:
            return [record.id for record in self.matching(wanted)]
        found = []
        for _, record_id in self._transaction.items("order", is_reverse=True):
            give_way()
            found.append(record_id.decode())  # also of records that cannot be decoded
        return found

    def get_all(self, wanted: Filter | None, limit: int | None, cursor: str | None) -> Page:
        """Records, newest first.

        Args:
            wanted: the filter; None for all.
            limit: how many at most; None for all.
            cursor: of the previous page; None for the first one.
        """
        page: list[Record] = []
        for record in self.matching(wanted, None if cursor is None else _cursor_of(cursor), limit):
            if limit is not None and len(page) == limit:
                return Page(page, str(page[-1]._number))
            if self._complete(record):
                page.append(record)
        return Page(page)

    def history(self, record_id: str) -> list[Event]:
        """The events of a record, oldest first; without those of another user's record that had the same id."""
        events = events_of(self._transaction, record_id)
        return [event for event in events if self._scope is None or event._user_id == self._scope]

    # -- searches -----------------------------------------------------------------------------------------------------

    def nearest(
        self, query: np.ndarray[Any, Any], wanted: Filter | None, limit: int, threshold: float | None
    ) -> list[Hit]:
        """The records whose vectors are nearest."""
        if self._files is None:
            return []
        allowed, is_exact = self._allowed(wanted)
        live = self._live.of(self._transaction)
        if allowed is not None:
            allowed = allowed[allowed < live.size]  # rows above belong to records without a vector
        state = self._transaction.state()
        slabs = [
            (slab, min(slab.entry.room, state.next_row - slab.entry.first))
            for slab in self._files.open(slabs_of(self._transaction))
        ]
        if allowed is not None and allowed.size > _FEW_ROWS * max(state.vectors, 1):
            mask = np.zeros(live.size, np.bool_)
            mask[allowed.astype(np.int64)] = True
            live, allowed = live & mask, None
        with self._aside():
            ranking = Ranking(slabs, live, query, self._options.metric, allowed)
        test = None if is_exact or wanted is None else wanted
        count = limit if test is None else limit * _FIRST_LOOK
        while True:
            with self._aside():
                rows = list(ranking.best(count))
            hits = self._hits(rows, test, limit, threshold)
            is_cut = threshold is not None and bool(rows) and rows[-1][1] < threshold
            if len(hits) >= limit or len(rows) < count or is_cut:
                return hits
            count *= 4

    def with_words(self, query: str, wanted: Filter | None, limit: int, threshold: float | None) -> list[Hit]:
        """The records whose texts have the words of the query."""
        allowed, is_exact = self._allowed(wanted)
        rows, scores = search_words(self._transaction, query, allowed)
        found = zip(rows.tolist(), scores.tolist(), [None] * rows.size, strict=True)
        return self._hits(found, None if is_exact or wanted is None else wanted, limit, threshold)

    def _allowed(self, wanted: Filter | None) -> tuple[Rows | None, bool]:
        found = None if wanted is None else wanted.candidates(self._transaction, self._options.indexed)
        return (None, False) if found is None else found

    def _hits(
        self,
        found: Any,
        test: Filter | None,
        limit: int,
        threshold: float | None,
    ) -> list[Hit]:
        hits: list[Hit] = []
        for row, score, distance in found:
            give_way()
            if len(hits) == limit or (threshold is not None and score < threshold):
                break
            raw = self._of_row(row)
            record = None if raw is None else self._open(raw)
            if record is not None and (test is None or test.test(record)):
                hits.append(Hit(record, score, distance))
        return hits


def _cursor_of(text: str) -> int:
    if not isinstance(text, str) or not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise BadMessage(f"{text!r:.40} is no cursor; give the one of the last page", detail="cursor")
    return int(text)


class Snapshot(ForkAware):
    """A store as it was at one moment, whatever others change. Close it soon: what it shows is not freed before.

    A forked child cannot use it: the child would read pages that are freed when the parent closes the snapshot.

    Args:
        catalogue: of the store.
        make: makes a view; called with the transaction, and the view's ``now_s`` and ``aside``.
        max_age_s: seconds after which it closes itself.
    """

    def __init__(self, catalogue: Catalogue, make: Any, max_age_s: float) -> None:
        self._lock = threading.RLock()
        self._transaction: Transaction | None = None
        super().__init__()
        self._catalogue = catalogue.twin()  # so the snapshot outlives the handle
        try:
            self._transaction = self._catalogue.begin()
        except BaseException:
            self._catalogue.close()
            raise
        self._began_s = time.time()
        self._make = make
        self._max_age_s = max_age_s
        self._timer = threading.Timer(max_age_s, self.close)
        self._timer.daemon = True
        self._timer.start()

    def forked_in_child(self) -> None:
        """Leave the place in the table of readers to the parent; a thread of the parent may have had the lock."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.end()
        self._lock = threading.RLock()

    def _read(self, action: Callable[[View], _T]) -> _T:
        """Call a function with a view of the snapshot.

        Raises:
            SnapshotExpired: the snapshot was closed, is too old, or belongs to the parent of this process.
        """
        with self._lock, self._catalogue.use(self._open_transaction()) as transaction:
            return action(self._make(transaction, self._began_s, self._aside))

    def _open_transaction(self) -> Transaction:
        if self._transaction is None:
            if self.is_foreign:
                raise SnapshotExpired("the snapshot is that of the process that has forked; take another one")
            raise SnapshotExpired(
                f"the snapshot was closed, or is older than {self._max_age_s:g} s; take another one, or give "
                "snapshot() a higher max_age_s"
            )
        return self._transaction

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Let other threads use the snapshot, or close it, in the block."""
        lock = self._lock
        lock.release()
        try:
            yield
        finally:
            lock.acquire()
        self._open_transaction()

    def close(self) -> None:
        """End the snapshot. Idempotent."""
        self._timer.cancel()
        with self._lock:
            transaction, self._transaction = self._transaction, None
            if transaction is None:
                return
            try:
                with self._catalogue.use(transaction):
                    transaction.end()
            except StoreClosed:
                pass  # the snapshot has ended with its environment
            finally:
                self._catalogue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
