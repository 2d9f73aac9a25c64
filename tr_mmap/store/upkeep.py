"""Frees files and rows of vectors that no record and no snapshot uses. Never changes a record."""

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

_DEAD_PART: Final = 0.3  # a compaction replaces a slab if a larger part of its rows is dead
_LOOK_COMMITS: Final = 16  # after so many commits of a handle, files that may go are looked for


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
        """After every 16th commit, remove files that no snapshot can show any more."""
        self._commits += 1
        if self._commits % _LOOK_COMMITS == 0:
            self._catalogue.check_readers()  # a killed reader would keep files and pages for ever
            self.remove_garbage()

    def remove_garbage(self) -> int:
        """Remove files that were given up by a commit which all open snapshots include. Returns how many."""
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
        """Remove what killed processes have left: their places in the table of readers, and files that the catalogue
        does not name.

        Returns:
            How many files were removed.

        Raises:
            StoreCorrupt: the store's folder was removed.
        """
        self._catalogue.check_place()
        self._catalogue.check_readers()
        found = self.remove_garbage()
        left = self._places.left_files()  # before the snapshot, which then has all commits of these dead processes
        for folder, name in self.unnamed(left):
            self._places.remove_left(folder, name)
            found += 1
        return found

    def unnamed(self, files: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        """Of these files (folder and name), those that the catalogue does not name and no old snapshot may show."""
        if not files:
            return []
        with closing(self._catalogue.twin()) as catalogue, catalogue.read() as transaction:  # this one may be closed
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
        """Remove new files after an error. Keeps those that the catalogue names: the commit may have been made."""
        try:
            unnamed = self.unnamed([(folder, name) for name in names])
        except (OSError, TRException):
            return  # a sweep removes them when this process has ended
        self._places.remove(folder, [name for _, name in unnamed])

    def compact(self, files: SlabFiles, live: Live, write: Callable[[Callable[[Changes], Any]], Any]) -> int:
        """Replace slabs that have many dead rows by smaller ones. Returns how many rows were freed."""
        freed = 0
        with self._catalogue.read() as transaction:
            entries = slabs_of(transaction)
            bits = live.of(transaction)
            next_row = transaction.state().next_row
            slabs = files.open(entries)  # in the snapshot: another process may compact too, and remove files
        for slab in slabs:
            entry = slab.entry
            is_full = bool(entry.rows) or entry.first + entry.span <= next_row
            if entry.rows:
                rows = np.array(slab.rows)
            else:
                rows = np.arange(entry.first, min(entry.first + entry.span, next_row), dtype=np.uint64)
            kept = bits[rows.astype(np.int64)]
            dead = int(rows.size - kept.sum())
            # A slab that is being filled is replaced only if all its rows so far are dead.
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
