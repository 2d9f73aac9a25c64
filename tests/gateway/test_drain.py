"""A gateway that is about to end: it says so, takes nothing new, and gives what has come of tasks until all is over."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import pytest
from blocking_clients import KINDS, client_of
from gateways import configure_with_key, running
from support import WORKERS, wait_until

from tr_mmap.gateway import Gateway
from tr_mmap.gateway.errors import Overloaded

CONFIG = f"""
[workers.gated]
script = "{WORKERS / "gateway_worker.py"}"
[python]
enabled = false
"""


@pytest.mark.parametrize("kind", KINDS)
def test_while_it_drains_it_says_so_and_gives_results_and_takes_nothing_new(folder: Path, kind: str) -> None:
    path, gate = folder / "notes", folder / "gate"
    inputs = {"path": str(path), "gate": str(gate)}
    with running(folder, CONFIG, server="drain_s = 60") as gateway:
        token = gateway.token("execute")
        body = {"algorithm": "gated", "function": "pid"}
        ended = gateway.ask("POST", "/api/v1/compute", body).headers["location"]
        wait_until(lambda: gateway.ask("GET", ended).json()["status"] == "success")
        body = {"algorithm": "gated", "function": "note_and_wait", "inputs": inputs}
        held = gateway.ask("POST", "/api/v1/compute", body).headers["location"]
        wait_until(path.exists)
        gateway.process.send_signal(signal.SIGTERM)
        wait_until(lambda: gateway.ask("GET", "/healthz").status_code == 503)
        assert gateway.ask("GET", "/healthz").json()["status"] == "draining"
        assert gateway.ask("GET", ended).json()["status"] == "success"
        assert gateway.ask("GET", held).json()["status"] == "running"
        assert gateway.ask("GET", ended, subject="eve", scopes=("execute",)).status_code == 404
        assert gateway.ask("GET", ended, token="none").status_code == 401
        assert gateway.ask("GET", "/healthz", headers={"host": "evil.example"}).status_code == 400
        with client_of(kind, gateway.url, token, retry=False) as client:
            assert client.health().status == "draining"
            task = client.task(held.rpartition("/")[2])
            with pytest.raises(Overloaded):
                client.algorithms()
        for method, where in (("POST", "/api/v1/python/execute"), ("PUT", f"{held}/cancel"), ("GET", "/metrics")):
            answer = gateway.ask(method, where)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        with client_of(kind, gateway.url, token) as client:
            task = client.task(held.rpartition("/")[2])
            gate.touch()
            assert task.result().value == "paid"
    assert path.read_text() == "done\n"
    probes = [each for each in gateway.logged() if each.get("route") == "/healthz"]
    assert {each["status"] for each in probes} >= {503}


def test_a_gateway_that_ends_before_it_has_started_does_not_start_for_those_who_ask_how_it_is(folder: Path) -> None:
    config = configure_with_key(folder, "[python]\nenabled = false")

    async def main() -> None:
        gateway = Gateway.from_toml(config)
        await gateway.aclose()
        transport = httpx.ASGITransport(gateway.asgi_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/healthz")).status_code == 503
        assert not gateway.has_started

    asyncio.run(main())
