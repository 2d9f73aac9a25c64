"""A snapshot answers as its store would have answered at that moment, to several threads at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_support import embed

from tr_mmap import BadMessage
from tr_mmap.store import SnapshotExpired, Store, views
from tr_mmap.store.ranking import Ranking

VECTOR = np.arange(1, 5, dtype=np.float32)


def test_a_snapshot_shows_one_moment_whatever_changes(store: Store) -> None:
    ids = store.add_many({"content": f"word {number}", "vector": VECTOR + number} for number in range(10))
    store.update(ids[0], tensors={"t": np.arange(3)})
    with store.snapshot() as then:
        store.clear()
        for _ in range(40):
            store.add("word", vector=VECTOR)
        store.compact()
        assert len(then.get_all()) == 10
        assert {hit.record.id for hit in then.search("word", limit=100)} == set(ids)
        assert {hit.record.id for hit in then.search(VECTOR, limit=100)} == set(ids)
        found = then.get(ids[0])
        assert found is not None
        assert found.tensors["t"].tolist() == [0, 1, 2]
    with pytest.raises(SnapshotExpired):
        then.get(ids[0])
    old = store.snapshot(max_age_s=0.01)
    old._timer.join()
    with pytest.raises(SnapshotExpired, match=r"older than 0\.01 s"):
        old.get_all()


def test_a_record_whose_time_ends_later_is_in_a_snapshot_and_one_whose_time_was_over_is_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.time()
    for ttl_s in (100, 300):
        store.add(f"for {ttl_s}", id=f"{ttl_s}", vector=VECTOR, tensors={"t": np.arange(ttl_s)}, ttl_s=ttl_s)
    monkeypatch.setattr(time, "time", lambda: now_s + 200)
    with store.snapshot() as then:
        monkeypatch.setattr(time, "time", lambda: now_s + 400)
        store.compact()
        store.add("a commit that frees what may be freed")
        assert store.get_all(filters={"id": {"in": ["100", "300"]}}) == []
        for found in (then.get_all(), [hit.record for hit in [*then.search(VECTOR), *then.search("for")]]):
            assert {record.id for record in found} == {"300"}
            assert found[0].tensors["t"].tolist() == list(range(300))
        assert then.get("100") is None
        assert then.get("300") is not None


def test_pages_of_a_snapshot_lead_to_each_other(store: Store) -> None:
    ids = store.add_many({"content": str(number)} for number in range(10))
    with store.snapshot() as then:
        store.clear()
        first = then.get_all(limit=4)
        second = then.get_all(limit=4, cursor=first.cursor)
        third = then.get_all(limit=4, cursor=second.cursor)
        assert third.cursor is None
        assert [record.id for record in [*first, *second, *third]] == ids[::-1]


def test_a_snapshot_is_searched_as_its_store(root: Path) -> None:
    with Store("embedded", root, embedder=embed) as store:
        texts = ("listen", "silently", "banana", "bananas")
        store.add_many({"content": text, "user_id": user, "run_id": "r"} for text in texts for user in ("ada", "ben"))
        with store.snapshot() as then:
            asked: list[tuple[Any, dict[str, Any]]] = [
                ("silent", {}),  # by its vector: no text has this word
                ("silent", {"threshold": 0.95}),
                ("silent", {"user_id": "ada", "run_id": "r", "agent_id": None}),
                ("banana", {"mode": "text"}),
                ("banana", {"mode": "exact", "filters": {"content": {"contains": "s"}}, "limit": 1}),
                (np.ones(26), {"limit": 3}),
            ]
            for query, options in asked:
                hits = store.search(query, **options)
                assert hits
                assert [(hit.record.id, hit.score) for hit in then.search(query, **options)] == [
                    (hit.record.id, hit.score) for hit in hits
                ]
            assert [record.id for record in then.get_all(user_id="ada", run_id="r")] == [
                record.id for record in store.get_all(user_id="ada")
            ]
            assert [each.event for each in then.history(hits[0].record.id)] == ["add"]
            for wrong in ({"mode": "ann"}, {"threshold": "x"}, {"user_id": 3}):
                with pytest.raises(BadMessage):
                    then.search("x", **wrong)


def test_nobody_waits_for_a_thread_that_searches_a_snapshot(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record_id = store.add(vector=VECTOR)
    found: list[Any] = []

    class Meanwhile(Ranking):
        def __init__(self, *arguments: Any) -> None:
            other = threading.Thread(target=lambda: found.append(then.get(record_id)))
            other.start()
            other.join(60)
            super().__init__(*arguments)

    with store.snapshot() as then:
        monkeypatch.setattr(views, "Ranking", Meanwhile)
        (hit,) = then.search(VECTOR)
        assert [each.id for each in found] == [hit.record.id] == [record_id]


def test_a_snapshot_that_is_closed_while_it_is_searched_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(vector=VECTOR)

    class Meanwhile(Ranking):
        def __init__(self, *arguments: Any) -> None:
            other = threading.Thread(target=then.close)
            other.start()
            other.join(60)
            super().__init__(*arguments)

    with store.snapshot() as then:
        monkeypatch.setattr(views, "Ranking", Meanwhile)
        with pytest.raises(SnapshotExpired):
            then.search(VECTOR)
    monkeypatch.undo()
    assert len(store.search(VECTOR)) == 1


@pytest.mark.parametrize("wrong", [None, 0, -1, float("nan"), float("inf"), "60", True])
def test_a_snapshot_ends_by_itself_in_any_case(store: Store, wrong: Any) -> None:
    with pytest.raises(BadMessage, match="max_age_s"):
        store.snapshot(max_age_s=wrong)


def test_only_those_that_read_now_are_counted_as_readers(store: Store) -> None:
    held = [store.snapshot() for _ in range(50)]
    assert store.stats().readers == 50
    for each in held[10:]:
        each.close()
    assert store.stats().readers == 10
    for each in held:
        each.close()
    assert store.stats().readers == 0


def test_an_update_that_was_made_is_no_error_although_the_record_is_gone_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("one", id="it", vector=VECTOR)
    found = store.update("it", content="two", ttl_s=1e-7)
    assert (found.id, found.version, found.content) == ("it", 2, "two")
    assert store.get("it") is None
    assert [each.event for each in store.history("it")][:2] == ["add", "update"]
    store.add("one", id="other", vector=VECTOR)
    original = Store._write

    def and_delete(handle: Store, *arguments: Any) -> Any:
        result = original(handle, *arguments)
        monkeypatch.undo()
        store.delete("other")
        return result

    monkeypatch.setattr(Store, "_write", and_delete)
    assert store.update("other", content="two").content == "two"
    assert store.get("other") is None
