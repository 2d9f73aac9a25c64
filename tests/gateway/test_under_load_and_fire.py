"""The scheduler over HTTP, and what happens to a gateway: full queues, killed processes, vanished clients, its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from gateways import RunningGateway, configure_with_key, running
from support import BOUND_S, SHM, has_ended, wait_until

from tr_mmap.gateway.config import Config
from tr_mmap.gateway.tokens import Tokens, read_key_file

EXECUTE = "/api/v1/python/execute"
SPIN = {"code": "while True: pass", "timeout_ms": 86_400_000}
NARROW = """
[sandbox]
wall_ms = 86_400_000
cpu_ms = 86_400_000
[scheduler]
max_workers = 1
queue_size = 3
max_per_token = 3
ageing_s = 1e6
breaker_failures = 2
breaker_s = 1.0
"""
# Each process of it tells its number once, and then spins: what is asked again gets the number of another one.
ONCE = """
import os, sys
def once(inputs):
    if hasattr(sys, "was_asked"):
        while True:
            pass
    sys.was_asked = True
    return os.getpid()
"""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that has room for little, in its order of arrival."""
    with running(tmp_path_factory.mktemp("narrow"), NARROW) as started:
        yield started


def compute(gateway: RunningGateway, body: dict[str, Any], **options: Any) -> str:
    """The path of a task that was started."""
    response = gateway.ask("POST", "/api/v1/compute", body, **options)
    assert response.status_code == 202, response.text
    return str(response.headers["location"])


def info(gateway: RunningGateway, path: str) -> dict[str, Any]:
    found: dict[str, Any] = gateway.ask("GET", path).json()
    return found


def wait_for(gateway: RunningGateway, path: str, status: str) -> dict[str, Any]:
    wait_until(lambda: info(gateway, path)["status"] == status)
    return info(gateway, path)


def cancel(gateway: RunningGateway, *paths: str) -> None:
    for path in paths:
        assert gateway.ask("PUT", path + "/cancel").status_code in (202, 409)
        wait_until(lambda path=path: info(gateway, path)["ended_at"])


def queue(gateway: RunningGateway) -> dict[str, float]:
    found: dict[str, float] = gateway.ask("GET", "/api/v1/scheduler/status").json()["queues"]["python"]
    return found


