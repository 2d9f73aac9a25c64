"""Slabs: TSR files that hold the vectors of consecutive rows. A row is written once, before the commit that names it.

A slab has a second file with the lengths of its vectors, and after a compaction a third one with the numbers of the
rows that it still has. All are written through descriptors, so that a full file system is an error and not a signal;
they are read through read-only mappings. Knows nothing of the catalogue.
"""

from __future__ import annotations

import bisect
import itertools
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np

from ..base import system
from ..base.fork_safety import ForkAware
from ..errors import TSRFormatError
from ..tsr import load
from ..tsr.dtypes import DType, by_name
from ..tsr.header import encode_v2
from ..wire.header import V2_HEADER_NBYTES
from .errors import StoreCorrupt
from .files import new_file_name, write_array

__all__ = [
    "FIRST_BARE_ROW",
    "FIRST_ROWS",
    "MOST_ROWS",
    "Slab",
    "NewRow",
    "SlabEntry",
    "SlabFiles",
    "make_compacted",
    "make_slab",
    "write_rows",
]

FIRST_ROWS: Final = 1024  # of the first slab: a store with few vectors is small
MOST_ROWS: Final = 65_536
FIRST_BARE_ROW: Final = 1 << 62  # records without a vector get rows from here on; rows below are in slabs
NORMS: Final = by_name("float64")
ROWS: Final = by_name("uint64")


class SlabEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the catalogue says of a slab.

    Attributes:
        first: its first row.
        span: how many rows belong to it, used or not.
        file: the vectors.
        norms: their lengths.
        rows: the file with the numbers of the rows that it has, ascending; "" if it has all rows of its span.
        count: how many rows that file lists; 0 if there is none.
    """

    first: int
    span: int
    file: str
    norms: str
    rows: str = ""
    count: int = 0

    @property
    def room(self) -> int:
        """For how many rows its files have room."""
        return self.count if self.rows else self.span


def _make_file(directory: str, name: str, dtype: DType, shape: tuple[int, ...], is_synced: bool) -> None:
    """Make a file for a tensor of zeros, with all its blocks. A crash leaves a file that no catalogue names.

    Raises:
        OutOfSpace: there is no room.
    """
    path = os.path.join(directory, name)
    nbytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    fd = system.create_file(path)
    try:
        system.allocate(fd, V2_HEADER_NBYTES + nbytes, directory=directory)
        system.set_size(fd, V2_HEADER_NBYTES + nbytes)
        system.write_all(fd, encode_v2(dtype, shape, created_ns=time.time_ns()))
        if is_synced:
            system.sync(fd)
    except BaseException:
        system.unlink(path)
        raise
    finally:
        system.close(fd)


def make_slab(directory: str, dtype: DType, dim: int, span: int, *, is_synced: bool) -> SlabEntry:
    """Make the files of a slab. Its entry has ``first`` 0; the commit that uses the slab sets its first row.

    Args:
        directory: for its files.
        dtype: of the vectors.
        dim: numbers of a vector.
        span: how many rows it gets.
        is_synced: whether to wait until they are on the disk.

    Raises:
        OutOfSpace: there is no room; nothing is left.
    """
    entry = SlabEntry(0, span, new_file_name("v"), new_file_name("n"))
    try:
        _make_file(directory, entry.file, dtype, (span, dim), is_synced)
        _make_file(directory, entry.norms, NORMS, (span,), is_synced)
        if is_synced:
            system.sync_dir(directory)
    except BaseException:
        for name in (entry.file, entry.norms):
            system.unlink(os.path.join(directory, name))
        raise
    return entry


def make_compacted(
    directory: str, old: Slab, positions: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], *, is_synced: bool
) -> SlabEntry:
    """Make a slab with some rows of an old one.

    Args:
        directory: for its files.
        old: the old slab.
        positions: where these rows are in the old slab.
        rows: their numbers, ascending.
        is_synced: whether to wait until they are on the disk.

    Raises:
        OutOfSpace: there is no room; nothing is left.
    """
    names = [new_file_name(kind) for kind in "vnr"]
    parts = ((old.dtype, old.vectors[positions]), (NORMS, old.norms[positions]), (ROWS, rows))
    try:
        for name, (dtype, values) in zip(names, parts, strict=True):
            write_array(directory, name, dtype, values, has_checksum=False, is_synced=is_synced)
        if is_synced:
            system.sync_dir(directory)
    except BaseException:
        for name in names:
            system.unlink(os.path.join(directory, name))
        raise
    return SlabEntry(old.entry.first, old.entry.span, names[0], names[1], names[2], len(rows))


class Slab:
    """A slab, mapped.

    Attributes:
        entry: what the catalogue says of it.
        vectors: of shape ``(rows, dim)``, read-only.
        norms: their lengths, of shape ``(rows,)``.
        rows: the numbers of its rows, if it was compacted; else None.

    Raises:
        StoreCorrupt: a file is not what the catalogue says, or is gone.
    """

    def __init__(self, directory: str, entry: SlabEntry, dtype: DType, dim: int) -> None:
        self.entry = entry
        self.dtype = dtype
        self._first = entry.first
        self._directory = directory
        count = entry.room
        self.vectors = _load(directory, entry.file, dtype, (count, dim))
        self.norms = _load(directory, entry.norms, NORMS, (count,))
        self.rows = _load(directory, entry.rows, ROWS, (count,)) if entry.rows else None

    def vector(self, row: int) -> np.ndarray[Any, Any]:
        """The vector of a row, as a view."""
        found: np.ndarray[Any, Any] = self.vectors[row - self._first if self.rows is None else self.position(row)]
        return found

    def has(self, row: int) -> bool:
        """Whether it has a row of its span; a compaction leaves out rows that no record uses."""
        if self.rows is None:
            return True
        position = self.position(row)
        return position < len(self.rows) and int(self.rows[position]) == row

    def position(self, row: int) -> int:
        """The index of a row in ``vectors`` and ``norms``."""
        if self.rows is None:
            return row - self._first
        return int(np.searchsorted(self.rows, row))

    def write(self, row: int, vectors: np.ndarray[Any, Any], norms: np.ndarray[Any, Any]) -> None:
        """Write consecutive rows. Call it only before the commit that names them, in its writing transaction."""
        position = row - self.entry.first
        for name, values in ((self.entry.file, vectors), (self.entry.norms, norms)):
            fd = system.open_path(os.path.join(self._directory, name), write=True)
            try:
                offset = V2_HEADER_NBYTES + position * values[0].nbytes
                system.write_all(fd, values.view(np.uint8).reshape(-1).data, offset)
            finally:
                system.close(fd)

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        for name in (self.entry.file, self.entry.norms):
            fd = system.open_path(os.path.join(self._directory, name), write=True)
            try:
                system.sync(fd)
            finally:
                system.close(fd)


NewRow: TypeAlias = tuple[Slab, int, np.ndarray[Any, Any], np.ndarray[Any, Any]]  # slab, row, vector, its length


def write_rows(rows: Sequence[NewRow], *, is_synced: bool) -> None:
    """Write rows, consecutive rows of a slab in one call; with ``is_synced``, wait until they are on the disk."""
    runs = itertools.groupby(enumerate(rows), lambda each: (each[1][0].entry.file, each[1][1] - each[0]))
    for _, run in runs:
        several = [each for _, each in run]
        slab, row, _, _ = several[0]
        slab.write(row, np.stack([each[2] for each in several]), np.array([each[3] for each in several]))
    if is_synced:
        for slab in {each[0].entry.file: each[0] for each in rows}.values():
            slab.sync()


def _load(directory: str, name: str, dtype: DType, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    path = os.path.join(directory, name)
    try:
        array = load(path)
    except (TSRFormatError, FileNotFoundError) as error:
        raise StoreCorrupt(
            f"{path}: {error}; restore the file from a copy, or export and rebuild", path=path
        ) from error
    if array.shape != shape or array.dtype != dtype.numpy:
        raise StoreCorrupt(
            f"{path} has shape {array.shape} and dtype {array.dtype}, the catalogue says {shape} and {dtype.name}; "
            "restore the file from a copy, or export and rebuild",
            path=path,
        )
    return array


class SlabFiles(ForkAware):
    """The slabs of one store that this process has mapped. Threads may use it at once.

    Args:
        directory: where they are.
        dtype: of the vectors.
        dim: numbers of a vector.
    """

    def __init__(self, directory: str, dtype: DType, dim: int) -> None:
        super().__init__()
        self._directory = directory
        self._dtype = dtype
        self._dim = dim
        self._lock = threading.RLock()  # a signal handler may read in the middle of a method
        self._known: dict[str, Slab] = {}  # by file
        self._table: tuple[list[int], list[Slab]] = ([], [])  # first rows, and slabs; replaced whole

    def forked_in_child(self) -> None:
        """Another thread of the parent may have had the lock."""
        self._lock = threading.RLock()

    def of_row(self, row: int, slabs: Sequence[Slab] | None = None) -> Slab | None:
        """The slab that has a row; None if none has it.

        A row is never written again, so a slab of any snapshot has the right vector.

        Args:
            row: its number.
            slabs: of a snapshot; None for those that were opened last.
        """
        firsts, known = self._table
        if slabs is not None:
            firsts, known = [slab.entry.first for slab in slabs], list(slabs)
        at = bisect.bisect_right(firsts, row) - 1
        if at < 0 or row >= firsts[at] + known[at].entry.span or not known[at].has(row):
            return None
        return known[at]

    def open(self, entries: Sequence[SlabEntry]) -> list[Slab]:
        """Open the slabs of a snapshot, in their order. Slabs that it does not name are forgotten."""
        with self._lock:
            slabs = []
            for entry in entries:
                slab = self._known.get(entry.file)
                if slab is None or slab.entry != entry:
                    slab = self._known[entry.file] = Slab(self._directory, entry, self._dtype, self._dim)
                slabs.append(slab)
            names = {entry.file for entry in entries}
            for name in [name for name in self._known if name not in names]:
                self._known.pop(name, None)
            self._table = ([entry.first for entry in entries], slabs)
            return slabs

    def find(self, row: int, entries: Sequence[SlabEntry]) -> Slab | None:
        """The slab that has a row of a snapshot; None if none has it.

        Raises:
            StoreCorrupt: this slab's files are broken. Broken files of other slabs do not matter.
        """
        try:
            return self.of_row(row, self.open(entries))
        except StoreCorrupt:
            at = bisect.bisect_right(entries, row, key=lambda entry: entry.first) - 1
            return None if at < 0 else self.of_row(row, [self.for_writing(entries[at])])

    def for_writing(self, entry: SlabEntry) -> Slab:
        """Open one slab and no other: to fill it, or to read it although others are broken."""
        with self._lock:
            slab = self._known.get(entry.file)
            if slab is None or slab.entry != entry:
                slab = self._known[entry.file] = Slab(self._directory, entry, self._dtype, self._dim)
            return slab
