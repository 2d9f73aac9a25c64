"""Databases of vectors that run in this process: chromadb, lancedb, qdrant's local mode, and mem0 on top of that."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..base import Array, missing
from .base import DIM, LIMIT, StorePeer, id_of, text_of

__all__ = ["Chroma", "Lance", "Mem0", "Qdrant"]

_BATCH = 1000


def _batches(vectors: Array) -> list[range]:
    return [range(start, min(start + _BATCH, len(vectors))) for start in range(0, len(vectors), _BATCH)]


class Chroma(StorePeer):
    key = "chroma"
    label = "chromadb, persistent client"
    has_top = False  # it is approximate
    most_records = 2000
    note = "its searches are approximate, so they are not compared"

    def unavailable(self) -> str | None:
        return missing("chromadb")

    def open(self, directory: str) -> None:
        import chromadb

        settings = chromadb.config.Settings(anonymized_telemetry=False)
        self._records = chromadb.PersistentClient(directory, settings).create_collection(
            "bench", embedding_function=None, metadata={"hnsw:space": "cosine"}
        )

    def fill(self, vectors: Array) -> None:
        for batch in _batches(vectors):
            self._records.add(
                ids=[id_of(number) for number in batch],
                embeddings=vectors[batch.start : batch.stop],
                documents=[text_of(number) for number in batch],
                metadatas=[{"n": number, "user": "user"} for number in batch],
            )

    def get(self, number: int) -> Array | None:
        found = self._records.get(ids=[id_of(number)], include=["embeddings", "documents", "metadatas"])
        return np.asarray(found["embeddings"][0])

    def close(self) -> None:
        pass


class Lance(StorePeer):
    key = "lance"
    label = "lancedb"
    note = "the ids have an index, the vectors none, so that its searches are exact"

    def unavailable(self) -> str | None:
        return missing("lancedb")

    def open(self, directory: str) -> None:
        import lancedb

        self._database = lancedb.connect(directory)

    def fill(self, vectors: Array) -> None:
        import pyarrow as pa

        self._table = self._database.create_table(
            "bench",
            pa.table(
                {
                    "id": [id_of(number) for number in range(len(vectors))],
                    "n": list(range(len(vectors))),
                    "content": [text_of(number) for number in range(len(vectors))],
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
                }
            ),
        )
        self._table.create_scalar_index("id")

    def get(self, number: int) -> Array | None:
        found = self._table.search().where(f"id = '{id_of(number)}'").limit(1).to_arrow()
        return np.asarray(found["vector"][0].values)

    def top(self, query: Array) -> list[int]:
        found = self._table.search(query).distance_type("cosine").limit(LIMIT).select(["n", "_distance"]).to_arrow()
        numbers: list[int] = found["n"].to_pylist()
        return numbers

    def close(self) -> None:
        pass


class Qdrant(StorePeer):
    key = "qdrant"
    label = "qdrant, local mode"
    most_records = 20_000
    note = "in the memory of its process; it names records by numbers"

    def unavailable(self) -> str | None:
        return missing("qdrant_client")

    def open(self, directory: str) -> None:  # noqa: ARG002 - the interface
        from qdrant_client import QdrantClient, models

        self._client = QdrantClient(":memory:")
        self._client.create_collection(
            "bench", vectors_config=models.VectorParams(size=DIM, distance=models.Distance.COSINE)
        )

    def fill(self, vectors: Array) -> None:
        from qdrant_client import models

        for batch in _batches(vectors):
            self._client.upsert(
                "bench",
                models.Batch(
                    ids=list(batch),
                    vectors=vectors[batch.start : batch.stop].tolist(),
                    payloads=[{"content": text_of(number), "user": "user", "n": number} for number in batch],
                ),
            )

    def get(self, number: int) -> Array | None:
        (found,) = self._client.retrieve("bench", ids=[number], with_payload=True, with_vectors=True)
        return np.asarray(found.vector, np.float32)

    def top(self, query: Array) -> list[int]:
        found = self._client.query_points("bench", query=query, limit=LIMIT, with_payload=False)
        return [int(point.id) for point in found.points]

    def close(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()


class Mem0(StorePeer):
    key = "mem0"
    label = "mem0, infer=False"
    has_top = False
    most_records = 200
    note = "on qdrant's local mode, with vectors from here; it gives a record's text and metadata, and no vector"

    def unavailable(self) -> str | None:
        return missing("mem0", "qdrant_client")

    def open(self, directory: str) -> None:
        os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": directory, "OPENAI_API_KEY": "none"}
        from mem0 import Memory

        self._memory: Any = Memory.from_config(
            {
                "vector_store": {
                    "provider": "qdrant",
                    "config": {"path": os.path.join(directory, "q"), "embedding_model_dims": DIM, "on_disk": True},
                },
                "history_db_path": os.path.join(directory, "history.db"),
            }
        )
        self._vector: Array = np.zeros(DIM, np.float32)
        self._memory.embedding_model = self
        self._ids: list[str] = []

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:  # noqa: ARG002 - mem0's interface
        return self._vector.tolist()

    def fill(self, vectors: Array) -> None:
        for number, vector in enumerate(vectors):
            self._vector = vector
            added = self._memory.add(text_of(number), user_id="user", metadata={"n": number}, infer=False)
            self._ids.append(added["results"][0]["id"])

    def get(self, number: int) -> Array | None:
        if self._memory.get(self._ids[number])["memory"] != text_of(number):
            raise ValueError("the text is not what was added")
        return None

    def close(self) -> None:
        pass
