"""A token of one user never gets another's record, by no route; one that may read changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from gateways import RunningGateway, running, tr_mmap
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tr_mmap.gateway.errors import BadRequest, Forbidden
from tr_mmap.gateway.routes import ROUTES
from tr_mmap.gateway.scopes import check_scope, store_user
from tr_mmap.store import Store

USERS = ("ann", "bob")
IDS = st.sampled_from(["one", "two", "three", "four"])
OTHER = st.sampled_from([*USERS, "eve", None])
FILTERS = st.recursive(
    st.one_of(
        st.builds(lambda user: {"user_id": user}, OTHER),
        st.builds(lambda user: {"user_id": {"ne": user}}, OTHER),
        st.builds(lambda user: {"NOT": {"user_id": user}}, OTHER),
        st.builds(lambda each: {"id": {"in": each}}, st.lists(IDS)),
        st.just({"importance": {"gte": 0}}),
    ),
    lambda inner: st.builds(lambda a, b: {"OR": [a, b]}, inner, inner),
    max_leaves=3,
)
WRITES = ("add", "add_many", "update", "delete", "clear")
READS = ("get", "list", "search", "tensor", "store")
PATH = "/api/v1/store/fuzz"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with a store that all tests of this module use."""
    more = '[python]\nenabled = false\n[store]\ndir = "stores"\n'
    with running(tmp_path_factory.mktemp("gateway"), more) as started:
        for name in ("fuzz", "other"):
            assert started.ask("PUT", f"/api/v1/store/{name}", {"dim": 2}).status_code == 201
        yield started


@pytest.fixture(scope="module")
def everything(gateway: RunningGateway) -> Iterator[Store]:
    """The store, as a handle of this process that sees all."""
    with Store("fuzz", gateway.folder / "stores") as store:
        yield store


def record_of(user: str, number: int) -> dict[str, Any]:
    """A record of which every part says whose it is."""
    return {
        "content": f"secret of {user} {number}",
        "vector": [1.0, 0.1] if user == "ann" else [0.1, 1.0],
        "metadata": {"owner": user},
        "tensors": {"t": {"dtype": "int64", "shape": [1], "data": [USERS.index(user)]}},
    }


STEPS = st.fixed_dictionaries(
    {
        "user": st.sampled_from(USERS),
        "is_read_only": st.booleans(),
        "what": st.sampled_from(WRITES + READS),
        "id": IDS,
        "given": OTHER,
        "filters": st.none() | FILTERS,
        "scope": st.none() | st.sampled_from(USERS),
        "query": st.sampled_from(["secret", "ann bob", [1.0, 0.0], [0.0, 1.0]]),
        "version": st.sampled_from([None, 1, 2]),
    }
)


def request_of(step: dict[str, Any], number: int) -> tuple[str, str, Any, dict[str, str]]:
    """Method, path, body and parameters."""
    what, at = step["what"], f"{PATH}/records/{step['id']}"
    params = {} if step["scope"] is None else {"scope": step["scope"]}
    shape = {**({} if step["given"] is None else {"user_id": step["given"]})}
    which = {**shape, **({} if step["filters"] is None else {"filters": json.dumps(step["filters"])})}
    fields = record_of(step["user"], number)
    if what in ("add", "add_many"):
        record = {**fields, **shape, "id": step["id"]}
        return "POST", f"{PATH}/records", record if what == "add" else {"records": [record]}, params
    if what == "update":
        return "PATCH", at, {**fields, "version": step["version"]}, {**params, "tensors": "list"}
    if what == "search":
        body = {"query": step["query"], "filters": step["filters"], "tensors": "list", **shape}
        return "POST", f"{PATH}/search", body, params
    method = {"delete": "DELETE", "clear": "DELETE"}.get(what, "GET")
    path = {"delete": at, "get": at, "tensor": f"{at}/tensors/t", "store": PATH}.get(what, f"{PATH}/records")
    more = {"clear": which, "list": {**which, "tensors": "list"}, "get": {"tensors": "list"}}.get(what, {})
    return method, path, None, {**params, **more}


def records_in(body: Any) -> Iterator[dict[str, Any]]:
    """Each record that a response has anywhere."""
    if isinstance(body, dict):
        if "user_id" in body:
            yield body
        for each in body.values():
            yield from records_in(each)
    elif isinstance(body, list):
        for each in body:
            yield from records_in(each)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=5, max_size=25), owners=st.lists(st.sampled_from(USERS), min_size=4, max_size=4))
