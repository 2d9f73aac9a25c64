"""What is slow happens outside the lock, whatever texts go; a commit begins once, however many rows it brings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tr_mmap.store import Store, changes, core
from tr_mmap.store.catalogue import Catalogue
from tr_mmap.store.changes import Changes

LONG = " ".join(map(str, range(3000)))


@pytest.fixture
def in_lock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The letters whose words are found while others wait."""
    found: list[int] = []
    is_locked: list[bool] = []
    write, words_in = Catalogue.write, core.words_in

    def locks(self: Catalogue, action: Any) -> Any:
        def noted(transaction: Any) -> Any:
            is_locked.append(True)
            try:
                return action(transaction)
            finally:
                is_locked.pop()

        return write(self, noted)

    def finds(text: str) -> Any:
        if is_locked:
            found.append(len(text))
        return words_in(text)

    monkeypatch.setattr(Catalogue, "write", locks)
    monkeypatch.setattr(core, "words_in", finds)
    monkeypatch.setattr(changes, "words_in", finds)
    return found


def evict(store: Store) -> None:
    store._options.budget_nbytes = store.stats().nbytes
    store.add("new", metadata={"x": "y" * 2 * len(LONG)})


def change_meanwhile(store: Store) -> None:
    """Another process makes the text that goes another one than was read before."""
    original = store._text_of
    store._text_of = lambda _: None  # type: ignore[method-assign]
    store.update("0", content="new")
    store.delete("1")
    store._text_of = original  # type: ignore[method-assign]


LEAVE: dict[str, Callable[[Store], Any]] = {
    "update": lambda store: store.update("0", content="new"),
    "delete": lambda store: store.delete("0"),
    "clear": lambda store: store.clear(),
    "evict": evict,
    "change meanwhile": change_meanwhile,
}


@pytest.mark.parametrize("how", LEAVE)
def test_words_of_a_long_text_that_goes_are_found_outside_the_lock(root: Path, how: str, in_lock: list[int]) -> None:
    with Store("long", root, at_budget="evict") as store:
        store.add_many([{"id": str(number), "content": f"{LONG} of {number}"} for number in range(4)])
        LEAVE[how](store)
        assert sum(in_lock) < 2048
        assert store.stats().records < 4 or store.get("0").content == "new"
        assert [hit.record.id for hit in store.search("of 0")].count("0") == 0
        assert store.check() == []


@pytest.mark.parametrize(
    ("action", "gone"),
    [
        (lambda store: store.add("tiny"), 1),
        (lambda store: store.add("again", id="0"), 2),
        (lambda store: store.delete("0"), 2),
        (lambda store: store.compact(), 6),
    ],
    ids=["add", "add under its id", "delete", "compact"],
)
def test_a_commit_removes_no_more_long_texts_that_have_expired_than_it_must(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_lock: list[int],
    action: Callable[[Store], Any],
    gone: int,
) -> None:
    now_s = time.time()
    with Store("expired", root) as store:
        store.add_many([{"id": str(number), "content": f"{LONG} {number}", "ttl_s": 9 - number} for number in range(6)])
        monkeypatch.setattr(time, "time", lambda: now_s + 100)
        before = store.stats()
        action(store)
        after = store.stats()
        assert before.records - after.records in (gone, gone - 1)  # it may have added one
        assert after.epoch - before.epoch >= gone / 2
        assert sum(in_lock) < 2048
        assert store.search("2999") == []
        assert store.check() == []


def test_words_of_many_texts_that_go_at_once_are_found_outside_the_lock(
    root: Path, monkeypatch: pytest.MonkeyPatch, in_lock: list[int]
) -> None:
    now_s, text = time.time(), LONG[:1500]
    with Store("many", root, at_budget="evict") as store:
        store.add_many({"content": f"{text} {number}", "ttl_s": 1} for number in range(20))
        store.add_many({"content": f"{text} {number}"} for number in range(20))
        monkeypatch.setattr(time, "time", lambda: now_s + 100)
        store.add("tiny")
        assert store.stats().records == 41 - 10
        evict(store)
        assert store.stats().records < 20
        assert in_lock == []


def test_clear_removes_a_few_long_texts_at_a_time(root: Path) -> None:
    with Store("cleared", root) as store:
        store.add_many({"content": f"{LONG} {number}"} for number in range(8))
        epoch = store.stats().epoch
        assert store.clear() == 8
        assert store.stats().epoch >= epoch + 8
        store.add_many({"content": f"short {number}"} for number in range(128))
        epoch = store.stats().epoch
        assert store.clear() == 128
        assert store.stats().epoch == epoch + 2


@pytest.mark.parametrize("before", [0, 5, 100])
def test_a_commit_of_many_rows_begins_once(root: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """Its slabs are made before it takes the lock, not one at a time."""
    monkeypatch.setattr(core, "FIRST_ROWS", 8)
    monkeypatch.setattr(core, "MOST_ROWS", 64)
    added: list[str] = []
    add = Changes.add

    def adds(self: Changes, record: Any, *arguments: Any) -> None:
        added.append(record.id)
        add(self, record, *arguments)

    with Store("rows", root, dim=2) as store:
        store.add_many({"vector": [number, 1]} for number in range(before))
        monkeypatch.setattr(Changes, "add", adds)
        ids = store.add_many({"vector": [number, 2]} for number in range(500))
        assert added == ids
        assert [record.vector.tolist() for record in store.get_all(limit=500)] == [
            [number, 2] for number in range(499, -1, -1)
        ]
        slabs = store.stats().slabs
        assert len(list((root / "tr_store_rows" / "vec").iterdir())) == 2 * slabs  # none was made in vain
        assert slabs <= 500 / 64 + 4 + before / 8
        assert store.check() == []


def test_slabs_that_another_handle_has_made_needless_are_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "FIRST_ROWS", 8)
    with Store("rows", root, dim=2) as store, Store("rows", root) as other:
        original, met = store._catalogue.write, []

        def write(action: Any) -> Any:
            if not met:
                met.append(other.add_many({"vector": [number, 1]} for number in range(20)))
            return original(action)

        store._catalogue.write = write  # type: ignore[method-assign]
        ids = store.add_many({"vector": [number, 2]} for number in range(30))
        assert np.array([store.get(each).vector for each in ids])[:, 0].tolist() == list(range(30))
        assert len(list((root / "tr_store_rows" / "vec").iterdir())) == 2 * store.stats().slabs
        assert store.check() == other.check() == []
