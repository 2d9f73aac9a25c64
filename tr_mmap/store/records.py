"""What a store keeps and hands out: records, hits, pages, events. Opens nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

if TYPE_CHECKING:
    from .slabs import Slab

__all__ = ["FIELDS", "SCOPES", "Event", "Hit", "Page", "Part", "Record", "Stats", "decode_record"]

SCOPES: Final = ("user_id", "agent_id", "run_id")
FIELDS: Final = ("content", *SCOPES, "metadata", "importance")  # given by the user, and stored unchanged


class Part(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where one tensor of a record lies.

    Attributes:
        name: of the tensor.
        file: in the store's folder of tensors.
        dtype: its name; "" if the file holds nothing but this tensor.
        shape: its sizes.
        offset: bytes from the beginning of the file's payload.
    """

    name: str
    file: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    offset: int = 0


class Record(msgspec.Struct, array_like=True, dict=True):
    """One record, as it was when it was read.

    Attributes:
        id: the id.
        version: 1 for a new record, or above the versions of a deleted record with that id; one more with each update.
        content: its text, or None.
        user_id: whose it is, or None.
        agent_id: which agent's, or None.
        run_id: which run's, or None.
        metadata: JSON values by name.
        importance: 0 to 1; the lowest is evicted first.
        created_at: seconds since 1970.
        updated_at: seconds since 1970.
        expires_at: seconds since 1970, or None; from then on no method shows the record.
    """

    id: str
    version: int
    content: str | None
    user_id: str | None
    agent_id: str | None
    run_id: str | None
    metadata: dict[str, Any]
    importance: float
    created_at: float
    updated_at: float
    expires_at: float | None
    _number: int = 0
    """Number in the order of creation."""
    _row: int = 0
    """Row in the store's vectors; the record gets another one with each new vector."""
    _has_vector: bool = False
    _parts: list[Part] = []
    _nbytes: int = 0
    """Bytes that it counts for in the budget."""

    @property
    def vector(self) -> np.ndarray[Any, Any] | None:
        """The vector, of shape ``(dim,)``, read-only, in the store's own memory; None if the record has none."""
        slab: Slab | None = self.__dict__.get("slab")
        return None if slab is None or not self._has_vector else slab.vector(self._row)

    @property
    def tensors(self) -> dict[str, Any]:
        """The tensors by name, in the store's own memory: read-only arrays; or torch tensors, by its ``framework``."""
        found: dict[str, Any] | None = self.__dict__.get("tensors_of")
        return {} if found is None else found

    def is_expired(self, now_s: float) -> bool:
        """Whether it had expired at that moment."""
        return self.expires_at is not None and self.expires_at <= now_s

    def __repr__(self) -> str:
        shown = (self.content or "").replace("\n", " ")
        return f"<Record {self.id!r}, version {self.version}: {shown[:60]!r}>"


decode_record: Final = msgspec.msgpack.Decoder(Record).decode


class Hit(NamedTuple):
    """One result of a search.

    Attributes:
        record: what was found.
        score: the higher, the better: a cosine, a dot product, the negative distance, or BM25's sum.
        distance: the smaller, the better; None for a search of texts.
    """

    record: Record
    score: float
    distance: float | None


class Page(list[Record]):
    """Records, newest first.

    Attributes:
        cursor: for the next page, to be given to ``get_all``; None if this is the last one.
    """

    def __init__(self, records: list[Record], cursor: str | None = None) -> None:
        super().__init__(records)
        self.cursor = cursor


class Event(msgspec.Struct, array_like=True, frozen=True):
    """One change of a record.

    Attributes:
        event: ``"add"`` or ``"update"``; or why the record is gone: ``"delete"``, ``"expire"``, ``"evict"``, or
            ``"lost"`` (its files were not on the disk after a power cut).
        version: of the record after it; if the record is gone, one more than its last version.
        at: seconds since 1970.
        content: the text after it; None if there is none, or the record is gone.
        metadata: after it.
        importance: after it.
    """

    event: str
    version: int
    at: float
    content: str | None = None
    metadata: dict[str, Any] = {}
    importance: float = 0.0
    _user_id: str | None = None
    """The user whose record it was."""


class Stats(msgspec.Struct, frozen=True):
    """What a store holds.

    Attributes:
        records: how many there are, with the expired ones that no commit has removed yet.
        vectors: how many of them have a vector.
        epoch: how many commits there were.
        nbytes: bytes that the records count for in the budget.
        budget_nbytes: the budget; None for no limit.
        disk_nbytes: bytes that all files of the store take.
        dead_rows: rows of vectors that no record uses.
        slabs: how many files of vectors there are.
        readers: snapshots that are open now, in all processes.
    """

    records: int
    vectors: int
    epoch: int
    nbytes: int
    budget_nbytes: int | None
    disk_nbytes: int
    dead_rows: int
    slabs: int
    readers: int
