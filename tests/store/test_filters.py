"""Filters compare what metadata hold, in the same way with an index and without; what nothing can fulfil is refused."""

from __future__ import annotations

import datetime
from decimal import Decimal
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tr_mmap import BadMessage
from tr_mmap.store import Store
from tr_mmap.store.filters import parse

NOW = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


class Size(IntEnum):
    SMALL = 3


@pytest.fixture(params=[(), ("n", "tags", "deep")], ids=["read", "indexed"])
def numbered(request: pytest.FixtureRequest, root: Path) -> Any:
    """A store with some records, with an index and without."""
    with Store("numbered", root, indexed=request.param) as store:
        store.add(id="three", metadata={"n": 3, "tags": [None, 1], "deep": {"x": [1, True]}})
        store.add(id="five", metadata={"n": 5.5, "tags": [[1], "a"], "deep": {"x": [1, 1]}})
        store.add(id="text", metadata={"n": "3", "tags": "a1", "deep": [{"y": None}]})
        store.add(id="none")
        yield store


def found(store: Store, filters: dict[str, Any]) -> set[str]:
    return {record.id for record in store.get_all(filters=filters)}


@pytest.mark.parametrize(
    ("test", "ids"),
    [
        ({"n": np.int64(3)}, {"three"}),
        ({"n": {"gt": np.int64(3)}}, {"five"}),
        ({"n": {"lte": np.float32(5.5)}}, {"three", "five"}),
        ({"n": {"lt": Size.SMALL + 1}}, {"three"}),
        ({"n": Size.SMALL}, {"three"}),
        ({"n": {"in": np.array([3, 5.5])}}, {"three", "five"}),
        ({"n": {"in": {3, "3"}}}, {"three", "text"}),
        ({"n": np.str_("3")}, {"text"}),
        ({"n": {"gte": np.str_("3")}}, {"text"}),
        ({"n": {"ne": np.bool_(True)}}, {"three", "five", "text", "none"}),
        ({"n": {"lt": float("inf")}}, {"three", "five"}),
        ({"n": {"gt": 10**400}}, set()),
    ],
)
def test_numbers_and_texts_of_numpy_are_numbers_and_texts(numbered: Store, test: Any, ids: set[str]) -> None:
    assert found(numbered, test) == ids


@pytest.mark.parametrize(
    ("test", "ids"),
    [
        ({"tags": {"contains": None}}, {"three"}),
        ({"tags": {"contains": 1}}, {"three"}),
        ({"tags": {"contains": True}}, set()),
        ({"tags": {"contains": [1]}}, {"five"}),
        ({"tags": {"contains": (1,)}}, {"five"}),
        ({"tags": {"contains": [True]}}, set()),
        ({"tags": {"contains": "a"}}, {"five", "text"}),
        ({"tags": (None, 1)}, {"three"}),
        ({"tags": {"in": [[None, 1], "a1"]}}, {"three", "text"}),
        ({"deep": {"contains": "x"}}, {"three", "five"}),
        ({"deep": {"contains": ["x"]}}, set()),
        ({"deep": {"contains": {"y": None}}}, {"text"}),
        ({"deep": {"eq": {"x": [1, 1.0]}}}, {"five"}),
        ({"deep": {"eq": {"x": np.array([1, 1])}}}, {"five"}),
        ({"deep": {"eq": {"x": [1, True]}}}, {"three"}),
        ({"deep": None}, {"none"}),
    ],
)
def test_lists_and_mappings_are_compared_by_what_is_in_them(numbered: Store, test: Any, ids: set[str]) -> None:
    assert found(numbered, test) == ids


def endless() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    "test",
    [
        {"created_at": {"gt": NOW}},
        {"created_at": {"gt": np.datetime64("2024-01-01")}},
        {"n": NOW.date()},
        {"n": {"eq": b"x"}},
        {"n": {"ne": 1j}},
        {"n": {"in": [1, NOW]}},
        {"n": {"in": np.array(3)}},
        {"n": {"in": 3}},
        {"n": Decimal(3)},
        {"n": {"contains": {1, 2}}},
        {"n": {"eq": {1: 2}}},
        {"n": float("nan")},
        {"n": {"lt": np.float32("nan")}},
        {"n": {"gt": None}},
        {"n": {"lt": True}},
        {"n": {"gte": [1]}},
        {"n": {}},
        {"n": endless()},
    ],
)
def test_what_no_record_can_hold_is_refused(numbered: Store, test: dict[str, Any]) -> None:
    for action in (
        lambda: numbered.get_all(filters=test),
        lambda: numbered.search("a", filters=test),
        lambda: numbered.clear(filters={"OR": [test]}),
    ):
        with pytest.raises(BadMessage) as caught:
            action()
        assert caught.value.detail
    assert numbered.stats().records == 4


LONG = "f" * 200


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        (LONG + "a", LONG + "b", 1),
        (LONG, LONG + "b", 1),
        ("é" * 100, "é" * 100 + "e", 1),
        ("a", "a\0", None),
        ("a", "a\0\3b", "x"),
        ("a", "a\4", [1]),
        ("a", "ab", "b"),
    ],
)
def test_no_two_fields_share_an_index(root: Path, one: str, other: str, value: Any) -> None:
    with Store("names", root, indexed=(one, other)) as store:
        store.add(id="x", metadata={one: value, other: "b\0x"})
        store.add(id="y", metadata={one: "\3b\0x", other: value})
        for test in (
            *({name: each} for name in (one, other) for each in (1, "x", "b", "b\0x", "\3b\0x", None)),
            *({name: {"contains": 1}} for name in (one, other)),
            *({name: {"gte": ""}} for name in (one, other)),
        ):
            wanted = parse(test, {})
            assert wanted is not None
            assert found(store, test) == {each.id for each in store.get_all() if wanted.test(each)}
        store.delete("x")
        assert found(store, {other: value}) == {"y"}
        assert store.check() == []


@pytest.mark.parametrize(
    "filters",
    [
        {"AND": []},
        {"OR": []},
        {"NOT": []},
        {"NOT": {}},
        {"AND": [{}]},
        {"OR": [{"kind": "a"}, {}]},
        {"OR": {"kind": "a"}},
        {"AND": {"kind": "a"}},
        {"kind": {}},
        {"and": [{"kind": "a"}]},
        {"NOT": [{"AND": [{}]}]},
    ],
)
def test_a_filter_that_says_nothing_deletes_nothing(store: Store, filters: Any) -> None:
    store.add("it", metadata={"kind": "b"})
    for ask in (store.clear, store.get_all):
        with pytest.raises(BadMessage):
            ask(filters=filters)
    assert len(store.get_all()) == 1


def test_a_mapping_in_place_of_an_operator_is_told_how_to_compare_it(store: Store) -> None:
    store.add("it", id="it", metadata={"m": {"a": 1}})
    with pytest.raises(BadMessage, match=r"write \{'eq'"):
        store.get_all(filters={"m": {"a": 1}})
    assert [record.id for record in store.get_all(filters={"m": {"eq": {"a": 1}}})] == ["it"]
