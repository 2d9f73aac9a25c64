"""Rows of vectors in slabs: written at once, found again, and right for whoever still looks at an earlier moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tr_mmap.store import RecordExists, Store

DIM = 8


def vector_of(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).standard_normal(DIM).astype(np.float32)


def several(numbers: range, every: int = 1) -> list[dict[str, Any]]:
    """Records; each so many have no vector."""
    return [
        {"id": str(number), "vector": None if every > 1 and number % every == 0 else vector_of(number)}
        for number in numbers
    ]


@pytest.mark.each_value
@pytest.mark.parametrize("sizes", [(1,), (1024, 1), (1023, 2), (1000, 3000), (5000,), (7, 1, 1030, 2)])
@pytest.mark.parametrize("every", [1, 3])
def test_each_record_has_its_own_vector_however_many_come_at_once(
    root: Path, sizes: tuple[int, ...], every: int
) -> None:
    with Store("rows", root) as store:
        start = 0
        for size in sizes:
            store.add_many(several(range(start, start + size), every))
            start += size
        for number in range(start):
            record = store.get(str(number))
            assert record is not None
            if every > 1 and number % every == 0:
                assert record.vector is None
            else:
                assert record.vector is not None
                assert record.vector.tobytes() == vector_of(number).tobytes()
                if number % 97 == 0:
                    assert store.search(record.vector, limit=1)[0].record.id == str(number)
        assert store.check() == []


def test_a_refused_commit_leaves_the_rows_before_it_as_they_were(root: Path) -> None:
    with Store("rows", root) as store:
        store.add_many(several(range(10)))
        with pytest.raises(RecordExists):
            store.add_many([*several(range(100, 1200)), *several(range(5, 6))])
        store.add_many(several(range(10, 1500)))
        for number in range(1500):
            record = store.get(str(number))
            assert record is not None
            assert record.vector is not None
            assert record.vector.tobytes() == vector_of(number).tobytes()
        assert store.check() == []


def test_two_handles_fill_the_same_slabs_in_turns(root: Path) -> None:
    with Store("rows", root, dim=DIM) as one, Store("rows", root) as other:
        for start in range(0, 2400, 100):
            (one, other)[start // 100 % 2].add_many(several(range(start, start + 100)))
        for store in (one, other):
            for number in range(2400):
                record = store.get(str(number))
                assert record is not None
                assert record.vector is not None
                assert record.vector.tobytes() == vector_of(number).tobytes()


@pytest.mark.parametrize("kept", [0, 1, 300])
def test_a_snapshot_shows_the_vectors_of_its_moment_after_a_compaction(root: Path, kept: int) -> None:
    with Store("rows", root) as store:
        store.add_many(several(range(1100)))
        with store.snapshot() as then:
            for number in range(kept, 1100):
                store.delete(str(number))
            assert store.compact() > 0
            store.search(vector_of(1))  # this process has the smaller slabs open now
            for number in (*range(0, 1100, 50), 1099):
                record = then.get(str(number))
                assert record is not None
                assert record.vector is not None
                assert record.vector.tobytes() == vector_of(number).tobytes()
                now = store.get(str(number))
                assert (now is None) is (number >= kept)
                if now is not None:
                    assert now.vector is not None
                    assert now.vector.tobytes() == vector_of(number).tobytes()
        assert store.check() == []
