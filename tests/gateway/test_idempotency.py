"""Idempotency keys: the same request again is answered as before, and done once."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import httpx
import pytest
from gateways import RunningGateway
from starlette.responses import Response
from support import wait_until

from tr_mmap.gateway.calls import Call
from tr_mmap.gateway.idempotency import Replays
from tr_mmap.gateway.tokens import Principal

EXECUTE = "/api/v1/python/execute"
COMPUTE = "/api/v1/compute"
ALGORITHMS = "/api/v1/python/algorithms"
RANDOM = {"code": "import os; output = os.urandom(8).hex()"}


def ask(gateway: RunningGateway, path: str, body: object, key: str, **more: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key, **more.pop("headers", {})}
    return gateway.ask("POST", path, body, headers=headers, **more)


def is_replay(response: httpx.Response) -> bool:
    return response.headers.get("idempotency-replayed") == "true"


@pytest.mark.parametrize(
    ("path", "body"), [(EXECUTE, RANDOM), (COMPUTE, RANDOM), (ALGORITHMS, {"name": "kept", "code": "output = 1"})]
)
def test_the_same_request_gets_the_same_response_and_is_done_once(
    gateway: RunningGateway, path: str, body: dict[str, Any]
) -> None:
    first = ask(gateway, path, body, f"once{path}")
    again = ask(gateway, path, body, f"once{path}")
    assert first.is_success, first.text
    assert (is_replay(first), is_replay(again)) == (False, True)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers.get("location") == first.headers.get("location")
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert ask(gateway, path, body, f"twice{path}").json() != first.json()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", f"{ALGORITHMS}/x", None),
        ("POST", "/api/v1/python/dependencies", {"packages": ["numpy"]}),
        ("POST", "/api/v1/python/models/x", {}),
        ("PUT", f"/api/v1/task/{'0' * 32}/cancel", None),
        ("PUT", "/api/v1/store/x", {}),
        ("PATCH", "/api/v1/store/x/records/y", {}),
        ("POST", "/api/v1/store/x/search", {"query": "z"}),
    ],
)
def test_a_key_where_it_would_do_nothing_is_refused(gateway: RunningGateway, method: str, path: str, body: Any) -> None:
    headers = {"Idempotency-Key": "nothing"}
    answer = gateway.ask(method, path, body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert "takes no Idempotency-Key" in answer.json()["error"]
    assert "takes no" not in gateway.ask(method, path, body).text
    assert gateway.ask("GET", ALGORITHMS, headers=headers).status_code == 200  # which changes nothing in any case


def test_a_failure_of_the_algorithm_is_kept_as_its_result_is(gateway: RunningGateway) -> None:
    body = {"code": "import os; raise ValueError(os.urandom(8).hex())"}
    first, again = (ask(gateway, EXECUTE, body, "failure") for _ in range(2))
    assert (first.status_code, is_replay(again)) == (422, True)
    assert again.content == first.content


def test_a_binary_result_is_kept_with_its_form(gateway: RunningGateway) -> None:
    body = {"code": "import numpy as np; output = np.arange(100)"}
    binary = {"accept": "application/octet-stream"}
    first, again = (ask(gateway, EXECUTE, body, "binary", headers=binary) for _ in range(2))
    assert (again.content, is_replay(again)) == (first.content, True)
    for name in ("content-type", "tr-json-length", "content-length"):
        assert again.headers[name] == first.headers[name]
    assert ask(gateway, EXECUTE, body, "binary").status_code == 422


def test_another_request_with_the_same_key_is_refused(gateway: RunningGateway) -> None:
    assert ask(gateway, EXECUTE, RANDOM, "used").is_success
    for path, body in ((EXECUTE, {**RANDOM, "priority": 1}), (COMPUTE, RANDOM)):
        other = ask(gateway, path, body, "used")
        assert (other.status_code, other.json()["type"]) == (422, "KeyReused")
    assert is_replay(ask(gateway, EXECUTE, RANDOM, "used"))


def test_subjects_have_their_keys_apart(gateway: RunningGateway) -> None:
    first = ask(gateway, EXECUTE, RANDOM, "shared", subject="ada")
    other = ask(gateway, EXECUTE, RANDOM, "shared", subject="eve")
    assert not is_replay(other)
    assert other.json()["result"] != first.json()["result"]
    nobody = ask(gateway, EXECUTE, RANDOM, "shared", token="nonsense")
    assert nobody.status_code == 401


def test_while_the_first_goes_on_the_second_is_told_to_wait(gateway: RunningGateway) -> None:
    body = {"code": "while True: pass", "timeout_ms": 60_000}

    def running() -> int:
        queues = gateway.ask("GET", "/api/v1/scheduler/status").json()["queues"]
        return int(queues.get("python", {}).get("running", 0))

    raw = json.dumps(body).encode()
    with socket.create_connection(gateway.address) as first:  # which hangs up at the end
        first.sendall(
            f"POST {EXECUTE} HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: slow\r\nContent-Length: {len(raw)}\r\n"
            f"Authorization: Bearer {gateway.token('admin')}\r\n\r\n".encode()
            + raw
        )
        wait_until(lambda: running() == 1)
        second = gateway.ask("POST", EXECUTE, content=raw, headers={"Idempotency-Key": "slow"})
        assert (second.status_code, second.json()["type"]) == (409, "KeyInUse")
        assert int(second.headers["retry-after"]) >= 1
        assert ask(gateway, EXECUTE, RANDOM, "slow").status_code == 422
    wait_until(lambda: running() == 0)


def test_what_was_not_done_may_be_tried_again_with_the_same_key(gateway: RunningGateway) -> None:
    body = {"algorithm": "comes-later", "inputs": {}}
    assert ask(gateway, EXECUTE, body, "later").status_code == 404
    gateway.register("comes-later", "output = 1")
    again = ask(gateway, EXECUTE, body, "later")
    assert (again.status_code, is_replay(again)) == (200, False)
    slow = {"code": "while True: pass", "timeout_ms": 50}
    assert [ask(gateway, EXECUTE, slow, "slower").status_code for _ in range(2)] == [504, 504]


@pytest.mark.parametrize("key", ["", "x" * 129, "two words", "ü"])
def test_a_key_that_is_none_is_refused(gateway: RunningGateway, key: str) -> None:
    response = ask(gateway, EXECUTE, RANDOM, key.encode("latin-1"))  # type: ignore[arg-type]
    assert response.status_code == 400
    assert "Idempotency-Key" in response.json()["error"]
    assert ask(gateway, EXECUTE, RANDOM, "!~" * 64).is_success


# -- how much is kept ------------------------------------------------------------------------------------------------


def replayed(replays: Replays, key: str, size: int = 0, subject: str = "ada") -> bool:
    """Whether a request with this key is answered from what is kept."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": EXECUTE,
        "query_string": b"",
        "headers": [(b"idempotency-key", key.encode()), (b"host", b"localhost")],
    }
    call = Call(scope, receive, 1 << 20, 1.0, principal=Principal(subject, frozenset(), "t", 0.0))

    async def do() -> Response:
        return Response(b"x" * size)

    return "idempotency-replayed" in asyncio.run(replays.answer(call, do)).headers


