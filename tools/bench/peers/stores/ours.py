"""tr_mmap.store, through its public methods."""

from __future__ import annotations

from ..base import Array, missing
from .base import DIM, LIMIT, StorePeer, id_of, number_of, text_of

__all__ = ["Ours"]

_BATCH = 1000


class Ours(StorePeer):
    key = "ours"
    label = "tr_mmap.store"

    def unavailable(self) -> str | None:
        return missing("lmdb")

    def open(self, directory: str) -> None:
        from tr_mmap.store import Store

        self._store = Store("bench", directory, dim=DIM)

    def fill(self, vectors: Array) -> None:
        for start in range(0, len(vectors), _BATCH):
            self._store.add_many(
                {
                    "id": id_of(number),
                    "content": text_of(number),
                    "user_id": "user",
                    "metadata": {"n": number},
                    "vector": vectors[number],
                }
                for number in range(start, min(start + _BATCH, len(vectors)))
            )

    def get(self, number: int) -> Array | None:
        record = self._store.get(id_of(number))
        assert record is not None
        return record.vector

    def top(self, query: Array) -> list[int]:
        return [number_of(hit.record.id) for hit in self._store.search(query, limit=LIMIT)]

    def close(self) -> None:
        if hasattr(self, "_store"):
            self._store.close()
