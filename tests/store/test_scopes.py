"""A handle with a scope never gives away a record of another user, whatever it is asked and whatever others do."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tr_mmap import BadMessage, OutOfSpace
from tr_mmap.store import NoSuchRecord, RecordExists, SnapshotExpired, Store, VersionConflict

USERS = ("ann", "bob")
IDS = st.sampled_from(["one", "two", "three", "four"])
USER = st.sampled_from(USERS)
OTHER = st.sampled_from([*USERS, "eve", None])
FILTERS = st.recursive(
    st.one_of(
        st.none(),
        st.builds(lambda user: {"user_id": user}, OTHER),
        st.builds(lambda user: {"user_id": {"ne": user}}, USER),
        st.builds(lambda user: {"user_id": {"in": [user, "eve"]}}, USER),
        st.builds(lambda user: {"NOT": {"user_id": user}}, USER),
        st.builds(lambda kind: {"kind": kind}, st.integers(0, 1)),
        st.builds(lambda kind: {"kind": {"gte": kind}}, st.integers(0, 1)),
        st.builds(lambda each: {"id": {"in": each}}, st.lists(IDS)),
        st.just({"importance": {"gte": 0}}),
    ),
    lambda inner: st.builds(lambda a, b: {"OR": [each for each in (a, b) if each] or [{"id": "one"}]}, inner, inner),
    max_leaves=3,
)


class Scopes(RuleBasedStateMachine):
    """Two users with a handle each, and one who sees all. A text and a vector say whose they are."""

    @initialize(at_budget=st.sampled_from(["evict", "fail"]), budget=st.sampled_from([None, 6000]))
    def open(self, at_budget: Any, budget: int | None) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="tr_test_store_", dir="/dev/shm"))
        options: dict[str, Any] = {"dim": 2, "indexed": ("kind",), "at_budget": at_budget, "budget_nbytes": budget}
        self.all = Store("scopes", self.root, **options)
        self.of = {"ann": Store("scopes", self.root, scope="ann", **options), "bob": self.all.clone(scope="bob")}
        self.snapshots: dict[str, list[Any]] = {user: [] for user in USERS}
        self.cursors: dict[str, list[str]] = {user: [] for user in USERS}
        self.count = 0

    def fields(self, user: str) -> dict[str, Any]:
        self.count += 1
        return {
            "content": f"secret of {user} {self.count}",
            "vector": [1.0, 0.1] if user == "ann" else [0.1, 1.0],
            "metadata": {"owner": user, "kind": self.count % 2},
            "tensors": {"t": np.full(3, USERS.index(user))},
        }

    def check(self, user: str, records: list[Any]) -> None:
        for record in records:
            if record is not None:
                assert record.user_id == user
                assert record.metadata["owner"] == user
                assert f"of {user}" in record.content
                assert record.tensors["t"].tolist() == [USERS.index(user)] * 3
                assert bool(record.vector[0] > 0.5) is (user == "ann")

    @rule(user=USER, record_id=IDS, by_all=st.booleans(), given=OTHER, importance=st.floats(0, 1))
    def add(self, user: str, record_id: str, by_all: bool, given: str | None, importance: float) -> None:
        fields = {**self.fields(user), "id": record_id, "importance": importance}
        try:
            if by_all:
                self.all.add_many([{**fields, "user_id": user}])
            else:
                self.of[user].add_many([{**fields, "user_id": given}])
                assert given in (user, None)
        except BadMessage:
            assert given not in (user, None)
        except (RecordExists, OutOfSpace):
            pass

    @rule(user=USER, record_id=IDS, version=st.sampled_from([None, 1, 2, 3]))
    def update(self, user: str, record_id: str, version: int | None) -> None:
        before = self.all.get(record_id)
        try:
            self.check(user, [self.of[user].update(record_id, if_version=version, **self.fields(user))])
            assert before is not None
            assert before.user_id == user
        except (NoSuchRecord, VersionConflict, OutOfSpace) as error:
            if isinstance(error, VersionConflict):  # of another's record nobody says which version it has
                assert before is not None
                assert before.user_id == user

    @rule(user=USER, record_id=IDS)
    def delete(self, user: str, record_id: str) -> None:
        before = self.all.get(record_id)
        assert self.of[user].delete(record_id) is (before is not None and before.user_id == user)

    @rule(user=USER, filters=FILTERS, given=OTHER)
    def clear(self, user: str, filters: Any, given: str | None) -> None:
        others = {record.id for record in self.all.get_all() if record.user_id != user}
        self.of[user].clear(filters=filters, user_id=given)
        assert others <= {record.id for record in self.all.get_all()}

    @rule(user=USER, record_id=IDS)
    def get(self, user: str, record_id: str) -> None:
        self.check(user, [self.of[user].get(record_id)])

    @rule(user=USER, filters=FILTERS, given=OTHER, limit=st.sampled_from([None, 1, 2]))
    def listing(self, user: str, filters: Any, given: str | None, limit: int | None) -> None:
        page = self.of[user].get_all(filters=filters, user_id=given, limit=limit)
        self.check(user, page)
        if page.cursor is not None:
            self.cursors[user].append(page.cursor)

    @rule(user=USER, whose=USER, filters=FILTERS, data=st.data())
    def turn_pages(self, user: str, whose: str, filters: Any, data: Any) -> None:
        cursors = [*self.cursors[whose], "0", "3", "99"]  # another's, or a guess
        cursor = data.draw(st.sampled_from(cursors))
        self.check(user, self.of[user].get_all(filters=filters, limit=2, cursor=cursor))

    @rule(
        user=USER,
        filters=FILTERS,
        given=OTHER,
        query=st.sampled_from(["secret", "ann", "bob", "of ann", [1, 0], [0, 1]]),
    )
    def search(self, user: str, filters: Any, given: str | None, query: Any) -> None:
        for limit in (1, 100):
            hits = self.of[user].search(query, limit=limit, filters=filters, user_id=given)
            self.check(user, [hit.record for hit in hits])

    @rule(user=USER, record_id=IDS)
    def history(self, user: str, record_id: str) -> None:
        """An id may have been another's before, and be it again."""
        for event in self.of[user].history(record_id):
            assert event.content is None or f"of {user}" in event.content
            assert not event.metadata or event.metadata["owner"] == user

    @rule(user=USER)
    def begin_snapshot(self, user: str) -> None:
        self.snapshots[user].append(self.of[user].snapshot())
        for old in self.snapshots[user][:-2]:
            old.close()

    @precondition(lambda self: any(self.snapshots.values()))
    @rule(user=USER, record_id=IDS, filters=FILTERS, query=st.sampled_from(["secret", "of ann of bob", [1, 1]]))
    def look_back(self, user: str, record_id: str, filters: Any, query: Any) -> None:
        for then in self.snapshots[user]:
            try:
                self.check(user, [then.get(record_id)])
                self.check(user, then.get_all(filters=filters))
                self.check(user, [hit.record for hit in then.search(query, filters=filters)])
            except SnapshotExpired:
                pass

    @rule(user=USER, other=USER)
    def clone(self, user: str, other: str) -> None:
        try:
            twin = self.of[user].clone(scope=other)
        except BadMessage:
            assert user != other
            return
        with twin:
            assert user == other
            self.check(user, twin.get_all())

    @rule()
    def compact(self) -> None:
        self.all.compact()

    @invariant()
    def all_is_said_to_whom_it_belongs(self) -> None:
        found = {record.id: record.user_id for record in self.all.get_all()}
        for user, handle in self.of.items():
            assert {record.id for record in handle.get_all()} == {
                each for each, whose in found.items() if whose == user
            }

    def teardown(self) -> None:
        if hasattr(self, "root"):
            for each in [*self.snapshots["ann"], *self.snapshots["bob"], *self.of.values()]:
                each.close()
            assert self.all.check() == []
            self.all.close()
            shutil.rmtree(self.root)


