"""The parts that a store is made of, with nothing around them: lmdb with msgspec, numpy, faiss."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from ..base import Array, missing
from .base import LIMIT, StorePeer, id_of, text_of

__all__ = ["BareFaiss", "BareLmdb", "BareNumpy"]

_BATCH = 1000
_MAP_NBYTES = 1 << 34


class _Row(msgspec.Struct, array_like=True):
    id: str
    content: str
    user_id: str
    metadata: dict[str, Any]
    vector: bytes


class BareLmdb(StorePeer):
    """One value of msgpack for each record; a read is a transaction, a look-up, and the decoding."""

    key = "lmdb"
    label = "bare lmdb + msgspec"
    has_top = False
    note = "a record is one value that msgspec decodes: no filters, times to live, versions or searches"

    def unavailable(self) -> str | None:
        return missing("lmdb")

    def open(self, directory: str) -> None:
        import lmdb

        self._environment = lmdb.open(
            directory, map_size=_MAP_NBYTES, sync=False, metasync=False, readahead=False, max_spare_txns=8
        )
        self._decode = msgspec.msgpack.Decoder(_Row).decode

    def fill(self, vectors: Array) -> None:
        encode = msgspec.msgpack.Encoder().encode
        for start in range(0, len(vectors), _BATCH):
            with self._environment.begin(write=True) as transaction:
                for number in range(start, min(start + _BATCH, len(vectors))):
                    row = _Row(id_of(number), text_of(number), "user", {"n": number}, vectors[number].tobytes())
                    transaction.put(row.id.encode(), encode(row))

    def get(self, number: int) -> Array | None:
        with self._environment.begin() as transaction:
            raw = transaction.get(id_of(number).encode())
        return np.frombuffer(self._decode(raw).vector, np.float32)

    def close(self) -> None:
        if hasattr(self, "_environment"):
            self._environment.close()


class BareNumpy(StorePeer):
    """A matrix in this process: the product, and the best of it."""

    key = "numpy"
    label = "bare numpy"
    has_get = False
    note = "it gives numbers and scores, and no records"

    def open(self, directory: str) -> None:
        pass

    def fill(self, vectors: Array) -> None:
        self._vectors = np.array(vectors)

    def top(self, query: Array) -> list[int]:
        scores = self._vectors @ query
        best = np.argpartition(scores, scores.size - LIMIT)[scores.size - LIMIT :]
        found: list[int] = best[np.argsort(-scores[best])].tolist()
        return found

    def close(self) -> None:
        pass


class BareFaiss(StorePeer):
    key = "faiss"
    label = "bare faiss, IndexFlatIP"
    has_get = False
    note = "it gives numbers and scores, and no records"

    def unavailable(self) -> str | None:
        return missing("faiss")

    def open(self, directory: str) -> None:
        pass

    def fill(self, vectors: Array) -> None:
        import faiss

        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors))

    def top(self, query: Array) -> list[int]:
        found: list[int] = self._index.search(query[np.newaxis], LIMIT)[1][0].tolist()
        return found

    def close(self) -> None:
        pass