def test_a_token_of_one_user_never_gets_or_changes_another_s_record(
    gateway: RunningGateway, everything: Store, steps: list[dict[str, Any]], owners: list[str]
) -> None:
    everything.clear()
    for record_id, user in zip(("one", "two", "three", "four"), owners, strict=True):
        body = {**record_of(user, 0), "id": record_id, "user_id": user}
        assert gateway.ask("POST", f"{PATH}/records", body).status_code == 201
    for number, step in enumerate(steps, 1):
        user, index = step["user"], USERS.index(step["user"])
        token = gateway.token(f"store{'.read' if step['is_read_only'] else ''}:fuzz/{user}")
        before = {each.id: (each.version, each.user_id) for each in everything.get_all()}
        method, path, body, params = request_of(step, number)
        answer = gateway.ask(method, path, body, token=token, params=params)
        after = {each.id: (each.version, each.user_id) for each in everything.get_all()}
        theirs = {each: found for each, found in before.items() if found[1] != user}
        assert {each: found for each, found in after.items() if found[1] != user} == theirs
        assert answer.status_code in (200, 201, 400, 403, 404, 409), answer.text
        if step["is_read_only"] or answer.status_code >= 400:
            assert after == before
        if step["scope"] not in (None, user) or (step["is_read_only"] and step["what"] in WRITES):
            assert answer.status_code == 403
        if answer.headers["content-type"] == "application/octet-stream":
            assert answer.content == index.to_bytes(8, "little")
            assert before[step["id"]][1] == user
            continue
        other = USERS[1 - index]
        if answer.status_code < 400:
            assert f"secret of {other}" not in answer.text
        for each in records_in(answer.json()):
            assert (each["user_id"], each["metadata"]) == (user, {"owner": user})
            assert each["tensors"]["t"]["data"] == [index]
            assert (each["vector"]["data"][0] > 0.5) is (user == "ann")


@pytest.mark.parametrize(
    ("scopes", "reads", "writes"),
    [
        (("store",), 200, 201),
        (("store:fuzz",), 200, 201),
        (("store.read",), 200, 403),
        (("store.read:fuzz",), 200, 403),
        (("store.read", "store:fuzz"), 200, 201),
        (("store.read:fuzz", "store:other"), 200, 403),
        (("store.read:fuzz", "store:fuzz/ann"), 200, 201),
        (("store:other",), 403, 403),
        (("store:other/ann",), 403, 403),
        (("execute", "register", "metrics"), 403, 403),
        ((), 403, 403),
        (("store:fuzz/ann", "store:fuzz/bob"), 400, 400),
        (("admin",), 200, 201),
    ],
)
def test_a_scope_grants_what_it_says(gateway: RunningGateway, scopes: tuple[str, ...], reads: int, writes: int) -> None:
    assert gateway.ask("GET", f"{PATH}/records", scopes=scopes).status_code == reads
    assert gateway.ask("POST", f"{PATH}/search", {"query": "x"}, scopes=scopes).status_code == reads
    assert gateway.ask("POST", f"{PATH}/records", {"content": "x"}, scopes=scopes).status_code == writes
    assert gateway.ask("DELETE", f"{PATH}/records", scopes=scopes).status_code == (200 if writes == 201 else writes)


def test_every_route_of_stores_needs_a_token_that_grants_it(gateway: RunningGateway) -> None:
    for route in ROUTES:
        if "/store/" not in route.path:
            continue
        path = route.path.format(store="fuzz", record_id="x", tensor="t")
        body = {} if route.body is not None else None
        for scopes, status in ((("execute", "register", "metrics", "store:other"), 403), (("store.read:other",), 403)):
            assert gateway.ask(route.method, path, body, scopes=scopes).status_code == status, route.path
        assert gateway.ask(route.method, path, body, headers={"authorization": ""}).status_code == 401


def test_a_token_of_several_users_says_which_one_it_means(gateway: RunningGateway) -> None:
    token = gateway.token("store:fuzz/ann", "store.read:fuzz/bob")
    for user, status in (("ann", 201), ("bob", 403), ("eve", 403)):
        answer = gateway.ask("POST", f"{PATH}/records", {"content": "x"}, token=token, params={"scope": user})
        assert answer.status_code == status
    assert gateway.ask("GET", f"{PATH}/records", token=token, params={"scope": "bob"}).status_code == 200
    assert "?scope=USER" in gateway.ask("GET", f"{PATH}/records", token=token).json()["error"]


