"""sqlite-vec: vectors in a virtual table of SQLite, and the records in another table beside it."""

from __future__ import annotations

import json
import os
import sqlite3
from typing import Any

import numpy as np

from ..base import Array, missing
from .base import DIM, LIMIT, StorePeer, id_of, text_of

__all__ = ["SqliteVec"]


def _module() -> Any:
    """A sqlite3 that loads extensions: many builds of Python have one that does not."""
    if hasattr(sqlite3.Connection, "enable_load_extension"):
        return sqlite3
    import pysqlite3

    return pysqlite3


class SqliteVec(StorePeer):
    key = "sqlite-vec"
    label = "SQLite with sqlite-vec"

    def unavailable(self) -> str | None:
        if not hasattr(sqlite3.Connection, "enable_load_extension") and missing("pysqlite3") is not None:
            return "this Python's sqlite3 loads no extensions, and pysqlite3-binary is not installed"
        return missing("sqlite_vec")

    def open(self, directory: str) -> None:
        import sqlite_vec

        self._database: Any = _module().connect(os.path.join(directory, "bench.db"))
        self._database.enable_load_extension(True)
        sqlite_vec.load(self._database)
        self._database.execute("pragma journal_mode = wal")
        self._database.execute("pragma synchronous = off")
        self._database.execute(
            "create table records (n integer primary key, id text unique, content, user, metadata, v blob)"
        )
        self._database.execute(
            f"create virtual table near using vec0(n integer primary key, v float[{DIM}] distance_metric=cosine)"
        )

    def fill(self, vectors: Array) -> None:
        with self._database:
            self._database.executemany(
                "insert into records values (?, ?, ?, ?, ?, ?)",
                (
                    (number, id_of(number), text_of(number), "user", json.dumps({"n": number}), vector.tobytes())
                    for number, vector in enumerate(vectors)
                ),
            )
            self._database.executemany(
                "insert into near values (?, ?)", ((number, vector.tobytes()) for number, vector in enumerate(vectors))
            )

    def get(self, number: int) -> Array | None:
        found = self._database.execute(
            "select id, content, user, metadata, v from records where id = ?", (id_of(number),)
        ).fetchone()
        json.loads(found[3])
        return np.frombuffer(found[4], np.float32)

    def top(self, query: Array) -> list[int]:
        found = self._database.execute("select n from near where v match ? and k = ?", (query.tobytes(), LIMIT))
        return [number for (number,) in found]

    def close(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()