# -- queues ----------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_a_503_and_a_quota_a_429_with_the_time_to_try_again(narrow: RunningGateway) -> None:
    paths = [compute(narrow, SPIN)]
    wait_for(narrow, paths[0], "running")
    paths += [compute(narrow, SPIN) for _ in range(2)]
    for route in (EXECUTE, "/api/v1/compute"):
        answer = narrow.ask("POST", route, SPIN)
        assert (answer.status_code, answer.json()["type"]) == (429, "QuotaExceeded")
        assert int(answer.headers["retry-after"]) >= 1
    paths.append(compute(narrow, SPIN, subject="eve"))
    for route in (EXECUTE, "/api/v1/compute"):
        answer = narrow.ask("POST", route, SPIN, subject="eve")
        assert (answer.status_code, answer.json()["type"]) == (503, "Overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    cancel(narrow, *paths)
    assert narrow.execute(code="output = 1") == 1
    assert (queue(narrow)["waiting"], queue(narrow)["running"]) == (0, 0)


def test_the_most_urgent_task_begins_first(narrow: RunningGateway) -> None:
    first = compute(narrow, SPIN, subject="eve")
    wait_for(narrow, first, "running")
    paths = {each: compute(narrow, {"code": "output = 1", "priority": each}) for each in (-5, 5, 0)}
    cancel(narrow, first)
    began = {each: wait_for(narrow, path, "success")["started_at"] for each, path in paths.items()}
    assert sorted(began, key=lambda each: began[each]) == [5, 0, -5]


def test_a_deadline_in_the_queue_is_a_504(narrow: RunningGateway) -> None:
    first = compute(narrow, SPIN)
    wait_for(narrow, first, "running")
    answer = narrow.ask("POST", EXECUTE, {"code": "output = 1", "timeout_ms": 50})
    assert (answer.status_code, answer.json()["type"]) == (504, "DeadlineExceeded")
    assert "before the run's turn" in answer.json()["error"]
    cancel(narrow, first)


def test_a_client_that_vanishes_leaves_the_queue(narrow: RunningGateway) -> None:
    first = compute(narrow, SPIN)
    wait_for(narrow, first, "running")
    body = json.dumps(SPIN).encode()
    with socket.create_connection(narrow.address) as client:
        client.sendall(
            b"POST /api/v1/python/execute HTTP/1.1\r\nHost: localhost\r\n"
            + f"Authorization: Bearer {narrow.token('execute')}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_until(lambda: queue(narrow)["waiting"] == 1)
    wait_until(lambda: queue(narrow)["waiting"] == 0)
    assert info(narrow, first)["status"] == "running"
    cancel(narrow, first)


def test_a_request_id_that_comes_twice_at_once_is_two_runs(gateway: RunningGateway) -> None:
    headers = {"x-request-id": "twice"}
    first = compute(gateway, SPIN, headers=headers)
    wait_for(gateway, first, "running")
    answer = gateway.ask("POST", EXECUTE, {"code": "output = 1"}, headers=headers)
    assert (answer.status_code, answer.json()["request_id"]) == (200, "twice")
    second = compute(gateway, SPIN, headers=headers)
    wait_for(gateway, second, "running")
    cancel(gateway, second)
    assert info(gateway, first)["status"] == "running"  # the other one was cancelled
    cancel(gateway, first)
    assert info(gateway, first)["error"]["request_id"] == "twice"


def test_a_breaker_opens_and_closes_again(narrow: RunningGateway) -> None:
    narrow.register("brittle", "import os\ndef brittle(inputs):\n    inputs['ends'] and os._exit(3)\n    return 1\n")
    bad, good = ({"algorithm": "brittle", "inputs": {"ends": each}} for each in (True, False))
    for _ in range(2):
        assert narrow.ask("POST", EXECUTE, bad).status_code == 422
    answer = narrow.ask("POST", EXECUTE, good)
    assert (answer.status_code, answer.json()["type"]) == (503, "CircuitOpen")
    assert int(answer.headers["retry-after"]) >= 1
    assert narrow.ask("GET", "/api/v1/scheduler/status").json()["open_breakers"] == ["brittle"]
    assert narrow.execute(code="output = 1") == 1  # others are not concerned
    wait_until(lambda: narrow.ask("POST", EXECUTE, good).status_code == 200)
    assert narrow.ask("GET", "/api/v1/scheduler/status").json()["open_breakers"] == []


# -- processes that are killed ---------------------------------------------------------------------------------------


def spinning(gateway: RunningGateway, name: str, **more: Any) -> tuple[psutil.Process, str]:
    """The process of a run that spins, and the path of its task."""
    gateway.register(name, ONCE, function="once", reuse=True, **more)
    process = psutil.Process(gateway.execute(algorithm=name))
    used_s = process.cpu_times().user
    path = compute(gateway, {"algorithm": name, "timeout_ms": more.get("timeout_ms", 86_400_000)})
    wait_until(lambda: process.cpu_times().user > used_s + 0.02)
    return process, path


def test_a_run_whose_process_was_killed_is_tried_again(narrow: RunningGateway) -> None:
    process, path = spinning(narrow, "again")
    process.kill()
    assert wait_for(narrow, path, "success")["result"] != process.pid
    assert queue(narrow)["retried_total"] == 1


def test_a_run_that_may_not_be_tried_again_is_not(narrow: RunningGateway) -> None:
    process, path = spinning(narrow, "never", idempotent=False)
    before = queue(narrow)["retried_total"]
    process.kill()
    error = wait_for(narrow, path, "failed")["error"]
    assert (error["status_code"], error["type"]) == (503, "SandboxBroken")
    assert str(process.pid) not in error["error"]
    assert queue(narrow)["retried_total"] == before


def test_a_stopped_process_ends_at_its_limit(narrow: RunningGateway) -> None:
    process, path = spinning(narrow, "stopped", timeout_ms=1500)
    process.suspend()
    assert wait_for(narrow, path, "failed")["error"]["type"] in ("DeadlineExceeded", "LimitExceeded")
    assert has_ended(process.pid)
    assert narrow.execute(code="output = 1") == 1


def is_over(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_zygote_is_replaced_and_no_request_sees_it(narrow: RunningGateway) -> None:
    assert narrow.execute(code="output = 1") == 1
    zygotes = psutil.Process(narrow.process.pid).children()
    for zygote in zygotes:
        zygote.kill()
    wait_until(lambda: all(map(is_over, zygotes)))  # as they end, all tries of a run may meet them
    for number in range(5):
        assert narrow.execute(code="output = inputs['x']", inputs={"x": number}) == number


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_registrations_leave_nothing(gateway: RunningGateway, is_full: bool) -> None:
    own = psutil.Process(gateway.process.pid)

    most = [0, 0, 0]  # while sandboxes are refilled there are fewer

    def register_and_forget(count: int) -> None:
        for number in range(count):
            most[:] = map(max, most, counted())
            gateway.register("passing", f"output = {number}", reuse=bool(number % 2))
            if number % 10 < 2:
                assert gateway.execute(algorithm="passing") == number
            assert gateway.ask("DELETE", "/api/v1/python/algorithms/passing").status_code == 200

    def counted() -> tuple[int, int, int]:
        return own.num_fds(), len(own.children(recursive=True)), own.num_threads()

    register_and_forget(30)
    before, rss = list(most), own.memory_info().rss
    register_and_forget(1000 if is_full else 60)
    # Sandboxes keep some memory for the next runs; of what each of these leaves, there would be as many.
    wait_until(lambda: all(now < then + 12 for now, then in zip(counted(), before, strict=True)))
    assert own.memory_info().rss < rss + (16 << 20)


# -- its end ---------------------------------------------------------------------------------------------------------


def test_at_its_end_a_gateway_lets_runs_go_on_and_takes_no_others(folder: Path) -> None:
    with running(folder) as gateway, ThreadPoolExecutor() as threads:
        code = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\noutput = 'done'"
        token = gateway.token("execute")
        headers = {"authorization": f"Bearer {token}"}
        answer = threads.submit(
            httpx.post, gateway.url + EXECUTE, json={"code": code}, headers=headers, timeout=BOUND_S
        )
        path = compute(gateway, {"code": code})
        wait_until(lambda: queue(gateway)["running"] == 2)
        with httpx.stream("GET", gateway.url + path + "/events", headers=headers, timeout=BOUND_S) as events:
            gateway.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not _listens(gateway))
            assert answer.result().json()["result"] == "done"
            assert "event: success" in list(events.iter_lines())


def _listens(gateway: RunningGateway) -> bool:
    try:
        with socket.create_connection(gateway.address):
            return True
    except OSError:
        return False


def test_at_its_end_a_gateway_ends_what_does_not_end_by_itself(folder: Path) -> None:
    with running(folder, server="drain_s = 0.2") as gateway, ThreadPoolExecutor() as threads:
        path = compute(gateway, SPIN)
        wait_for(gateway, path, "running")
        processes = psutil.Process(gateway.process.pid).children(recursive=True)
        headers = {"authorization": f"Bearer {gateway.token('execute')}"}
        with httpx.stream("GET", gateway.url + path + "/events", headers=headers, timeout=BOUND_S) as events:
            rest = threads.submit(lambda: [each for each in events.iter_lines() if each.startswith("event")])
            gateway.process.send_signal(signal.SIGTERM)
            assert rest.result()[-1] == "event: cancelled"
        assert gateway.end() == 0
        assert all(has_ended(each.pid) for each in processes)


def test_a_killed_gateway_leaves_no_process_and_no_file(folder: Path) -> None:
    workers = '[workers.math]\nscript = "default"\ncount = 2\n'
    with running(folder, workers) as gateway:
        gateway.expected_status = -signal.SIGKILL
        path = compute(gateway, SPIN)
        wait_for(gateway, path, "running")
        processes = psutil.Process(gateway.process.pid).children(recursive=True)
        assert len(processes) >= 5  # a zygote, a run, a spare, two workers
        gateway.process.kill()
        assert all(has_ended(each.pid) for each in processes)
    workspace = Path(os.environ["TR_WORKSPACE"])
    wait_until(lambda: not any(workspace.rglob("*")))
    assert not [each for each in os.listdir(SHM) if f"_{gateway.process.pid}_" in each]  # its semaphores


# -- mounted ---------------------------------------------------------------------------------------------------------


def test_a_mounted_gateway_starts_with_its_first_request(folder: Path) -> None:
    from fastapi import FastAPI

    from tr_mmap.gateway import Gateway

    path = configure_with_key(folder)

    async def main() -> None:
        gateway = Gateway.from_toml(path)
        outer = FastAPI()
        outer.mount("/ai", gateway.asgi_app)
        token = Tokens(read_key_file(folder / "tr_mmap.key"), "tr-mmap").make("ada", ["admin"], 60)
        transport = httpx.ASGITransport(outer)
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost/ai", headers=headers) as client:
            try:
                answers = await asyncio.gather(
                    *(client.post(EXECUTE, json={"code": "output = 6 * 7"}, timeout=BOUND_S) for _ in range(4))
                )
                assert [each.json()["result"] for each in answers] == [42] * 4
                started = await client.post("/api/v1/compute", json={"code": "output = 1"})
                assert started.headers["location"].startswith("/ai/api/v1/task/")
                assert (await client.get("/healthz")).json()["status"] == "ok"
            finally:
                await gateway.aclose()
                await gateway.aclose()
            assert (await client.get("/healthz")).status_code == 503
            assert (await client.post(EXECUTE, json={"code": "output = 1"})).status_code == 503

    before = psutil.Process().children()
    asyncio.run(main())
    assert psutil.Process().children() == before


def test_a_mounted_gateway_that_cannot_start_says_so_and_leaves_nothing(folder: Path) -> None:
    from tr_mmap.gateway import Gateway

    path = configure_with_key(folder, '[workers.none]\nscript = "nowhere.py"\n')

    async def main() -> None:
        gateway = Gateway(Config.from_toml(path))
        transport = httpx.ASGITransport(gateway.asgi_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for _ in range(2):
                answer = await client.get("/healthz")
                assert answer.status_code == 500
                assert "nowhere" not in answer.text
        await gateway.aclose()

    before = psutil.Process().children()
    asyncio.run(main())
    assert psutil.Process().children() == before