def test_no_method_of_a_handle_with_a_scope_gives_away_anothers_record(is_full: bool) -> None:
    run_state_machine_as_test(
        Scopes,
        settings=settings(
            max_examples=400 if is_full else 12,
            stateful_step_count=60 if is_full else 30,
            deadline=None,
            derandomize=not is_full,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_history_never_tells_what_an_earlier_owner_of_the_id_wrote(root: Path) -> None:
    with Store("scopes", root) as store:
        hers, his = store.clone(scope="she"), store.clone(scope="he")
        hers.add("her secret", id="note", metadata={"pin": 1})
        hers.update("note", content="her other secret")
        assert [event.event for event in hers.history("note")] == ["add", "update"]
        assert his.history("note") == []
        hers.delete("note")
        assert his.history("note") == []
        his.add("his own", id="note")
        assert [event.content for event in his.history("note")] == ["his own"]
        assert [event.event for event in hers.history("note")] == ["add", "update", "delete"]
        assert [event.version for event in store.history("note")] == [1, 2, 3, 4]
        hers.close()
        his.close()


@pytest.mark.parametrize("make", [lambda store: store.clone(scope="he"), lambda store: store])
def test_a_snapshot_shows_the_vectors_of_its_moment_after_a_compaction(
    store: Store, make: Callable[[Store], Store]
) -> None:
    """A slab that was compacted since lacks rows that the snapshot still has."""
    handle = make(store)
    vectors = np.random.default_rng(1).random((1100, 4)).astype(np.float32)
    handle.add_many({"id": f"{number}", "vector": vector} for number, vector in enumerate(vectors))
    with handle.snapshot() as then:
        handle.clear(filters={"id": {"in": [f"{number}" for number in range(0, 1000, 2)]}})
        assert handle.compact() >= 500
        handle.search(vectors[1], limit=1)  # which opens the new slab
        for number in range(0, 1000, 50):
            found = then.get(f"{number}")
            assert found is not None
            assert found.vector.tobytes() == vectors[number].tobytes()
            assert store.get(f"{number + 1}").vector.tobytes() == vectors[number + 1].tobytes()  # type: ignore[union-attr]
    if handle is not store:
        handle.close()