def test_responses_are_kept_for_their_time() -> None:
    now_s = [0.0]
    replays = Replays(keep_s=600, clock=lambda: now_s[0])
    assert not replayed(replays, "a")
    now_s[0] = 599
    assert replayed(replays, "a")
    now_s[0] = 600
    assert not replayed(replays, "a")
    assert replayed(replays, "a")


def test_responses_are_kept_up_to_a_number_and_a_size_the_newest_first() -> None:
    few = Replays(most=2)
    assert [replayed(few, key) for key in ("a", "b", "c", "c", "b", "a")] == [False, False, False, True, True, False]
    small = Replays(most_nbytes=40 << 10)
    for key in "abcdef":
        assert not replayed(small, key, 8 << 10)
    assert [replayed(small, key, 8 << 10) for key in ("f", "e", "a")] == [True, True, False]
    assert not replayed(small, "large", 20 << 10)
    assert not replayed(small, "large", 20 << 10)


@pytest.mark.parametrize(("bounds", "size"), [({"most": 4}, 0), ({"most_nbytes": 40 << 10}, 8 << 10)])
def test_nobody_s_responses_go_because_of_somebody_else_s(bounds: dict[str, int], size: int) -> None:
    replays = Replays(**bounds)  # type: ignore[arg-type]
    assert not replayed(replays, "first", size)
    for number in range(20):
        assert not replayed(replays, str(number), size, subject="eve")
    assert replayed(replays, "first", size)
    assert replayed(replays, "19", size, subject="eve")
    assert not replayed(replays, "0", size, subject="eve")
    assert replays._nbytes.total() == sum(each.nbytes for each in replays._kept.values())
