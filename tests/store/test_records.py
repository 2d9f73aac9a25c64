"""Records come, change and go, and everybody is told the truth about it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_support import embed, other_embed
from strategies import bits

from tr_mmap import BadMessage, HostilePath, OutOfSpace, TRException, UnsupportedTensor
from tr_mmap.store import (
    EmbedderMismatch,
    NoSuchRecord,
    NoSuchStore,
    OptionMismatch,
    RecordExists,
    Store,
    StoreClosed,
    StoreCorrupt,
    VersionConflict,
    WrongShape,
)
from tr_mmap.wire.header import DTYPES

VECTOR = np.arange(8, dtype=np.float32)


def test_what_was_added_is_read_bit_for_bit(store: Store) -> None:
    tensors = {"image": np.arange(12, dtype=np.int16).reshape(3, 4), "mask": np.array(True), "none": np.zeros((0, 3))}
    vector = np.float32([1, -0.0, 3e-42, 7, 1e30, 5, 6, 7])
    metadata = {"kind": "note", "deep": {"a": [1, 2.5, None, True, "é"]}}
    record_id = store.add(
        "a text", vector=vector, tensors=tensors, user_id="u", agent_id="a", run_id="r", metadata=metadata, importance=1
    )
    found = store.get(record_id)
    assert found is not None
    assert (found.id, found.version, found.content, found.metadata) == (record_id, 1, "a text", metadata)
    assert (found.user_id, found.agent_id, found.run_id, found.importance) == ("u", "a", "r", 1.0)
    assert found.vector is not None
    assert found.vector.tobytes() == vector.tobytes()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].shape == tensor.shape
        assert found.tensors[name].tobytes() == tensor.tobytes()


def test_nothing_that_was_read_can_be_written(store: Store) -> None:
    found = store.get(store.add(vector=VECTOR, tensors={"a": np.ones(3), "b": np.ones(4), "c": np.ones(100_000)}))
    assert found is not None
    for view in (found.vector, *found.tensors.values()):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


@pytest.mark.parametrize("name", [name for _, name, _ in DTYPES])
def test_a_store_of_torch_tensors_gives_back_every_dtype_bit_for_bit(root: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    given = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, name))
    large = given.expand(4000, 2, 3, 4).contiguous()  # a file of its own
    with Store("torch", root, framework="torch") as store:
        record_id = store.add(tensors={"small": given, "none": given[:0], "large": large})
        alone = store.add(tensors={"alone": given})
        found = {**store.get(record_id).tensors, **store.get(alone).tensors}  # type: ignore[union-attr]
        with store.snapshot() as then:
            again = then.get(alone).tensors["alone"]  # type: ignore[union-attr]
        wanted_of = {"small": given, "none": given[:0], "large": large, "alone": given}
        assert found.keys() == wanted_of.keys()
        for each, wanted in (*((found[key], wanted_of[key]) for key in found), (again, given)):
            assert type(each) is torch.Tensor
            assert each.dtype == wanted.dtype
            assert each.shape == wanted.shape
            assert bits(each) == bits(wanted)
        found["small"].view(torch.uint8).zero_()  # which stays here
        assert bits(store.get(record_id).tensors["small"]) == bits(given)  # type: ignore[union-attr]
        assert store.check() == []


def test_a_framework_that_is_none_is_refused_and_no_store_is_made(root: Path) -> None:
    with pytest.raises(BadMessage, match="framework is 'jax'"):
        Store("jax", root, framework="jax")  # type: ignore[arg-type]
    assert list(root.iterdir()) == []


def test_a_store_that_is_only_to_be_opened_is_not_made(root: Path) -> None:
    for options in ({}, {"durability": "os"}):
        with pytest.raises(NoSuchStore, match="there is no store 'notse'") as caught:
            Store("notse", root, create=False, **options)  # type: ignore[arg-type]
        assert (caught.value.name, caught.value.path) == ("notse", str(root))
        assert isinstance(caught.value, FileNotFoundError)
        assert str(root) in str(caught.value)
    assert list(root.iterdir()) == []
    with Store("notes", root) as store:
        record_id = store.add("it")
    with Store("notes", root, create=False) as store:
        assert store.get(record_id) is not None
    with pytest.raises(BadMessage, match="create is"):
        Store("notes", root, create="no")  # type: ignore[arg-type]


def test_a_record_that_is_not_there_is_none_to_get_false_to_delete_and_an_error_to_update(store: Store) -> None:
    assert store.get("nobody") is None
    assert store.delete("nobody") is False
    with pytest.raises(NoSuchRecord) as caught:
        store.update("nobody", content="x")
    assert caught.value.id == "nobody"
    assert isinstance(caught.value, KeyError)
    record_id = store.add("x")
    assert store.delete(record_id) is True
    assert store.delete(record_id) is False


def test_an_update_changes_what_is_given_and_nothing_else(store: Store) -> None:
    record_id = store.add("first", vector=VECTOR, tensors={"t": np.arange(3)}, metadata={"kind": "a"}, ttl_s=1000)
    before = store.get(record_id)
    after = store.update(record_id, importance=0.9)
    assert before is not None
    assert (after.version, after.content, after.metadata) == (2, "first", {"kind": "a"})
    assert (after.created_at, after.expires_at) == (before.created_at, before.expires_at)
    assert after.updated_at > before.updated_at
    assert np.array_equal(after.vector, VECTOR)
    assert after.tensors["t"].tolist() == [0, 1, 2]
    after = store.update(record_id, content=None, vector=None, tensors=None, ttl_s=None, metadata=None)
    assert (after.content, after.vector, after.tensors, after.expires_at, after.metadata) == (None, None, {}, None, {})
    after = store.update(record_id, vector=VECTOR + 1)
    assert np.array_equal(after.vector, VECTOR + 1)
    assert np.array_equal(before.vector, VECTOR)  # what somebody holds


def test_an_update_of_another_version_is_a_conflict_and_changes_nothing(store: Store) -> None:
    record_id = store.add("one")
    assert store.update(record_id, content="two", if_version=1).version == 2
    with pytest.raises(VersionConflict) as caught:
        store.update(record_id, content="three", if_version=1)
    assert (caught.value.expected, caught.value.found) == (1, 2)
    found = store.get(record_id)
    assert found is not None
    assert found.content == "two"


def test_a_version_never_comes_again_although_the_record_was_deleted_in_between(store: Store) -> None:
    store.add("one", id="x")
    store.update("x", content="two")
    store.delete("x")
    store.add("three", id="x")
    found = store.get("x")
    assert found is not None
    assert found.version == 4
    with pytest.raises(VersionConflict):
        store.update("x", content="four", if_version=2)


def test_several_records_are_added_in_one_commit_or_not_at_all(store: Store) -> None:
    epoch = store.stats().epoch
    ids = store.add_many({"content": f"text {number}", "vector": VECTOR + number} for number in range(3000))
    assert store.stats().epoch == epoch + 1
    assert [record.content for record in reversed(store.get_all())] == [f"text {number}" for number in range(3000)]
    with pytest.raises(RecordExists) as caught:
        store.add_many([{"content": "new"}, {"content": "old", "id": ids[7]}])
    assert caught.value.id == ids[7]
    assert store.stats().records == 3000
    assert store.add_many([]) == []


def test_a_history_tells_what_became_of_a_record_even_when_it_is_gone(store: Store) -> None:
    store.add("one", id="x", metadata={"kind": "a"})
    store.update("x", content="two")
    store.delete("x")
    events = store.history("x")
    assert [(each.event, each.version, each.content) for each in events] == [
        ("add", 1, "one"),
        ("update", 2, "two"),
        ("delete", 3, None),
    ]
    assert store.history("y") == []
    store.add("other", id="x\x01")
    assert len(store.history("x")) == 3


def test_a_history_keeps_the_last_32_versions(store: Store) -> None:
    store.add("0", id="x")
    for number in range(1, 50):
        store.update("x", content=str(number))
    assert [each.content for each in store.history("x")] == [str(number) for number in range(18, 50)]


def test_a_record_whose_time_is_over_is_not_there_for_anybody(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    now_s = time.time()
    gone, stays = store.add("gone soon", vector=VECTOR, ttl_s=100), store.add("stays", vector=VECTOR, ttl_s=1000)
    monkeypatch.setattr(time, "time", lambda: now_s + 200)
    assert store.get(gone) is None
    assert [record.id for record in store.get_all()] == [stays]
    assert [hit.record.id for hit in store.search(VECTOR)] == [stays]
    assert store.search("gone") == []
    with pytest.raises(NoSuchRecord):
        store.update(gone, content="x")
    store.add("again", id=gone)  # the id is free
    store.compact()
    assert store.stats().records == 2
    assert [each.event for each in store.history(gone)] == ["add", "expire", "add"]


def test_clear_removes_all_or_what_a_filter_says_and_counts(store: Store) -> None:
    store.add_many({"content": "x", "user_id": "ab"[number % 2], "vector": VECTOR} for number in range(2500))
    assert store.clear(user_id="a") == 1250
    assert {record.user_id for record in store.get_all()} == {"b"}
    assert store.clear() == 1250
    assert store.stats().records == store.stats().vectors == store.stats().nbytes == 0


def test_a_handle_with_a_scope_neither_shows_nor_changes_anothers_records(store: Store) -> None:
    hers = store.add("hers", id="h", user_id="she", vector=VECTOR)
    nobodys = store.add("nobody's", id="n", vector=VECTOR)
    his = store.clone(scope="he")
    own = his.add("his", vector=VECTOR)
    found = store.get(own)
    assert found is not None
    assert found.user_id == "he"
    for other in (hers, nobodys):
        assert his.get(other) is None
        assert his.delete(other) is False
        assert his.history(other) == []
        with pytest.raises(NoSuchRecord):
            his.update(other, content="mine now")
        with pytest.raises(RecordExists):
            his.add("mine now", id=other)
    for query in (VECTOR, "hers"):
        assert {hit.record.id for hit in his.search(query)} <= {own}
        assert his.search(query, filters={"OR": [{"user_id": "she"}, {"user_id": None}]}) == []
    assert [record.id for record in his.get_all()] == [own]
    assert his.get_all(user_id="she") == []
    with pytest.raises(BadMessage, match="bound"):
        his.add("x", user_id="she")
    with pytest.raises(BadMessage, match="bound"):
        his.clone(scope="she")
    assert his.clear() == 1
    assert store.stats().records == 2
    his.close()


def test_views_outlive_whatever_becomes_of_the_record_and_of_the_store(root: Path) -> None:
    with Store("short", root) as store:
        ids = store.add_many(
            {"vector": VECTOR + number, "tensors": {"t": np.full(9, number)}} for number in range(2000)
        )
        held = [store.get(each) for each in ids[:3]]
        store.update(ids[0], vector=VECTOR * 0, tensors={})
        store.delete(ids[1])
        store.clear()
        store.compact()
        store.add(vector=VECTOR)
    for number, record in enumerate(held):
        assert record is not None
        assert np.array_equal(record.vector, VECTOR + number)
        assert record.tensors["t"].tolist() == [number] * 9


def test_the_budget_refuses_or_evicts_what_matters_least(root: Path) -> None:
    with Store("small", root, budget_nbytes=20_000) as store:
        store.add("kept", tensors={"t": np.zeros(1000)})
        with pytest.raises(OutOfSpace, match="at_budget") as caught:
            store.add("too much", tensors={"t": np.zeros(2000)})
        assert caught.value.needed_nbytes > 0
        assert store.stats().records == 1
        assert len(list((root / "tr_store_small" / "tensors").iterdir())) == 1
        assert store.check() == []
    with Store("evicts", root, budget_nbytes=20_000, at_budget="evict") as store:
        important = store.add("important", importance=0.9, tensors={"t": np.zeros(500)})
        first = store.add("first", importance=0.1, tensors={"t": np.zeros(500)})
        second = store.add("second", importance=0.1, tensors={"t": np.zeros(500)})
        store.add("new", importance=0.0, tensors={"t": np.zeros(1000)})
        assert [each is None for each in map(store.get, (important, first, second))] == [False, True, False]
        assert store.history(first)[-1].event == "evict"
        with pytest.raises(OutOfSpace):
            store.add("larger than all", tensors={"t": np.zeros(10_000)})
        assert store.stats().records == 3
        assert store.check() == []


def test_what_a_store_does_at_its_budget_is_the_store_s_and_not_a_handle_s(root: Path) -> None:
    Store("fails", root).close()
    with pytest.raises(OptionMismatch, match="open it without at_budget"):
        Store("fails", root, at_budget="evict")
    Store("evicts", root, at_budget="evict", budget_nbytes=2000).close()
    with Store("evicts", root) as store:
        store.add_many({"id": str(n)} for n in range(3))
        store.add(id="3")
        assert [record.id for record in store.get_all()] == ["3", "2", "1"]


def test_an_embedder_makes_vectors_of_texts_and_another_one_is_refused(root: Path) -> None:
    with Store("texts", root, embedder=embed) as store:
        ids = store.add_many([{"content": "aaa"}, {"content": "abc"}, {"content": "zzz"}])
        assert [hit.record.id for hit in store.search("aab", limit=2)] == ids[:2]
        assert store.update(ids[2], content="aab").vector is not None
        assert store.search("aab")[0].record.id == ids[2]
        assert store.search("zzz", mode="text") == []
    with pytest.raises(EmbedderMismatch, match="same embedder") as caught:
        Store("texts", root, embedder=other_embed)
    assert (type(caught.value), caught.value.option) == (EmbedderMismatch, "embedder")
    with pytest.raises(OptionMismatch, match="dim"):
        Store("texts", root, dim=25)
    with Store("texts", root) as store:  # without one, vectors can still be given
        assert store.search("aab", mode="text")[0].record.id == ids[2]
        with pytest.raises(BadMessage, match="no embedder"):
            store.search("aab", mode="exact")


DEEP: Any = {}
for _ in range(70):
    DEEP = {"x": DEEP}

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"content": 3}, BadMessage, "content"),
    ({"content": "\ud800"}, BadMessage, "surrogate"),
    ({"user_id": 3}, BadMessage, "user_id"),
    ({"id": ""}, BadMessage, "id"),
    ({"id": "x" * 256}, BadMessage, "255 bytes"),
    ({"id": "a\0b"}, BadMessage, "id"),
    ({"id": 7}, BadMessage, "id"),
    ({"vector": np.ones(7)}, WrongShape, r"\(7,\)"),
    ({"vector": np.ones((2, 4))}, WrongShape, r"\(2, 4\)"),
    ({"vector": np.full(8, np.nan)}, BadMessage, "not finite"),
    ({"vector": np.full(8, 1e300)}, BadMessage, "not finite"),
    ({"tensors": {"t": "x"}}, UnsupportedTensor, "tensor"),
    ({"tensors": {3: np.ones(2)}}, BadMessage, "named 3"),
    ({"metadata": {"x": {1, 2}, 3: 4}}, BadMessage, "metadata"),
    ({"metadata": {"x": object()}}, BadMessage, "metadata"),
    ({"metadata": [1]}, BadMessage, "metadata"),
    ({"metadata": {"x": float("nan")}}, BadMessage, "of type float"),
    ({"metadata": {"x": [2**64]}}, BadMessage, "64 bits"),
    ({"metadata": {"x": {3: 4}}}, BadMessage, "of type dict"),
    ({"metadata": {"x": b"bytes"}}, BadMessage, "of type bytes"),
    ({"metadata": {"x": {1}}}, BadMessage, "of type set"),
    ({"metadata": {"x": np.int64(1)}}, BadMessage, "of type int64"),
    ({"metadata": {"\ud800": 1}}, BadMessage, "surrogate"),
    ({"metadata": DEEP}, BadMessage, "at most 64 levels"),
    ({"vector": "text"}, BadMessage, "real numbers"),
    ({"vector": [[1], [1, 2]]}, BadMessage, "real numbers"),
    ({"vector": np.ones(8) * 1j}, BadMessage, "not of complex128"),
    ({"importance": 1.1}, BadMessage, "importance"),
    ({"importance": True}, BadMessage, "importance"),
    ({"ttl_s": 0}, BadMessage, "ttl_s"),
    ({"ttl_s": float("nan")}, BadMessage, "ttl_s"),
]


@pytest.mark.parametrize(("fields", "error", "text"), BAD, ids=[str(fields)[:40] for fields, _, _ in BAD])
def test_a_wrong_argument_is_one_clear_line_and_changes_nothing(
    store: Store, fields: dict[str, Any], error: type[Exception], text: str
) -> None:
    store.add(vector=VECTOR)
    epoch = store.stats().epoch
    with pytest.raises(error, match=text) as caught:
        store.add(**fields)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, TRException)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert store.stats().epoch == epoch
    assert list((Path(store._places.directory) / "tensors").iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"name": "a/b"},
        {"name": ""},
        {"dim": 0},
        {"dim": 1.5},
        {"dtype": "bool"},
        {"dtype": "complex64"},
        {"metric": "manhattan"},
        {"durability": "ram"},
        {"at_budget": "shrug"},
        {"budget_nbytes": 0},
        {"indexed": [3]},
        {"scope": ""},
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_before_anything_is_made(root: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BadMessage):
        Store(**{"name": "x", "path": root, **options})
    assert list(root.iterdir()) == []


def test_a_store_where_others_may_write_is_refused(root: Path) -> None:
    Store("open", root).close()
    os.chmod(root / "tr_store_open", 0o777)
    with pytest.raises(HostilePath, match="chmod 700"):
        Store("open", root)


def test_an_empty_store_takes_less_than_a_mebibyte_and_only_this_user_reads_it(root: Path) -> None:
    with Store("empty", root, dim=384) as store:
        assert store.stats().disk_nbytes <= 1 << 20
    for path in (root / "tr_store_empty", *(root / "tr_store_empty").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_closed_handle_says_so_and_others_go_on(store: Store) -> None:
    twin = store.clone()
    record_id = store.add("x")
    twin.close()
    twin.close()
    with pytest.raises(StoreClosed):
        twin.get(record_id)
    assert store.get(record_id) is not None


@pytest.mark.parametrize("damage", ["gone", "short", "garbage"])
def test_a_damaged_file_of_vectors_is_an_error_with_its_name(root: Path, damage: str) -> None:
    with Store("torn", root) as store:
        record_id = store.add("x", vector=VECTOR)
    (slab,) = (root / "tr_store_torn" / "vec").glob("v-*")
    if damage == "gone":
        slab.unlink()
    elif damage == "short":
        os.truncate(slab, 300)
    else:
        slab.write_bytes(b"x" * slab.stat().st_size)
    with Store("torn", root) as store:
        for action in (lambda: store.get(record_id), lambda: store.search(VECTOR)):
            with pytest.raises(StoreCorrupt) as caught:
                action()
            assert caught.value.path == str(slab)
        assert any(str(slab) in line for line in store.check())


def test_a_damaged_catalogue_is_an_error_with_its_name(root: Path) -> None:
    with Store("bad", root) as store:
        store.add("x")
    (root / "tr_store_bad" / "catalogue" / "data.mdb").write_bytes(b"x" * 8192)
    with pytest.raises(StoreCorrupt) as caught:
        Store("bad", root)
    assert "catalogue" in caught.value.path
