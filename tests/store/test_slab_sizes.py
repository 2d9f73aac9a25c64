"""A store takes the memory that its vectors need: not that of records without one, nor of those that are gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tr_mmap.store import Store, core
from tr_mmap.store.upkeep import Upkeep

DIM = 384
ROW_NBYTES = DIM * 4


def vectors_nbytes(root: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (root / "tr_store_shared" / "vec").iterdir())


def test_texts_take_no_rows_of_vectors(root: Path) -> None:
    with Store("shared", root, dim=DIM) as store:
        store.add_many({"content": f"text {number}"} for number in range(3000))
        assert vectors_nbytes(root) == 0
        store.add("with one", vector=np.ones(DIM))
        one = vectors_nbytes(root)
        assert one < 1100 * ROW_NBYTES
        for _ in range(3):
            store.add_many({"content": f"text {number}"} for number in range(3000))
            store.add("with one", vector=np.ones(DIM))
        assert vectors_nbytes(root) == one
        assert store.stats().slabs == 1
        assert len(store.search(np.ones(DIM), limit=9)) == 4
        assert store.check() == []


def test_the_memory_of_vectors_that_are_gone_is_freed(root: Path) -> None:
    with Store("shared", root) as store:
        for start in range(0, 5000, 500):
            store.add_many({"id": f"r{start + number}", "vector": np.ones(DIM) * (number + 1)} for number in range(500))
        store.clear()
        assert store.compact() == 5000
        assert vectors_nbytes(root) == 0
        store.add("one", vector=np.ones(DIM))
        assert vectors_nbytes(root) < 1100 * ROW_NBYTES  # as in the beginning
        assert store.check() == []


def test_who_has_a_slab_mapped_that_is_gone_finds_new_vectors_in_the_new_one(root: Path) -> None:
    with Store("shared", root) as one, Store("shared", root) as other:
        ids = one.add_many({"vector": np.ones(8)} for _ in range(10))
        assert other.get(ids[0]).vector is not None
        for each in ids:
            one.delete(each)
        assert one.compact() == 10
        one.add(id="new", vector=np.arange(8))
        for store in (other, one):
            assert np.array_equal(store.get("new").vector, np.arange(8))
            assert np.array_equal(store.search(np.ones(8))[0].record.vector, np.arange(8))
            assert store.check() == []


def test_rows_that_come_while_their_slab_is_looked_at_stay(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store("shared", root) as store:
        for each in store.add_many({"vector": np.ones(8)} for _ in range(10)):
            store.delete(each)
        original, added = Upkeep.compact, []

        def compact(self: Upkeep, files: Any, live: Any, write: Any) -> int:
            def late(change: Any) -> Any:
                added.append(store.add(id="late", vector=np.arange(8)))
                return write(change)

            return original(self, files, live, late)

        monkeypatch.setattr(Upkeep, "compact", compact)
        assert store.compact() == 0
        assert added
        monkeypatch.undo()
        assert np.array_equal(store.get("late").vector, np.arange(8))
        assert store.check() == []


def test_filters_find_records_with_and_without_vectors(root: Path) -> None:
    with Store("shared", root, indexed=("kind",)) as store:
        store.add_many(
            {
                "id": f"r{n}",
                "content": "words",
                "vector": np.ones(8) * n if n % 3 else None,
                "metadata": {"kind": n % 2},
            }
            for n in range(1, 60)
        )
        for kind in (0, 1):
            wanted = {f"r{n}" for n in range(1, 60) if n % 2 == kind}
            near = {hit.record.id for hit in store.search(np.ones(8), limit=99, filters={"kind": kind})}
            assert near == {f"r{n}" for n in range(1, 60) if n % 2 == kind and n % 3}
            assert {record.id for record in store.get_all(filters={"kind": kind})} == wanted
            assert {hit.record.id for hit in store.search("words", limit=99, filters={"kind": kind})} == wanted
        for n in (3, 4):
            store.update(f"r{n}", vector=np.ones(8) if n == 3 else None)
        assert store.get("r3").vector is not None
        assert store.get("r4").vector is None
        assert store.check() == []


def test_slabs_grow_with_the_vectors(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "FIRST_ROWS", 8)
    with Store("shared", root, dim=4) as store:
        for number in range(1000):
            store.add(vector=np.ones(4) * number)
        assert store.stats().slabs == 8  # 8, 8, 16, 32, ... 512
        assert store.check() == []
