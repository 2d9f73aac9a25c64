"""Exports the records of a store. :mod:`tr_mmap.store.incoming` imports them.

An export is a directory with three files:

- ``records.jsonl``: a record on each line, as a JSON object with the parameters of ``add``, and ``expires_at``. Its
  ``vector`` is the number of a row of the tensor ``vectors``; its ``tensors`` are names in the file of tensors.
- ``tensors.safetensors``: the vectors, as one tensor, and the records' tensors.
- ``store.json``: the store's options, and how many records there are. It is written last, so an export that was
  interrupted has none.

The last two files have the random number of the export, so that files of two exports are not mixed up.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from ..tsr.dtypes import resolve
from ..tsr.tensors import to_array
from .errors import StoreCorrupt
from .options import Options
from .reads import StoreSnapshot
from .records import FIELDS
from .store import Store
from .tensor_file import Entry, write_tensors

__all__ = [
    "EXPORT",
    "FORMAT",
    "NOTE",
    "RECORDS",
    "TENSORS",
    "VECTORS",
    "Exported",
    "Note",
    "Step",
    "export_to",
    "options_of",
    "plainly",
]

RECORDS: Final = "records.jsonl"
TENSORS: Final = "tensors.safetensors"
NOTE: Final = "store.json"
VECTORS: Final = "vectors"
EXPORT: Final = "export"  # among the metadata of the file of tensors: the number of the export
FORMAT: Final = 1
_FIELDS: Final = ("id", *FIELDS, "expires_at")
_LONGEST_S: Final = 86_400.0  # that an export may take

Step = Callable[[Iterable[Any], int], Iterable[Any]]


class Note(msgspec.Struct, forbid_unknown_fields=True):
    """The content of ``store.json``.

    Attributes:
        export: the random number of the export.
        records: how many there are.
        options: of the store.
        format: version of the export's format.
    """

    export: str
    records: int
    options: Options
    format: int = FORMAT


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        records: how many.
        lost: an error for each record that could not be read.
    """

    records: int
    lost: list[StoreCorrupt]


def plainly(several: Iterable[Any], _: int) -> Iterable[Any]:
    """A step that shows no progress bar."""
    return several


def options_of(store: Store) -> Options:
    """The options of a store, with the ``dim`` and ``embedder`` that it has now."""
    return store._look_again()


def export_to(
    store: Store, directory: str | PathLike[str], filters: Mapping[str, Any] | None = None, step: Step = plainly
) -> Exported:
    """Write the records of one moment into a new directory, the oldest first. One that cannot be read is left out.

    Args:
        store: the one to export.
        directory: to be made; it is removed again after an error.
        filters: which records; None for all.
        step: called with an iterable and its length; returns the iterable, perhaps wrapped to show a progress bar.

    Raises:
        FileExistsError: the directory is there.
        BadMessage: the filter is wrong, or there are more tensors than the header of one safetensors file can name.
        StoreCorrupt: the catalogue cannot be read.
        SnapshotExpired: it took more than a day.
    """
    folder = Path(directory)
    with store.snapshot(max_age_s=_LONGEST_S) as then:
        ids = then.ids(filters=filters)[::-1]
        folder.mkdir()
        try:
            return _export(store, then, ids, folder, step)
        except BaseException:
            for name in (RECORDS, TENSORS, NOTE):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
            raise


def _export(store: Store, then: StoreSnapshot, ids: list[str], folder: Path, step: Step) -> Exported:
    options = options_of(store)
    lost: list[StoreCorrupt] = []
    entries: list[Entry] = []
    with_vector: list[str] = []
    with_tensors: list[str] = []
    count = 0
    with open(folder / RECORDS, "w", encoding="utf-8") as file:
        for each in step(ids, len(ids)):
            try:
                record = then.get(each)
            except StoreCorrupt as error:
                lost.append(error)
                continue
            if record is None:
                continue  # its time was over
            count += 1
            line = {name: value for name in _FIELDS if (value := getattr(record, name)) is not None}
            if record.vector is not None:
                line["vector"] = len(with_vector)
                with_vector.append(each)
            if record.tensors:
                line["tensors"] = {name: f"{count}/{name}" for name in record.tensors}
                with_tensors.append(each)
                entries += (Entry(f"{count}/{name}", *_form_of(tensor)) for name, tensor in record.tensors.items())
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    if with_vector:
        entries.insert(0, Entry(VECTORS, resolve(options.dtype), (len(with_vector), options.dim or 0)))
    number = secrets.token_hex(16)
    names = [*with_vector, *with_tensors]
    arrays = _arrays(then, iter(step(names, len(names))), len(with_vector))
    write_tensors(folder / TENSORS, entries, {EXPORT: number}, arrays)
    note = msgspec.json.format(msgspec.json.encode(Note(number, count, options)))
    (folder / NOTE).write_bytes(note + b"\n")
    return Exported(count, lost)


def _form_of(tensor: Any) -> tuple[Any, tuple[int, ...]]:
    dtype, array = to_array(tensor)
    return dtype, array.shape


def _arrays(then: StoreSnapshot, names: Iterator[str], vectors: int) -> Iterator[np.ndarray[Any, Any]]:
    """The vectors of the first records, then the tensors of the others."""
    for number, each in enumerate(names):
        record = then.get(each)
        assert record is not None  # a moment does not change
        yield from [record.vector] if number < vectors else record.tensors.values()  # type: ignore[misc]
