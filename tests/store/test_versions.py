"""A version never comes again, so that who says what he has read never changes what he has not read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tr_mmap.store import Store, VersionConflict, histories


@pytest.fixture
def forgetful(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store that forgets a deleted record after 10 other deletions."""
    monkeypatch.setattr(histories, "_KEPT_GRAVES", 10)
    with Store("forgetful", root) as store:
        yield store
        assert store.check() == []


def delete_others(store: Store, count: int) -> None:
    for each in store.add_many({"content": "another"} for _ in range(count)):
        store.delete(each)


def test_a_version_never_comes_again_after_the_history_of_its_record_was_forgotten(forgetful: Store) -> None:
    forgetful.add("old", id="k")
    read = forgetful.update("k", content="older").version
    forgetful.delete("k")
    delete_others(forgetful, 20)
    assert forgetful.history("k") == []
    forgetful.add("new", id="k")
    seen = {1, read, 3}
    for _ in range(3):
        assert forgetful.get("k").version not in seen
        seen.add(forgetful.get("k").version)
        with pytest.raises(VersionConflict):
            forgetful.update("k", content="lost", if_version=read)
        forgetful.update("k", content="new")
    assert [event.content for event in forgetful.history("k")] == ["new"] * 4


def test_the_history_of_a_deleted_record_is_kept_for_as_many_deletions_although_its_id_was_deleted_before(
    forgetful: Store,
) -> None:
    forgetful.add("first life", id="k")
    forgetful.delete("k")
    forgetful.add("second life", id="k")
    delete_others(forgetful, 9)
    forgetful.delete("k")  # just now the first deletion becomes too old
    events = ["add", "delete", "add", "delete"]
    assert [event.event for event in forgetful.history("k")] == events
    delete_others(forgetful, 9)
    assert [event.event for event in forgetful.history("k")] == events
    delete_others(forgetful, 1)
    assert forgetful.history("k") == []


def test_the_history_of_a_record_that_is_there_is_never_forgotten(forgetful: Store) -> None:
    forgetful.add("first life", id="k")
    forgetful.delete("k")
    forgetful.add("second life", id="k")
    delete_others(forgetful, 30)
    assert [event.event for event in forgetful.history("k")] == ["add", "delete", "add"]


def test_a_new_id_begins_with_version_1_as_long_as_nothing_was_forgotten(forgetful: Store) -> None:
    delete_others(forgetful, 10)
    assert forgetful.get(forgetful.add("x")).version == 1
