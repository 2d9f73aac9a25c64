"""Trusted workers behind the route of runs: programs of the owner, in plain sessions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from blocking_clients import KINDS, client_of
from gateways import RunningGateway, configure_with_key, running, tr_mmap
from support import WORKERS, has_ended, wait_until

from tr_mmap.gateway.errors import NotFound

EXECUTE = "/api/v1/python/execute"
SCRIPT = WORKERS / "gateway_worker.py"
CONFIG = f"""
[workers.one]
script = "{SCRIPT}"
[workers.few]
script = "{SCRIPT}"
count = 3
commands = ["pid", "die_once", "dye_once"]
idempotent = true
[workers.math]
script = "default"
[scheduler]
breaker_failures = 0
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running(tmp_path_factory.mktemp("workers"), CONFIG) as started:
        yield started


def ask(gateway: RunningGateway, worker: str, command: str | None, **more: Any) -> Any:
    return gateway.ask("POST", EXECUTE, {"algorithm": worker, "function": command, **more})


def result(gateway: RunningGateway, worker: str, command: str, **inputs: Any) -> Any:
    answer = ask(gateway, worker, command, inputs=inputs)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def tensor(*data: float) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(data)], "data": list(data)}


def listed(gateway: RunningGateway) -> dict[str, Any]:
    return {each["name"]: each for each in gateway.ask("GET", "/api/v1/workers").json()["workers"]}


def test_a_command_gets_tensors_and_words_and_gives_tensors_or_a_text(gateway: RunningGateway) -> None:
    assert result(gateway, "one", "scale", x=tensor(1, 2), factor=2.5) == tensor(2.5, 5)
    assert result(gateway, "one", "halves", x=tensor(1, 2, 3, 4)) == {
        "result_0": tensor(1, 2),
        "result_1": tensor(3, 4),
    }
    assert result(gateway, "one", "say", text="hello") == "hello"
    assert result(gateway, "one", "say", text="hello", loud=True, other=None) == "HELLO"
    answer = result(gateway, "math", "matmul", a={**tensor(1, 2), "shape": [1, 2], "data": [[1, 2]]}, b=tensor(3, 4))
    assert answer["data"] == [11]


def test_workers_are_listed_with_their_commands(gateway: RunningGateway) -> None:
    assert listed(gateway)["few"] == {
        "name": "few",
        "count": 3,
        "alive": 3,
        "commands": ["pid", "die_once", "dye_once"],
        "idempotent": True,
    }
    queues = gateway.ask("GET", "/api/v1/scheduler/status").json()["queues"]
    assert (queues["worker:few"]["workers"], queues["worker:one"]["workers"]) == (3, 1)


@pytest.mark.parametrize(
    ("worker", "more", "status", "said"),
    [
        ("few", {"function": "spin"}, 403, "offers pid, die_once"),
        ("few", {}, 400, "pid, die_once"),
        ("one", {"function": "nope"}, 422, "nope"),
        (
            "one",
            {"function": "say", "inputs": {"text": "two words"}},
            400,
            "the input 'text': 'two words' is not one word",
        ),
        ("one", {"function": "say", "inputs": {"text": ""}}, 400, "not one word"),
        ("one", {"function": "say", "inputs": {"text": [1]}}, 400, "'text'"),
        ("one", {"function": " ", "inputs": {}}, 400, "command"),
    ],
)
def test_a_request_with_a_mistake_says_which(
    gateway: RunningGateway, worker: str, more: dict[str, Any], status: int, said: str
) -> None:
    answer = gateway.ask("POST", EXECUTE, {"algorithm": worker, **more})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


@pytest.mark.parametrize("kind", KINDS)
def test_clients_run_commands_and_list_workers(gateway: RunningGateway, kind: str) -> None:
    with client_of(kind, gateway.url, gateway.token("execute")) as client:
        x = np.float32([1, 2])
        assert client.run("one", {"x": x, "factor": 2.5}, function="scale").value.tolist() == [2.5, 5]
        assert {each.name: each.count for each in client.workers()} == {"one": 1, "few": 3, "math": 1}
        with pytest.raises(NotFound):
            client.run("two", function="scale")


