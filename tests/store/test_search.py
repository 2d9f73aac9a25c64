"""A search finds what a plain loop over all records finds, whatever the kind of numbers, the metric and the filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tr_mmap import BadMessage
from tr_mmap.store import Record, Store, WrongShape
from tr_mmap.store.filters import parse
from tr_mmap.store.options import _NO_NUMBERS
from tr_mmap.tsr.dtypes import TABLE

KINDS = [each.name for each in TABLE if each.name not in {*_NO_NUMBERS, "float8_e8m0fnu"}]
METRICS = ("cosine", "dot", "l2")


def distance(metric: str, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric == "l2":
        return float(np.linalg.norm(a - b))
    if metric == "dot":
        return float(-(a @ b))
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(1 - (a @ b) / lengths) if lengths else 1.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_are_those_of_a_plain_loop(root: Path, kind: str, metric: str) -> None:
    random = np.random.default_rng(1)
    with Store("kinds", root, dtype=kind, metric=metric, indexed=("third",)) as store:
        rows = random.integers(0 if kind.startswith("u") else -8, 8, (1200, 16)).astype(np.float32)
        ids = store.add_many({"vector": row, "metadata": {"third": n % 3}} for n, row in enumerate(rows))
        for gone in ids[100:700:7]:
            store.delete(gone)
        query = random.integers(0, 8, 16).astype(np.float32)
        records = [(distance(metric, each.vector, query), each) for each in reversed(store.get_all())]
        for filters in (None, {"third": 1}, {"third": {"gt": 5}}, {"NOT": {"third": 0}}):
            wanted = sorted(
                (far, n)
                for n, (far, record) in enumerate(records)
                if filters is None or parse(filters, {}).test(record)
            )[:20]
            found = store.search(query, limit=20, filters=filters)
            assert [hit.distance for hit in found] == pytest.approx([each for each, _ in wanted], abs=1e-9)
            assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
            for hit in found:
                assert hit.distance == pytest.approx(distance(metric, hit.record.vector, query), abs=1e-9)


def test_a_search_after_a_compaction_finds_the_same(store: Store) -> None:
    random = np.random.default_rng(2)
    ids = store.add_many(
        {"vector": row, "content": "x", "metadata": {"kind": n % 2}} for n, row in enumerate(random.random((5000, 8)))
    )
    for n, each in enumerate(ids):
        if n % 3:
            store.delete(each)
    queries = random.random((5, 8))

    def found() -> list[list[tuple[str, float]]]:
        return [
            [(hit.record.id, hit.score) for hit in store.search(query, limit=50, filters=filters)]
            for query in queries
            for filters in (None, {"kind": 1})
        ]

    before = found()
    assert store.compact() > 0
    for old, new in zip(before, found(), strict=True):
        assert [each for each, _ in old] == [each for each, _ in new]
        assert [score for _, score in old] == pytest.approx([score for _, score in new])
    assert np.array_equal(store.get(ids[0]).vector, store.search(store.get(ids[0]).vector)[0].record.vector)
    assert store.check() == []


def test_a_threshold_leaves_out_what_is_worse(store: Store) -> None:
    store.add_many({"vector": np.float32([np.cos(angle), np.sin(angle)])} for angle in np.linspace(0, 3, 50))
    found = store.search([1, 0], threshold=0.5, limit=100)
    assert 0 < len(found) < 50
    assert all(hit.score >= 0.5 for hit in found)


def test_a_search_in_a_store_without_records_finds_nothing(store: Store) -> None:
    assert store.search("words") == []
    assert store.search(np.ones(5)) == []
    store.add("no vector")
    assert store.search(np.ones(5)) == []


def test_wrong_questions_are_told_apart(store: Store) -> None:
    store.add("x", vector=np.ones(4))
    with pytest.raises(WrongShape) as caught:
        store.search(np.ones(5))
    assert (caught.value.expected, caught.value.found) == (4, (5,))
    for wrong in (
        {"limit": 0},
        {"limit": 2.5},
        {"limit": None},
        {"mode": "ann"},
        {"filters": [1]},
        {"filters": {"a": {"like": 3}}},
        {"threshold": "0.5"},
        {"user_id": 3},
    ):
        with pytest.raises(BadMessage):
            store.search(np.ones(4), **wrong)
    for wrong in ({"limit": 0}, {"cursor": "x"}, {"cursor": "²"}, {"cursor": "9" * 400}, {"run_id": b"x"}):
        with pytest.raises(BadMessage):
            store.get_all(**wrong)
    with pytest.raises(BadMessage, match="if_version"):
        store.update("x", content="y", if_version="1")
    with store.snapshot() as then, pytest.raises(BadMessage):
        then.search("x", limit=None)
    with store.snapshot() as then, pytest.raises(BadMessage):
        then.get_all(limit=0)
    with pytest.raises(BadMessage, match="needs a text"):
        store.search(np.ones(4), mode="text")


# -- filters ----------------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([2**53, 2**53 + 1, -(2**60), 0.5, -0.0, 1e300, "", "a", "ab", "é", "x" * 300, "x" * 301]),
)
VALUES_OR_LISTS = st.one_of(
    VALUES, st.lists(VALUES, max_size=3), st.dictionaries(st.sampled_from(["a", "ab"]), VALUES, max_size=2)
)
COMPARED = VALUES.filter(lambda value: value is not None and not isinstance(value, bool))
FIELDS = st.sampled_from(["kind", "size", "free", "user_id"])
TESTS = st.one_of(
    VALUES,
    st.builds(lambda name, value: {name: value}, st.sampled_from(["eq", "ne", "contains"]), VALUES_OR_LISTS),
    st.builds(lambda name, value: {name: value}, st.sampled_from(["gt", "gte", "lt", "lte"]), COMPARED),
    st.builds(lambda name, value: {name: value}, st.sampled_from(["in", "nin"]), st.lists(VALUES, max_size=3)),
)
FILTERS = st.recursive(
    st.dictionaries(FIELDS, TESTS, min_size=1, max_size=2),
    lambda inner: st.one_of(
        st.builds(lambda several: {"AND": several}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda several: {"OR": several}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda one: {"NOT": one}, inner),
    ),
    max_leaves=5,
)
METADATA = st.dictionaries(
    st.sampled_from(["kind", "size", "free"]), st.one_of(VALUES_OR_LISTS, st.just([[1], [True]])), max_size=3
)


@settings(max_examples=60, deadline=None)
@given(several=st.lists(METADATA, max_size=8), filters=FILTERS)
def test_the_index_of_fields_never_changes_what_a_filter_means(
    several: list[dict[str, Any]], filters: dict[str, Any]
) -> None:
    import shutil
    import tempfile

    root = tempfile.mkdtemp(prefix="tr_test_store_", dir="/dev/shm")
    try:
        with Store("filters", root, indexed=("kind", "size")) as store:
            store.add_many({"metadata": each, "vector": [1, n], "content": "w"} for n, each in enumerate(several))
            wanted = parse(filters, {})
            expected = [each.id for each in store.get_all() if wanted is None or wanted.test(each)]
            assert [each.id for each in store.get_all(filters=filters)] == expected
            assert {hit.record.id for hit in store.search([1, 0], filters=filters, limit=50)} == set(expected)
            assert {hit.record.id for hit in store.search("w", filters=filters, limit=50)} == set(expected)
            assert store.clear(filters=filters) == len(expected)
            assert store.check() == []
    finally:
        shutil.rmtree(root)


def test_what_a_comparison_means_is_what_the_values_mean() -> None:
    def holds(value: Any, test: Any) -> bool:
        record = Record("x", 1, None, None, None, None, {"f": value}, 0.5, 0.0, 0.0, None)
        found = parse({"f": test}, {})
        return found is not None and found.test(record)

    assert holds(1, 1.0)
    assert not holds(1, True)
    assert not holds("3", {"gt": 2})
    assert holds([1, 2], {"contains": 2})
    assert holds("hello", {"contains": "ell"})
    assert holds(None, {"ne": 3})
    assert holds(None, None)
    assert holds(5, {"gte": 3, "lt": 9})
    assert not holds(9, {"gte": 3, "lt": 9})
