"""Frees what nothing names any more: files, rows of vectors. Never changes a record."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from typing import Any, Final

import numpy as np

from ..errors import OutOfSpace, TRException
from .catalogue import Catalogue, number_of
from .changes import Changes, slabs_of
from .places import Places
from .slabs import SlabEntry, SlabFiles, make_compacted
from .views import Live

__all__ = ["Upkeep"]

_DEAD_PART: Final = 0.3  # of a slab's rows, above which a compaction makes another one
_LOOK_COMMITS: Final = 16  # after how many commits of this process to look for files that may go


class Upkeep:
    """The upkeep of one store. Threads may use it at once.

    Args:
        places: of its files.
        catalogue: of it.
    """

    def __init__(self, places: Places, catalogue: Catalogue) -> None:
        self._places = places
        self._catalogue = catalogue
        self._commits = 0

    def after_commit(self) -> None:
        """Remove files that no reader can need any more, now and then."""
        self._commits += 1
        if self._commits % _LOOK_COMMITS == 0:
            self._catalogue.check_readers()  # a killed one would keep files and pages for ever
            self.remove_garbage()

    def remove_garbage(self) -> int:
        """Remove files that were given up in transactions that every reader of now has passed. Returns how many."""
        with self._catalogue.read() as transaction:
            waiting = [key for key, _ in transaction.items("garbage")]
        if not waiting:
            return 0
        oldest = self._catalogue.oldest_reader()
        bound = self._catalogue.last_transaction() if oldest is None else oldest
        gone = [key for key in waiting if number_of(key[:8]) <= bound]
        if not gone:
            return 0
        for key in gone:
            folder, _, name = key[8:].decode().partition("/")
            self._places.remove(folder, (name,))
        try:
            self._catalogue.write(lambda transaction: [transaction.pop("garbage", key) for key in gone])
        except OutOfSpace:
            pass  # the files are gone; a later call takes them from the list
        return len(gone)

    def sweep(self) -> int:
        """Remove what killed processes have left: places of readers, and files that nothing names. Returns how many.

        Raises:
            StoreCorrupt: the store's folder was removed.
        """
        self._catalogue.check_place()
        self._catalogue.check_readers()
        found = self.remove_garbage()
        left = self._places.left_files()  # before the snapshot: a dead process commits nothing more
        for folder, name in self.unnamed(left):
            self._places.remove_left(folder, name)
            found += 1
        return found

    def unnamed(self, files: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of some files, by folder and name, that are not in use, nor are until their last reader has ended."""
        if not files:
            return []
        with closing(self._catalogue.twin()) as catalogue, catalogue.read() as transaction:  # the handle may be closed
            waiting = {key[8:].decode() for key, _ in transaction.items("garbage")}
            slabs = slabs_of(transaction)
            vectors = {name for entry in slabs for name in (entry.file, entry.norms, entry.rows)}

            def is_named(folder: str, name: str) -> bool:
                if f"{folder}/{name}" in waiting:
                    return True
                if folder == "tensors":
                    return transaction.get(name.encode(), db=transaction.files) is not None
                return folder == "vec" and name in vectors

            return [(folder, name) for folder, name in files if not is_named(folder, name)]

    def remove_new(self, folder: str, names: Iterable[str]) -> None:
        """Remove new files after an error, but those that the catalogue names: it may have come after the commit."""
        try:
            unnamed = self.unnamed([(folder, name) for name in names])
        except (OSError, TRException):
            return  # they are swept when this process has ended
        self._places.remove(folder, [name for _, name in unnamed])

    def compact(self, files: SlabFiles, live: Live, write: Callable[[Callable[[Changes], Any]], Any]) -> int:
        """Make smaller slabs of those with many rows that do not count. Returns how many rows were freed."""
        freed = 0
        with self._catalogue.read() as transaction:
            entries = slabs_of(transaction)
            bits = live.of(transaction)
            next_row = transaction.state().next_row
            slabs = files.open(entries)  # before another process, that compacts too, removes one
        for slab in slabs:
            entry = slab.entry
            is_full = bool(entry.rows) or entry.first + entry.span <= next_row
            if entry.rows:
                rows = np.array(slab.rows)
            else:
                rows = np.arange(entry.first, min(entry.first + entry.span, next_row), dtype=np.uint64)
            kept = bits[rows.astype(np.int64)]
            dead = int(rows.size - kept.sum())
            # One that is being filled goes when no row of it counts; until it is full, the others leave it as it is.
            if dead <= _DEAD_PART * rows.size or not (is_full or dead == rows.size):
                continue
            new: SlabEntry | None = None
            if kept.any():
                places, is_synced = self._places, self._places.is_synced
                new = make_compacted(places.vectors, slab, np.flatnonzero(kept), rows[kept], is_synced=is_synced)

            def replace(
                changes: Changes,
                old: SlabEntry = entry,
                new: SlabEntry | None = new,
                at: int | None = None if is_full else next_row,
            ) -> bool:
                return changes.replace_slab(old, new, at)

            was_there = False
            try:
                was_there = write(replace)
            finally:
                if new is not None and not was_there:
                    self.remove_new("vec", (new.file, new.norms, new.rows))
            freed += dead * was_there
        return freed