def test_a_command_that_is_offered_and_not_there_tells_the_log_and_no_client_the_others(
    gateway: RunningGateway,
) -> None:
    answer = ask(gateway, "few", "dye_once")
    assert (answer.status_code, answer.json()["type"]) == (422, "UnknownCommand")
    assert "knows no command 'dye_once'" in answer.json()["error"]
    assert "spin" not in answer.text
    wait_until(lambda: any(each.get("what") == "dye_once" for each in gateway.logged()))
    assert "spin" in ask(gateway, "one", "nope").text  # where all are offered, they are told


@pytest.mark.parametrize("command", ["exit", " exit ", "exit\n", "\u2003exit", "$release", " $release", "$", "$0"])
def test_words_of_the_worker_s_own_protocol_are_refused_and_end_nothing(gateway: RunningGateway, command: str) -> None:
    before = result(gateway, "one", "pid")
    answer = ask(gateway, "one", command)
    assert (answer.status_code, answer.json()["type"]) == (403, "Forbidden"), answer.text
    assert gateway.ask("POST", "/api/v1/compute", {"algorithm": "one", "function": command}).status_code == 403
    assert result(gateway, "one", "pid") == before


def test_a_command_that_fails_is_a_422_without_the_program_s_files(gateway: RunningGateway) -> None:
    answer = ask(gateway, "one", "fail")
    assert (answer.status_code, answer.json()["type"]) == (422, "RemoteError")
    assert "ZeroDivisionError: as was asked" in answer.json()["error"]
    assert answer.json()["details"]["error_type"] == "ZeroDivisionError"
    assert "gateway_worker" not in answer.text


def test_the_log_says_where_a_command_failed_and_nothing_of_what_was_sent(gateway: RunningGateway) -> None:
    body = {"algorithm": "one", "function": "say", "inputs": {"text": "secret", "loud": "classified"}}
    answer = gateway.ask("POST", EXECUTE, body, headers={"X-Request-ID": "of-a-failure"})
    assert (answer.status_code, "classified" in answer.json()["error"]) == (422, True), answer.text
    failed = gateway.ask("POST", EXECUTE, {"algorithm": "one", "function": "fail"}).headers["x-request-id"]

    def told(request_id: str) -> list[dict[str, Any]]:
        return [each for each in gateway.logged() if each.get("request_id") == request_id and "worker" in each]

    wait_until(lambda: bool(told("of-a-failure") and told(failed)))
    (line,) = told(failed)
    assert (line["worker"], line["command"], line["error_type"]) == ("one", "fail", "ZeroDivisionError")
    assert line["frames"][-1].startswith(f'File "{SCRIPT}", line ')
    assert line["frames"][-1].endswith(", in fail")
    assert "as was asked" not in str(line)
    assert all(word not in "".join(gateway.lines) for word in ("secret", "classified"))


def test_the_name_of_a_worker_is_no_name_for_an_algorithm(gateway: RunningGateway) -> None:
    body = {"name": "one", "code": "output = 1"}
    assert gateway.ask("POST", "/api/v1/python/algorithms", body).status_code == 409
    answer = gateway.ask("DELETE", "/api/v1/python/algorithms/one")
    assert (answer.status_code, "remove the section [workers.one]" in answer.json()["error"]) == (409, True)


def test_a_deadline_ends_the_worker_and_the_next_request_has_a_new_one(gateway: RunningGateway) -> None:
    before = int(result(gateway, "one", "pid"))
    answer = ask(gateway, "one", "spin", timeout_ms=300)
    assert (answer.status_code, answer.json()["type"]) == (504, "DeadlineExceeded")
    assert has_ended(before)
    assert int(result(gateway, "one", "pid")) != before


