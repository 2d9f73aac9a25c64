"""Exact search is exact: it finds what exact arithmetic finds, wherever the vectors lie and however long they are.

Some tests compare with fractions, which do not round. Others ask for all records at once, so that a search compares all
of them in float64 and can leave out none, and look whether a search for a few finds the first of these.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tr_mmap.store import Hit, Store
from tr_mmap.store.closeness import METRICS, Closeness, lengths_of
from tr_mmap.store.options import _NO_NUMBERS
from tr_mmap.store.products import products
from tr_mmap.tsr.dtypes import TABLE, by_name

Array = np.ndarray[Any, Any]

KINDS = [each.name for each in TABLE if each.name not in {*_NO_NUMBERS, "float8_e8m0fnu"}]
LARGE = {"float16": 4, "float32": 37, "float64": 306, "bfloat16": 37}  # powers of ten that a kind has
LIMITS = {"float16": 65e3, "float32": 3.3e38, "float64": 1.7e308, "bfloat16": 3.3e38}
SMALL = {"float16": -4, "float32": -42, "float64": -318, "bfloat16": -38}


def vectors_of(kind: str, values: Array) -> Array:
    """Numbers as a kind has them, none beyond its limits."""
    dtype = by_name(kind).numpy
    if kind.startswith(("int", "uint")):
        limits = np.iinfo(dtype)
        most = limits.max if limits.bits < 64 else 2**62
        return np.clip(np.rint(values), max(limits.min, -(2**62)), most).astype(dtype)
    most = 440.0 if kind == "float8_e4m3fn" else 200.0 if kind.startswith("float8") else LIMITS[kind]
    return np.clip(values, -most, most).astype(dtype)


@st.composite
def cases(draw: st.DrawFn, most_dim: int) -> tuple[str, str, Array, Array]:
    """A kind, a metric, vectors of the kind and a query."""
    kind, metric = draw(st.sampled_from(KINDS)), draw(st.sampled_from(METRICS))
    dim, count = draw(st.integers(1, most_dim)), draw(st.integers(1, 100))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    power = draw(st.integers(SMALL.get(kind, 0), LARGE.get(kind, 2 if kind.endswith("8") else 4)))
    offset, spread = draw(st.sampled_from([0, 1, 10, 1e3, 1e6])), draw(st.sampled_from([1, 1e-2, 1e-4, 1e-8, 0]))
    centre = random.standard_normal(dim)
    with np.errstate(over="ignore", under="ignore"):
        values = (offset * centre + spread * random.standard_normal((count, dim))) * 10.0**power
        if draw(st.booleans()):  # lengths of all sizes
            values *= 10.0 ** random.integers(-9, 3, (count, 1))
        rows = vectors_of(kind, values)
        rows[random.random(count) < 0.1] = 0
        rows = rows[random.integers(0, count, count)]  # some are equal
        query = rows[0].astype(np.float64)
        query = query * draw(st.sampled_from([0, 1, 1, 1 + 1e-7, -1, 1e-200, 1e200]))
        query = query + draw(st.sampled_from([0, spread, 1])) * random.standard_normal(dim) * 10.0**power
    return kind, metric, rows, np.clip(np.nan_to_num(query), -1.7e308, 1.7e308)


def searched(kind: str, metric: str, rows: Array, query: Array, limit: int) -> tuple[list[Hit], list[Hit]]:
    """What a search for a few finds, and one for all."""
    root = tempfile.mkdtemp(prefix="tr_test_store_", dir="/dev/shm")
    try:
        with Store("exact", root, dtype=kind, metric=metric) as store:
            store.add_many({"vector": row, "id": str(number)} for number, row in enumerate(rows))
            assert store.check() == []
            return store.search(query, limit=limit), store.search(query, limit=len(rows))
    finally:
        shutil.rmtree(root)


def numbers_of(hits: list[Hit]) -> list[int]:
    return [int(hit.record.id) for hit in hits]


def exactly(numbers: Array) -> list[Fraction]:
    return [Fraction(each) for each in numbers.astype(np.float64).tolist()]


def product(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def root_of(value: Fraction) -> Fraction:
    """The square root of a fraction, to 200 bits."""
    scale = max(0, 200 - value.numerator.bit_length() + value.denominator.bit_length())
    scale += scale % 2
    return Fraction(math.isqrt((value.numerator << scale) // value.denominator), 1 << scale // 2)


def judged(metric: str, row: list[Fraction], query: list[Fraction]) -> tuple[Fraction, Fraction]:
    """The score of a vector, and how much float64 may be wrong about it."""
    unit = Fraction(4 * (len(row) + 8), 2**53)
    if metric == "l2":
        difference = [x - y for x, y in zip(row, query, strict=True)]
        distance = root_of(product(difference, difference))
        return -distance, distance * unit
    lengths = root_of(product(row, row)) * root_of(product(query, query))
    if metric == "dot":
        return product(row, query), lengths * unit
    return (product(row, query) / lengths if lengths else Fraction(0)), unit


@settings(max_examples=100, deadline=None)
@given(case=cases(most_dim=6), limit=st.integers(1, 20))
def test_a_search_finds_what_exact_arithmetic_finds(case: tuple[str, str, Array, Array], limit: int) -> None:
    kind, metric, rows, query = case
    hits, all_hits = searched(kind, metric, rows, query, limit)
    wanted = [judged(metric, exactly(row), exactly(query)) for row in rows]
    least = Fraction(1, 2**1000)  # where float64 ends
    assert len(hits) == min(limit, len(rows))
    for hit, number in zip(hits, numbers_of(hits), strict=True):
        score, error = wanted[number]
        assert math.isinf(hit.score) or abs(Fraction(hit.score) - score) <= error + least
    most = Fraction(sys.float_info.max)  # what is further away is equally far
    wanted = [(min(max(score, -most), most), error) for score, error in wanted]
    lowest, lowest_error = min((wanted[number] for number in numbers_of(hits)), key=lambda each: each[0])
    for number in set(range(len(rows))) - set(numbers_of(hits)):
        score, error = wanted[number]
        assert score <= lowest + error + lowest_error + least, "a nearer one was left out"
    assert numbers_of(hits) == numbers_of(all_hits)[:limit]


@settings(max_examples=40, deadline=None)
@given(case=cases(most_dim=800), limit=st.integers(1, 20))
def test_a_search_for_a_few_finds_the_first_of_all(case: tuple[str, str, Array, Array], limit: int) -> None:
    kind, metric, rows, query = case
    hits, all_hits = searched(kind, metric, rows, query, limit)
    assert numbers_of(hits) == numbers_of(all_hits)[:limit]
    assert [hit.score for hit in hits] == [hit.score for hit in all_hits][:limit]
    assert sorted(numbers_of(all_hits)) == list(range(len(rows)))
    order = [(-hit.score, number) for hit, number in zip(all_hits, numbers_of(all_hits), strict=True)]
    if metric != "dot":  # whose scores may end at infinity or 0 while what is compared does not
        assert order == sorted(order), "of equally near ones, the first that was stored comes first"


@settings(max_examples=150, deadline=None)
@given(case=cases(most_dim=3000))
def test_what_the_quick_bounds_put_in_order_is_in_that_order(case: tuple[str, str, Array, Array]) -> None:
    _, metric, rows, query = case
    closeness = Closeness(query, metric, rows.dtype)
    lower, upper = closeness.bounds(products([rows], closeness.query)[0], lengths_of(rows))
    keys = closeness.keys(rows)
    assert not np.isnan([lower, upper, keys]).any()
    assert (lower <= upper).all()
    assert not ((lower[:, np.newaxis] > upper) & (keys[:, np.newaxis] < keys)).any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int32", "int64"])
def test_the_nearest_of_many_far_from_the_origin_are_found(root: Path, kind: str, metric: str) -> None:
    random = np.random.default_rng(3)
    offset, spread = {"float16": (1e3, 20), "int32": (1e6, 2e3), "int64": (1e12, 2e3)}.get(kind, (1e3, 1))
    rows = vectors_of(kind, offset + spread * random.random((4_000, 3)))
    with Store("far", root, dtype=kind, metric=metric) as store:
        store.add_many({"vector": row, "id": str(number)} for number, row in enumerate(rows))
        for number in range(0, 4_000, 400):
            query = rows[number].astype(np.float64) + spread / 1e3
            wide = rows.astype(np.float64)
            if metric == "l2":
                wanted = -np.sqrt(((wide - query) ** 2).sum(axis=1))
            else:
                wanted = (wide * query).sum(axis=1)
                if metric == "cosine":
                    wanted /= np.linalg.norm(wide, axis=1) * np.linalg.norm(query)
            hits = store.search(query, limit=10)
            best = np.sort(wanted)[::-1][:10]
            np.testing.assert_allclose([hit.score for hit in hits], best, rtol=1e-14, atol=0)
            np.testing.assert_allclose(wanted[numbers_of(hits)], best, rtol=1e-14, atol=0)


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_the_nearest_of_nearly_equal_vectors_are_found(root: Path, kind: str, spread: float) -> None:
    random = np.random.default_rng(4)
    rows = (random.standard_normal(384) + spread * random.standard_normal((1000, 384))).astype(kind)
    with Store("near", root, dtype=kind) as store:
        store.add_many({"vector": row, "id": str(number)} for number, row in enumerate(rows))
        wide = rows.astype(np.longdouble)
        for query in wide[:5]:
            wanted = wide @ query / np.sqrt((wide * wide).sum(axis=1)) / np.sqrt(query @ query)
            best = set(np.argsort(-wanted)[:10].tolist())
            found = numbers_of(store.search(query.astype(np.float64), limit=10))
            lowest = min(wanted[number] for number in best)
            assert all(wanted[number] >= lowest - 1e-15 for number in found)
            assert spread < 1e-3 or set(found) == best


@pytest.mark.parametrize(
    ("kind", "large", "small"), [("float32", 1e25, 1e-25), ("float32", 3e38, 1e-44), ("float64", 1e300, 1e-300)]
)
def test_vectors_whose_squares_no_float_has_are_found(kind: str, large: float, small: float) -> None:
    rows = np.array([[large, 0], [0, large], [large, large], [small, 0], [0, 0]], kind)
    for metric, query, order in (
        ("l2", [0.9 * large, 0.6 * large], [2, 0, 1, 3, 4]),
        ("l2", [small, 0], [3, 4, 0, 1, 2]),
        ("cosine", [1e-300, 0], [0, 3, 2, 1, 4]),
        ("cosine", [0, 1e300], [1, 2, 0, 3, 4]),
        ("dot", [0, 1], [1, 2, 0, 3, 4]),
    ):
        hits, all_hits = searched(kind, metric, rows, np.array(query), 2)
        assert numbers_of(all_hits) == order
        assert numbers_of(hits) == numbers_of(all_hits)[:2]


def test_of_equally_near_vectors_those_stored_first_are_found(root: Path) -> None:
    with Store("equal", root) as store:
        store.add_many({"vector": [1, 0], "id": str(number)} for number in range(3000))
        store.update("0", vector=[1, 0])  # stored again, after the others
        for limit in (1, 5, 50):
            assert numbers_of(store.search([2, 0], limit=limit)) == list(range(1, limit + 1))
        assert numbers_of(store.search([2, 0], limit=3000)) == [*range(1, 3000), 0]


@pytest.mark.parametrize("metric", METRICS)
def test_a_vector_whose_length_no_float_has_is_found(metric: str) -> None:
    rows = np.ones((5, 400))
    rows[:, :50] = 0
    rows[3] = 1.7e308
    hits, all_hits = searched("float64", metric, rows, np.full(400, 1.65e308), 1)
    assert numbers_of(hits) == numbers_of(all_hits)[:1] == [3]
    assert metric != "cosine" or hits[0].score == pytest.approx(1)
