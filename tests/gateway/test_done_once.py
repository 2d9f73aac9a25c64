"""What must not be done twice is done once: whatever is lost, ended or too large, and however often the client asks."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from blocking_clients import KINDS, client_of
from gateways import RunningGateway, running
from starlette.responses import Response
from support import WORKERS, wait_until

from tr_mmap.errors import WorkerDied
from tr_mmap.gateway.calls import Call
from tr_mmap.gateway.idempotency import Replays
from tr_mmap.gateway.tokens import Principal

EXECUTE = "/api/v1/python/execute"
CONFIG = f"""
[workers.once]
script = "{WORKERS / "gateway_worker.py"}"
[workers.again]
script = "{WORKERS / "gateway_worker.py"}"
idempotent = true
[scheduler]
breaker_failures = 0
retries = 1
[python]
enabled = false
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running(tmp_path_factory.mktemp("once"), CONFIG) as started:
        yield started


def times(path: Path) -> int:
    """How often it was done."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def peers(gateway: RunningGateway) -> set[int]:
    """The ports of those who are connected with it."""
    found = psutil.Process(gateway.process.pid).net_connections("tcp")
    return {each.raddr.port for each in found if each.raddr}


def ask(gateway: RunningGateway, body: dict[str, Any], key: str) -> httpx.Response:
    return gateway.ask("POST", EXECUTE, body, headers={"Idempotency-Key": key})


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_does_not_ask_again_for_what_a_worker_may_have_done(
    gateway: RunningGateway, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "notes"
    with client_of(kind, gateway.url, gateway.token("execute")) as client, pytest.raises(WorkerDied):
        client._call(_ask_of(path))
    assert times(path) == 1


def _ask_of(path: Path) -> Any:
    from tr_mmap.gateway.client.messages import execute

    fields = {"timeout_ms": None, "function": "note_and_die"}
    return execute("once", None, {"path": str(path)}, framework=None, with_key=True, **fields)


def test_the_failure_of_what_may_have_been_done_is_kept_under_its_key(gateway: RunningGateway, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    body = {"algorithm": "once", "function": "note_and_die", "inputs": {"path": str(path)}}
    first, again = (ask(gateway, body, "died") for _ in range(2))
    for answer in (first, again):
        assert (answer.status_code, answer.json()["type"]) == (503, "WorkerDied")
        assert "retry-after" not in answer.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert times(path) == 1


def test_what_may_be_done_twice_may_be_asked_again_with_its_key(gateway: RunningGateway, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    body = {"algorithm": "again", "function": "note_and_die", "inputs": {"path": str(path)}}
    for number in (1, 2):
        answer = ask(gateway, body, "died-often")
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), answer.text
        assert times(path) == 2 * number  # the gateway itself has asked twice


def test_what_was_not_begun_may_be_asked_again_with_its_key(gateway: RunningGateway, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    body = {"algorithm": "once", "function": "note_and_wait", "timeout_ms": 1e-6}
    body["inputs"] = {"path": str(path), "gate": str(tmp_path)}
    answers = [ask(gateway, body, "late") for _ in range(2)]
    assert [each.status_code for each in answers] == [504, 504]
    assert not any("idempotency-replayed" in each.headers for each in answers)
    assert times(path) == 0


def test_a_run_whose_client_is_lost_goes_on_and_gives_its_result_to_the_same_key(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    path, gate = tmp_path / "notes", tmp_path / "gate"
    inputs = {"path": str(path), "gate": str(gate)}
    raw = json.dumps({"algorithm": "once", "function": "note_and_wait", "inputs": inputs}).encode()

    def again() -> httpx.Response:
        return gateway.ask("POST", EXECUTE, content=raw, headers={"Idempotency-Key": "lost"})

    with socket.create_connection(gateway.address) as first:
        first.sendall(
            f"POST {EXECUTE} HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: lost\r\nContent-Length: {len(raw)}\r\n"
            f"Authorization: Bearer {gateway.token('admin')}\r\n\r\n".encode()
            + raw
        )
        wait_until(lambda: times(path) == 1)
        port = first.getsockname()[1]
    wait_until(lambda: port not in peers(gateway))  # it has noticed
    for _ in range(20):
        answer = again()
        assert (answer.status_code, answer.json()["type"]) == (409, "KeyInUse")
    gate.touch()
    wait_until(lambda: again().status_code != 409)
    assert (again().status_code, again().json()["result"]) == (200, "paid")
    assert times(path) == 1


def test_a_run_whose_client_is_lost_is_ended_if_it_may_be_done_again(gateway: RunningGateway, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    inputs = {"path": str(path), "gate": str(tmp_path / "never")}
    raw = json.dumps({"algorithm": "again", "function": "note_and_wait", "inputs": inputs}).encode()
    with socket.create_connection(gateway.address) as first:
        first.sendall(
            f"POST {EXECUTE} HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: gone\r\nContent-Length: {len(raw)}\r\n"
            f"Authorization: Bearer {gateway.token('admin')}\r\n\r\n".encode()
            + raw
        )
        wait_until(lambda: times(path) == 1)
    queues = "/api/v1/scheduler/status"
    wait_until(lambda: gateway.ask("GET", queues).json()["queues"]["worker:again"]["running"] == 0)


# -- what is kept of it ----------------------------------------------------------------------------------------------


def call_of(key: str) -> Call:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    headers = [(b"idempotency-key", key.encode()), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": EXECUTE, "query_string": b"", "headers": headers}
    return Call(scope, receive, 1 << 20, 1.0, principal=Principal("ada", frozenset(), "t", 0.0))


async def _never() -> Response:
    raise AssertionError("it was done twice")


def test_a_server_that_ends_the_request_leaves_a_conflict_for_its_key() -> None:
    async def main() -> Response:
        replays, call, begun = Replays(), call_of("a"), asyncio.Event()

        async def do() -> Response:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                call.is_final = True
            raise AssertionError

        first = asyncio.create_task(replays.answer(call, do))
        await begun.wait()
        first.cancel()
        await asyncio.wait([first])
        return await replays.answer(call_of("a"), _never)

    answer = asyncio.run(main())
    assert (answer.status_code, json.loads(bytes(answer.body))["type"]) == (409, "Conflict")
    assert "retry-after" not in answer.headers


def test_a_result_that_is_too_large_to_be_kept_leaves_a_conflict_for_its_key() -> None:
    async def main() -> Response:
        replays, call = Replays(most_nbytes=40 << 10), call_of("a")

        async def do() -> Response:
            call.is_final = True
            return Response(b"x" * (20 << 10))

        assert (await replays.answer(call, do)).status_code == 200
        return await replays.answer(call_of("a"), _never)

    answer = asyncio.run(main())
    assert answer.status_code == 409
    assert "too large to be kept" in json.loads(bytes(answer.body))["error"]
