"""A store keeps to its budget, counts all that it keeps, and takes from nobody who is not of the handle's scope."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tr_mmap import OutOfSpace
from tr_mmap.store import RecordExists, Store, budget

EACH = 512  # what a record counts for beside its bytes; and a few more for these


def ids_of(store: Store, **options: Any) -> list[str]:
    return [record.id for record in reversed(store.get_all(**options))]


@pytest.fixture
def full(root: Path) -> Iterator[Store]:
    """A store that evicts, with two users' records, and room for no more."""
    with Store("full", root, at_budget="evict") as store:
        for number in range(4):
            store.add(id=f"a{number}", user_id="ann", importance=0.1)
            store.add(id=f"b{number}", user_id="bob", importance=0.5 + number / 10)
        store.add(id="nobody's", importance=0)
        store._options.budget_nbytes = store.stats().nbytes + EACH // 2
        yield store
        assert store.check() == []


def test_a_handle_with_a_scope_evicts_records_of_its_own_scope_only(full: Store) -> None:
    with full.clone(scope="bob") as bob:
        for number in range(10):
            bob.add(id=f"new{number}", importance=0.9)
        assert ids_of(bob) == [f"new{number}" for number in range(6, 10)]
        assert ids_of(full, user_id="ann") == ["a0", "a1", "a2", "a3"]
        assert full.get("nobody's") is not None
        bob.update("new9", metadata={"more": "x" * EACH})
        assert ids_of(bob) == ["new7", "new8", "new9"]
        assert full.stats().records == 8
    full.add(id="of all", user_id="bob", importance=1, metadata={"more": "x" * 2 * EACH})  # a handle without a scope
    assert full.get("nobody's") is None
    assert ids_of(full, user_id="bob") == ["new7", "new8", "new9", "of all"]


@pytest.mark.parametrize("user", ["cid", "bob"])
def test_a_handle_whose_scope_has_too_little_to_evict_is_refused_and_changes_nothing(full: Store, user: str) -> None:
    before, epoch = ids_of(full), full.stats().epoch
    with full.clone(scope=user) as handle:
        with pytest.raises(OutOfSpace, match=f"the user '{user}' only") as caught:
            handle.add(id="new", tensors={"t": np.zeros(10 * EACH, np.uint8)})
        assert caught.value.needed_nbytes > 0
    assert (ids_of(full), full.stats().epoch) == (before, epoch)


def test_users_whose_names_are_long_or_strange_have_an_order_of_eviction_each(root: Path) -> None:
    names = ["", "é" * 2000, "é" * 2000 + "2", "a\0b", "a"]
    with Store("names", root, at_budget="evict") as store:
        for name in names:
            store.add_many([{"id": f"{names.index(name)}-{number}", "user_id": name} for number in range(3)])
        store._options.budget_nbytes = store.stats().nbytes
        for name in filter(None, names):
            with store.clone(scope=name) as handle:
                handle.add(id=f"{names.index(name)}-new")
                assert ids_of(handle) == [f"{names.index(name)}-{last}" for last in (1, 2, "new")]
        assert store.stats().records == 15
        assert store.check() == []


def test_an_id_is_the_store_s_and_a_scope_is_told_so_if_it_is_taken(full: Store) -> None:
    with full.clone(scope="bob") as bob:
        with pytest.raises(RecordExists):
            bob.add(id="a0")
        assert bob.get("a0") is None


def test_a_commit_at_the_budget_reads_only_what_it_evicts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, read = budget.least_worth, []

    def least_worth(*arguments: Any) -> Iterator[bytes]:
        for record_id in original(*arguments):
            read.append(record_id)
            yield record_id

    monkeypatch.setattr(budget, "least_worth", least_worth)
    with Store("large", root, at_budget="evict") as store:
        store.add_many([{"id": f"{number:03}"} for number in range(500)])
        store._options.budget_nbytes = store.stats().nbytes
        store.add(id="500")
        assert read == [b"000"]
        store.add_many([{"id": f"{number}", "importance": 0} for number in range(501, 504)])
        assert read[1:] == [b"501", b"502", b"503", b"001", b"002", b"003"]
        assert store.stats().records == 500


FIELDS: dict[str, dict[str, Any]] = {
    "content": {"content": "x" * 10_000},
    "letters of several bytes": {"content": "é" * 5_000},
    "metadata": {"metadata": {"x": "y" * 10_000}},
    "many metadata": {"metadata": {f"{number:05}": number for number in range(1100)}},
    "user_id": {"user_id": "u" * 10_000},
    "run_id": {"run_id": "r" * 10_000},
    "vector": {"vector": np.ones(2_500, np.float32)},
    "tensors": {"tensors": {"t": np.zeros(10_000, np.uint8)}},
}


@pytest.mark.parametrize("field", FIELDS)
def test_all_that_a_record_keeps_counts_in_its_bytes(root: Path, field: str) -> None:
    with Store("counts", root, dim=2500, budget_nbytes=15_000) as store:
        record_id = store.add(**FIELDS[field])
        assert 10_000 <= store.stats().nbytes <= 12_000 + EACH
        with pytest.raises(OutOfSpace):
            store.add(**FIELDS[field])
        store.update(record_id, importance=0.1)
        assert 10_000 <= store.stats().nbytes <= 12_000 + EACH
        if field not in ("user_id", "run_id"):
            (name,) = FIELDS[field]
            store.update(record_id, **{name: None})
            assert store.stats().nbytes <= 2 * EACH
        assert store.check() == []
        store.delete(record_id)
        assert store.stats().nbytes == 0