def test_a_cancelled_request_ends_the_worker_and_the_next_request_has_a_new_one(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    before = int(result(gateway, "one", "pid"))
    body = {"algorithm": "one", "function": "spin", "inputs": {"path": str(tmp_path / "begun")}}
    path = gateway.ask("POST", "/api/v1/compute", body).headers["location"]
    wait_until((tmp_path / "begun").exists)  # a request that has not reached the worker costs it nothing
    assert gateway.ask("PUT", path + "/cancel").status_code == 202
    wait_until(lambda: gateway.ask("GET", path).json()["status"] == "cancelled")
    assert has_ended(before)
    assert result(gateway, "one", "say", text="hello") == "hello"


def test_a_worker_that_ends_is_asked_again_if_the_section_says_so(gateway: RunningGateway, tmp_path: Path) -> None:
    assert result(gateway, "few", "die_once", path=str(tmp_path / "few")) == "alive"
    answer = ask(gateway, "one", "die_once", inputs={"path": str(tmp_path / "one")})
    assert (answer.status_code, answer.json()["type"]) == (503, "WorkerDied")
    assert "exit" not in answer.json()["error"]
    assert "retry-after" not in answer.headers  # it may have done half of it
    assert result(gateway, "one", "die_once", path=str(tmp_path / "one")) == "alive"


def test_a_worker_that_was_killed_while_nobody_asked_is_started_again(gateway: RunningGateway) -> None:
    before = int(result(gateway, "one", "pid"))
    psutil.Process(before).kill()
    wait_until(lambda: listed(gateway)["one"]["alive"] == 0)
    assert int(result(gateway, "one", "pid")) != before


def test_a_worker_that_starts_slowly_comes_to_be_ready_though_no_request_waits_so_long(folder: Path) -> None:
    text = SCRIPT.read_text().replace("__file__", repr(str(SCRIPT)))
    (folder / "worker.py").write_text("import time\ntime.sleep(1)\n" + text.replace("from __future__", "# "))
    with running(folder, '[workers.slow]\nscript = "worker.py"\n[python]\nenabled = false\n') as gateway:
        psutil.Process(int(result(gateway, "slow", "pid"))).kill()
        wait_until(lambda: ask(gateway, "slow", "pid", timeout_ms=50).status_code == 200)


def test_there_are_as_many_as_configured_and_they_take_turns_with_many_clients(gateway: RunningGateway) -> None:
    with ThreadPoolExecutor(8) as threads:
        pids = set(threads.map(lambda _: result(gateway, "few", "pid"), range(40)))
    assert 1 <= len(pids) <= 3


def test_workers_end_with_the_gateway_after_their_answer(folder: Path) -> None:
    config = '[workers.one]\nscript = "worker.py"\n[sandbox]\nrequired_layers = []\n'
    (folder / "worker.py").write_text(SCRIPT.read_text().replace("__file__", repr(str(SCRIPT))))
    with running(folder, config) as gateway:
        pid = int(result(gateway, "one", "pid"))
    assert has_ended(pid)
    assert not list(Path(os.environ["TR_WORKSPACE"]).rglob("*"))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('script = "nowhere.py"', "workers.one: it does not start"),
        (f'script = "{SCRIPT}"\npython = "/nowhere/python"', "workers.one: it does not start"),
        ('script = "broken.py"', "workers.one: it does not start"),
        ("count = 2", "script"),
        (
            f'script = "{SCRIPT}"\ncommand = ["pid"]',
            "workers.one.command: there is no such option; there are script, count",
        ),
    ],
)
def test_a_worker_that_cannot_start_is_told_at_the_start(folder: Path, section: str, said: str) -> None:
    (folder / "broken.py").write_text("raise SystemExit('broken')")
    path = configure_with_key(folder, f"[workers.one]\n{section}\n")
    ended = tr_mmap("serve", "--config", path)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback (most" not in ended.stderr
