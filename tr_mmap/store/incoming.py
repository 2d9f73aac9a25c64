"""Imports records from files into a store. Checks all of them before it adds the first."""

from __future__ import annotations

import io
import itertools
import time
import uuid
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec
import numpy as np

from ..errors import BadMessage, TRException
from ..tsr.dtypes import resolve
from .arguments import Fresh
from .embedders import Named
from .errors import EmbedderMismatch, RecordExists, StoreCorrupt
from .exchange import EXPORT, FORMAT, NOTE, RECORDS, TENSORS, VECTORS, Note, Step, options_of, plainly
from .options import Options
from .places import root_of
from .store import Store
from .tensor_file import TensorFile
from .vectors import as_rows

__all__ = ["Imported", "Source", "check_record", "import_from", "make_for", "read_lines", "read_source"]

_BATCH: Final = 500
_Numbered = tuple[int, dict[str, Any]]


class Imported(NamedTuple):
    """What was imported.

    Attributes:
        added: how many records.
        skipped: how many were in the store already.
    """

    added: int
    skipped: int


class Source:
    """Records to be imported: their lines, and the file with their vectors and tensors.

    Attributes:
        options: of the store that was exported; None if the source is not an export.
        line_of: the line number of each record by its id; set by :meth:`check`.
        count: how many records there are.
        has_vectors: whether the source is an export that has vectors.
    """

    def __init__(self, lines: list[str], note: Note | None = None, tensors: TensorFile | None = None) -> None:
        self._lines = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        self._tensors = tensors
        self._rows = tensors[VECTORS] if tensors is not None and VECTORS in tensors else ()
        self._checked_for: tuple[Any, ...] | None = None
        self.options = None if note is None else note.options
        self.line_of: dict[str, int] = {}
        self.count = len(self._lines)
        self.has_vectors = len(self._rows) > 0

    def records(self) -> Iterator[_Numbered]:
        """For each record its line number and the arguments of ``add``. A record without an id gets a new one.

        Raises:
            BadMessage: a line is not a record; ``detail`` is its number.
        """
        for number, line in self._lines:
            yield number, {"id": uuid.uuid4().hex, **self._record(number, line)}

    def check(self, dim: int | None, dtype: str, scope: str | None = None) -> None:
        """Check that all records can be added to a store.

        Args:
            dim: of the store's vectors; None if the store has none yet.
            dtype: of the store's vectors.
            scope: of the store's handle.

        Raises:
            BadMessage: a record cannot be added; ``detail`` is the number of its line.
        """
        if self._checked_for == (dim, dtype, scope):
            return
        kind, size, self.line_of = resolve(dtype).numpy, dim, {}
        for number, record in self.records():
            try:
                Fresh(record, scope)
                if record.get("vector") is not None:
                    size = as_rows([record["vector"]], size, kind).shape[1]
            except TRException as error:
                raise _wrong(number, str(error)) from error
            if (other := self.line_of.setdefault(record["id"], number)) != number:
                raise _wrong(number, f"the id {record['id']!r} is that of line {other}, too")
        self._checked_for = (dim, dtype, scope)

    def _record(self, number: int, line: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BadMessage(f"line {number} is no record: {error}", detail=str(number)) from None
        if found.get("id", "") is None:
            del found["id"]
        expires_at = found.pop("expires_at", None)
        if expires_at is not None:
            if isinstance(expires_at, bool) or not isinstance(expires_at, int | float):
                raise _wrong(number, f"expires_at is {expires_at!r:.40}; it is a number")
            found["ttl_s"] = max(expires_at - time.time(), 1e-6)
        vector = found.get("vector")
        if isinstance(vector, int):
            if not 0 <= vector < len(self._rows):
                raise self._missing(number, f"row {vector} of {VECTORS!r}")
            found["vector"] = self._rows[vector]
        tensors = found.get("tensors")
        if isinstance(tensors, dict):
            found["tensors"] = {name: self._tensor(number, each) for name, each in tensors.items()}
        return found

    def _tensor(self, number: int, name: Any) -> np.ndarray[Any, Any]:
        if not isinstance(name, str):
            raise _wrong(number, f"a tensor is {name!r:.40}; it is a name in {TENSORS}")
        if self._tensors is None or name not in self._tensors:
            raise self._missing(number, repr(name))
        return self._tensors[name]

    def _missing(self, number: int, what: str) -> BadMessage:
        if self._tensors is None:
            return _wrong(number, f"the record has {what} of {TENSORS}; import the directory that has both files")
        return _wrong(number, f"the record has {what}, which is not in {self._tensors.path}")


def _wrong(number: int, why: str) -> BadMessage:
    return BadMessage(f"line {number}: {why}", detail=str(number))


# -- files ------------------------------------------------------------------------------------------------------------


def read_source(path: Path) -> Source:
    """Read an export of :func:`tr_mmap.store.exchange.export_to`, or a file of JSON lines.

    Args:
        path: of the directory, or of the file.

    Raises:
        BadMessage: it is neither; or the export is not complete, or has files of two exports.
        FileNotFoundError: a file is missing.
    """
    if not path.is_dir():
        if path.suffix == ".safetensors":
            raise BadMessage(f"{path} has tensors only; import the directory that it lies in", detail=str(path))
        with open(path, "rb") as file:
            return read_lines(file)
    with open(path / RECORDS, "rb") as file:
        lines = _lines_of(file)
    note = _note_of(path / NOTE)
    tensors = TensorFile(path / TENSORS)
    if tensors.metadata.get(EXPORT) != note.export:
        raise BadMessage(
            f"{tensors.path} and {path / NOTE} are not of the same export; copy the whole directory again",
            detail=str(tensors.path),
        )
    source = Source(lines, note, tensors)
    if source.count != note.records:
        raise BadMessage(
            f"{path / RECORDS} has {source.count} records, and {note.records} were exported; copy it again, or say in "
            f"{NOTE} how many are wanted",
            detail=str(path / RECORDS),
        )
    return source


def read_lines(file: BinaryIO) -> Source:
    """Read JSON lines, each with a record.

    Raises:
        BadMessage: the file is not text in UTF-8.
    """
    return Source(_lines_of(file))


def _lines_of(file: BinaryIO) -> list[str]:
    try:
        text = file.read().decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        name = getattr(file, "name", "the input")
        raise BadMessage(f"{name} is no file of JSON lines: {error}", detail=str(name)) from None
    return io.StringIO(text, newline=None).readlines()


def _note_of(path: Path) -> Note:
    try:
        note = msgspec.json.decode(path.read_bytes(), type=Note)
    except FileNotFoundError:
        raise BadMessage(
            f"{path} is not there: the export has not ended, or was not copied whole; export again", detail=str(path)
        ) from None
    except msgspec.MsgspecError as error:
        raise BadMessage(f"{path} is not what an export has written: {error}", detail=str(path)) from None
    if note.format != FORMAT:
        raise BadMessage(f"{path} says format {note.format}; this release reads {FORMAT}", detail=str(path))
    return note


# -- stores -----------------------------------------------------------------------------------------------------------


def check_record(given: dict[str, Any]) -> None:
    """Check a record before its store is made, so that no store is made for a record that it would refuse.

    Args:
        given: the arguments of ``add``.

    Raises:
        BadMessage, WrongShape: a new store would refuse it.
    """
    Fresh(given, None)
    if given.get("vector") is not None:
        as_rows([given["vector"]], None, np.dtype(np.float32))


def make_for(source: Source, name: str, path: str | PathLike[str] | None, embedder: str | None = None) -> None:
    """Check a source; if it is an export, make a store with the options of the exported one. Adds nothing.

    Args:
        source: what will be imported.
        name: of the new store.
        path: the folder for its own folder; None for the user's, by its durability.
        embedder: the name of the new store's embedder; None for that of the exported store.

    Raises:
        BadMessage: a record cannot be added; no store is made.
        EmbedderMismatch: another embedder has made the vectors; no store is made.
        OutOfSpace: there is no room.
    """
    like = msgspec.structs.replace(source.options or Options(name), name=name)
    like.embedder = embedder or like.embedder
    _check_embedder(like, source)
    source.check(like.dim, like.dtype)
    if source.options is None:
        return
    Store(
        name,
        root_of(path, like.durability),
        dim=like.dim,
        dtype=like.dtype,
        metric=like.metric,
        embedder=None if like.embedder is None else Named(like.embedder, _not_here),
        indexed=like.indexed,
        durability=like.durability,
        budget_nbytes=like.budget_nbytes,
        at_budget=like.at_budget,
    ).close()


def _not_here(texts: list[str]) -> Any:
    raise NotImplementedError(f"only the name of this embedder is known: {len(texts)} texts get no vectors")


def import_from(store: Store, source: Source, *, is_going_on: bool = False, step: Step = plainly) -> Imported:
    """Add the records of a source, some in each commit. All are checked first; if one is refused, none is added.

    An error after the first commit (a full disk, say) has a note that says which lines were added.

    Args:
        store: gets the records.
        source: has the records.
        is_going_on: whether to skip records whose ids are in the store, instead of refusing the import.
        step: as for :func:`tr_mmap.store.exchange.export_to`.

    Raises:
        BadMessage: a record cannot be added; ``detail`` is the number of its line.
        RecordExists: the store has a record with such an id.
        EmbedderMismatch: another embedder has made the vectors.
        OutOfSpace: there is no room.
    """
    options = options_of(store)
    _check_embedder(options, source)
    source.check(options.dim, options.dtype, store.scope)
    if not is_going_on:
        _check_ids(store, source)
    records = source.records()
    batch: list[_Numbered] = []
    added = seen = last = 0
    try:
        for _ in step(range(0, source.count, _BATCH), -(-source.count // _BATCH)):
            batch = list(itertools.islice(records, _BATCH))
            added += _add(store, [record for _, record in batch], is_going_on)
            seen, last, batch = seen + len(batch), batch[-1][0], []
    except BaseException as error:
        if batch and _are_there(store, batch):  # an interrupt may come after the commit
            seen, last = seen + len(batch), batch[-1][0]
        error.add_note(
            f"{seen} of {source.count} records are in the store, those of the lines 1 to {last}; import again with "
            "--skip-existing to go on (if lines have no id, without these)"
            if seen
            else "nothing was added"
        )
        raise
    return Imported(added, seen - added)


def _check_embedder(options: Options, source: Source) -> None:
    theirs = None if source.options is None else source.options.embedder
    if source.has_vectors and None not in (theirs, options.embedder) and theirs != options.embedder:
        raise EmbedderMismatch(
            f"the vectors to import were made by {theirs!r}, those of the store {options.name!r} by "
            f"{options.embedder!r}, and they cannot be compared; import into another store",
            option="embedder",
            expected=options.embedder,
            found=theirs,
        )


def _check_ids(store: Store, source: Source) -> None:
    for record_id, number in source.line_of.items():
        if _is_there(store, record_id):
            raise RecordExists(
                f"line {number}: there is a record {record_id!r}; nothing was added. Import with --skip-existing "
                "to leave it as it is, and add those that are not there",
                id=record_id,
            )


def _add(store: Store, records: list[dict[str, Any]], is_going_on: bool) -> int:
    """Add records in one commit; with ``is_going_on``, only those that are not there. Returns how many were added."""
    while True:
        if is_going_on:
            records = [each for each in records if not _is_there(store, each["id"])]
        try:
            return len(store.add_many(records))
        except RecordExists as error:
            if not is_going_on:
                raise
            records = [each for each in records if each["id"] != error.id]  # somebody has just added it


def _is_there(store: Store, record_id: str) -> bool:
    try:
        return store.get(record_id) is not None
    except StoreCorrupt:
        return True  # it is damaged, but has the id


def _are_there(store: Store, batch: list[_Numbered]) -> bool:
    try:
        return all(_is_there(store, record["id"]) for _, record in batch)
    except (TRException, OSError):
        return False