def test_a_record_of_another_user_is_forbidden_by_the_token_s_or_the_request_s_user(gateway: RunningGateway) -> None:
    single, several = {"content": "x", "user_id": "bob"}, {"records": [{"content": "x"}, {"user_id": "bob"}]}
    for body in (single, several):
        for scope, params in (("store:fuzz/ann", {}), ("store", {"scope": "ann"})):
            answer = gateway.ask("POST", f"{PATH}/records", body, scopes=(scope,), params=params)
            assert (answer.status_code, answer.json()["type"]) == (403, "Forbidden"), answer.text
            assert "the records of the user 'ann' alone, and a record here is of 'bob'" in answer.json()["error"]
    assert gateway.ask("POST", f"{PATH}/records", {**single, "user_id": "ann"}, scopes=("store:fuzz/ann",)).is_success


def test_what_makes_a_token_that_grants_more_keeps_what_it_grants(gateway: RunningGateway) -> None:
    for method, path, needed in (("GET", f"{PATH}/records", "store.read:fuzz"), ("GET", "/metrics", "metrics")):
        answer = gateway.ask(method, path, scopes=("execute", "store:other/a(b"), subject="Ada L")
        command = "tr-mmap token --subject 'Ada L' --scope execute --scope 'store:other/a(b' --scope " + needed
        assert answer.json()["error"] == f"the token does not grant {needed!r}; this makes one that does: {command}"


def test_a_token_of_all_may_bind_itself_to_one_user(gateway: RunningGateway, everything: Store) -> None:
    everything.clear()
    for user in USERS:
        answer = gateway.ask("POST", f"{PATH}/records", {"content": "x"}, scopes=("store",), params={"scope": user})
        assert answer.status_code == 201
    found = gateway.ask("GET", f"{PATH}/records", scopes=("store",), params={"scope": "bob"}).json()["records"]
    assert [each["user_id"] for each in found] == ["bob"]
    assert len(gateway.ask("GET", f"{PATH}/records", scopes=("store",)).json()["records"]) == 2


@given(user=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
@example("a b")
@example("a/b%2F")
@example("é\u00a0\n")
def test_a_user_of_any_name_can_be_granted(user: str) -> None:
    scope = f"store:notes/{quote(user, safe='')}"
    check_scope(scope)
    assert scope.split() == [scope]
    assert store_user({scope}, "notes", writes=True) == user
    assert store_user({scope}, "notes", writes=False, wanted=user) == user
    for store, wanted in (("notes", user + "x"), ("other", None), ("other", user)):
        with pytest.raises(Forbidden):
            store_user({scope}, store, writes=False, wanted=wanted)


@given(st.text(max_size=30))
@example("store:")
@example("store:notes/")
@example("store:notes/a b")
@example("store:notes/é")
@example("store:notes/%zz")
@example("store:notes/%ff")
@example("store:../x")
@example("store:*")
@example("store.write:notes")
@example("store:notes\n")
@example("Store:notes")
def test_what_is_no_scope_grants_nothing_and_is_not_given_out(text: str) -> None:
    if text in ("store", "store.read", "admin"):
        return
    try:
        check_scope(text)
    except ValueError:
        with pytest.raises((Forbidden, BadRequest)):
            store_user({text}, "notes", writes=False)


def test_the_command_refuses_a_scope_that_is_none_and_makes_others(gateway: RunningGateway) -> None:
    config = gateway.folder / "tr_mmap.toml"
    made = tr_mmap("token", "--config", config, "--scope", "store:notes/Ada L")
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr.startswith("tr-mmap: there is no scope 'store:notes/Ada L'; there are execute, ")
    assert "store:notes/Ada%20L" in made.stderr
    assert made.stderr.count("\n") == 1
    made = tr_mmap("token", "--config", config, "--scope", "store:fuzz/Ada%20L", "--scope", "store.read:other")
    token = made.stdout.strip()
    assert gateway.ask("POST", f"{PATH}/records", {"id": "of ada"}, token=token).status_code == 201
    assert gateway.ask("GET", f"{PATH}/records/of%20ada", token=token).json()["user_id"] == "Ada L"
    assert gateway.ask("GET", "/api/v1/store/other/records", token=token).status_code == 200
