"""Stores over HTTP: the eight methods do what the store's do, tensors come exact, and nothing is lost or told."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from gateways import RunningGateway, running
from stores_over_http import BINARY, WITHOUT_PYTHON, Found, add, asked, gateway, opened, path, plain, shown
from strategies import bits
from support import BOUND_S

from tr_mmap.gateway.sections import StoreConfig
from tr_mmap.gateway.stores import Stores
from tr_mmap.gateway.tokens import Principal
from tr_mmap.store import Store, StoreClosed
from tr_mmap.tsr.dtypes import TABLE

__all__ = ["gateway", "path"]  # fixtures


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


def test_a_request_that_adds_is_done_once_for_a_key(gateway: RunningGateway, path: str) -> None:
    headers = {"Idempotency-Key": f"once {path}".replace(" ", "-")}
    body = {"records": [{"content": "one"}, {"content": "two"}]}
    first, again = (gateway.ask("POST", f"{path}/records", body, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    other = gateway.ask("POST", f"{path}/records?scope=ada", body, headers=headers)
    assert (other.status_code, other.json()["type"]) == (422, "KeyReused")
    assert len(asked(gateway.ask("GET", f"{path}/records"))["records"]) == 2


def test_an_empty_record_is_refused_and_an_empty_list_adds_none(gateway: RunningGateway, path: str) -> None:
    for body, what in (({}, "the record is empty"), ({"records": [{"content": "x"}, {}]}, "record 1 is empty")):
        answer = gateway.ask("POST", f"{path}/records", body)
        assert (answer.status_code, what in answer.json()["error"]) == (400, True), answer.text
    assert asked(gateway.ask("POST", f"{path}/records", {"records": []}), 200) == {"ids": []}
    assert asked(gateway.ask("GET", f"{path}/records"))["records"] == []
    for body in ({"metadata": {"kind": "n"}}, {"vector": [1.0]}, {"id": "named"}):
        asked(gateway.ask("POST", f"{path}/records", body), 201)


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


@pytest.mark.parametrize("record_id", ["a/b", "tensors", "50%", "a b?c#d", "é", "..a", "-", "a\nb"])
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


def test_a_line_break_at_a_path_s_end_is_part_of_the_id_and_of_the_tensor_s_name(
    gateway: RunningGateway, path: str
) -> None:
    tensors = {name: {"dtype": "uint8", "shape": [1], "data": [n]} for n, name in enumerate(("t", "t\n"))}
    for record_id in ("a", "a\n"):
        add(gateway, path, id=record_id, tensors=tensors)
        assert asked(gateway.ask("GET", f"{path}/records/{_quoted(record_id)}"))["id"] == record_id
    assert gateway.ask("GET", f"{path}/records/a/tensors/t%0A").content == b"\1"
    asked(gateway.ask("DELETE", f"{path}/records/a%0A"))
    assert [each["id"] for each in asked(gateway.ask("GET", f"{path}/records"))["records"]] == ["a"]


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


def test_one_tensor_has_no_more_bytes_than_a_response_may_have(gateway: RunningGateway, path: str) -> None:
    with opened(gateway, path) as store:
        fits, large = np.zeros(1 << 20, np.uint8), np.zeros((1 << 20) + 1, np.uint8)
        store.add(id="a", tensors={"fits": fits, "large": large})
    assert len(gateway.ask("GET", f"{path}/records/a/tensors/fits").content) == 1 << 20
    for form in ({}, {"tensors": "base64"}, {"tensors": "list"}):
        error = asked(gateway.ask("GET", f"{path}/records/a/tensors/large", params=form), 413)
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
