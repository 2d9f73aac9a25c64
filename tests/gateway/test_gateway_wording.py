"""What a gateway says is in its own words: a client can do what it is told, and is told of no function of Python's."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from gateways import RunningGateway, running
from native_libraries import library

from tr_mmap.errors import MissingPackage
from tr_mmap.gateway.problems import describe

ALGORITHMS = "/api/v1/python/algorithms"
EXECUTE = "/api/v1/python/execute"
FOREVER = "while True: pass"
CLOCK = """(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $now (param i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (drop (call $now (i32.const 0) (i64.const 0) (i32.const 0)))))"""
CONFIG = """
[sandbox]
wall_ms = 60_000
cpu_ms = 500
output_mb = 1
"""
OF_PYTHON = (
    "Allow(",
    "deadline_s",
    "memory_nbytes",
    "output_nbytes",
    "disk_nbytes",
    "wall_ms=",
    "time.monotonic",
    "pip ",
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running(tmp_path_factory.mktemp("wording"), CONFIG) as started:
        yield started


def refusal(gateway: RunningGateway, status: int = 422, path: str = EXECUTE, **body: Any) -> dict[str, Any]:
    answer = gateway.ask("POST", path, body)
    assert answer.status_code == status, answer.text
    assert not [each for each in OF_PYTHON if each in answer.json()["error"]]
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize(
    ("code", "limit", "value", "said"),
    [
        ("output = bytes(1 << 40)", "memory_mb", 512, "memory_mb=512; it was ended. If it may have more: register it"),
        (FOREVER, "cpu_ms", 500, "[sandbox] cpu_ms"),
        ("import numpy; output = numpy.zeros(1 << 20)", "output_mb", 1, "[sandbox] output_mb"),
    ],
)
def test_a_limit_has_the_name_and_the_unit_of_its_option(
    gateway: RunningGateway, code: str, limit: str, value: float, said: str
) -> None:
    found = refusal(gateway, code=code)
    assert found["type"] == "LimitExceeded"
    assert (found["details"]["limit"], found["details"]["value"]) == (limit, value)
    assert said in found["error"]


def test_the_time_that_a_run_may_take_has_the_name_by_which_it_is_registered(tmp_path: Path) -> None:
    with running(tmp_path, "[sandbox]\nwall_ms = 200\n") as gateway:
        found = refusal(gateway, code="import time; time.sleep(60)")
    assert (found["type"], found["details"]["limit"], found["details"]["value"]) == ("LimitExceeded", "timeout_ms", 200)
    assert "timeout_ms=200; it was ended. If it may have more" in found["error"]


def test_a_deadline_is_the_timeout_that_the_request_gave(gateway: RunningGateway) -> None:
    found = refusal(gateway, 504, code="import time; time.sleep(60)", timeout_ms=300)
    assert (found["details"]["limit"], found["details"]["value"]) == ("timeout_ms", 300)
    assert "give the request more timeout_ms" in found["error"]


@pytest.mark.parametrize(
    ("code", "rule", "said"),
    [
        ("open('/etc/shadow')", "read", "give it what it needs as an input"),
        ("open('/etc/x', 'w')", "write", "take results as outputs"),
        ("import socket; socket.socket()", "net", "fetch the data outside and give it as an input"),
        ("import os; os.fork()", "processes", "an algorithm is one process"),
        ("import os, signal; os.kill(1, 9)", "syscalls", "[workers.NAME]"),
    ],
)
def test_a_denial_says_what_a_client_can_do(gateway: RunningGateway, code: str, rule: str, said: str) -> None:
    found = refusal(gateway, code=code)
    assert (found["type"], found["details"]["rule"]) == ("NotAllowed", rule)
    assert said in found["error"]


def test_a_file_that_is_missing_in_tmp_is_to_be_an_input(gateway: RunningGateway) -> None:
    found = refusal(gateway, code="open('/tmp/weights.bin')")
    assert found["error"].endswith("give it what it needs as an input")


def test_a_module_of_webassembly_is_told_what_none_gets(gateway: RunningGateway) -> None:
    wasm = base64.b64encode(wasmtime.wat2wasm(CLOCK)).decode()
    made = gateway.ask("POST", ALGORITHMS, {"name": "clock", "kind": "wasm", "wasm": wasm})
    assert made.status_code == 201, made.text
    found = refusal(gateway, algorithm="clock")
    assert (found["type"], found["details"]["rule"]) == ("NotAllowed", "clock")
    assert "is granted to no algorithm here" in found["error"]


def test_a_library_that_needs_another_is_told_to_have_it_linked_in(gateway: RunningGateway) -> None:
    source = 'extern "C" void is_nowhere(); FUNCTION(tr_run) { is_nowhere(); return 0; }'
    made = library(source, "-Wl,-z,now", "-Wl,--unresolved-symbols=ignore-all")
    body = {"name": "unlinked", "kind": "native", "library": base64.b64encode(made).decode()}
    answer = gateway.ask("POST", ALGORITHMS, body)
    if answer.status_code == 201:
        answer = gateway.ask("POST", EXECUTE, {"algorithm": "unlinked"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"].endswith("link into it")


def test_a_package_that_is_not_there_is_named_and_may_be_declared(gateway: RunningGateway) -> None:
    found = refusal(gateway, code="def f(inputs):\n    import no_such_package.part\n")
    assert (found["type"], found["details"]["package"]) == ("MissingPackage", "no_such_package")
    assert "line 2" in found["details"]["traceback"]
    # Code of a run has no field for that; see what it says to do.
    assert "an algorithm that is registered can declare it in dependencies" in found["error"]
    found = refusal(gateway, code="import json.no_such_part")  # json is there
    assert (found["type"], found["details"]["type"]) == ("AlgorithmError", "ModuleNotFoundError")
    found = refusal(gateway, path=ALGORITHMS, name="x", code="output = 1", dependencies=["no-such-package==1"])
    assert (found["type"], found["details"]["package"]) == ("MissingPackage", "no_such_package")
    assert found["error"].endswith("see [python.dependencies]")


def test_what_an_algorithm_says_itself_and_what_an_operator_is_told_stay_as_they_are(gateway: RunningGateway) -> None:
    own = "memory_mb=1, or grant Allow(net=True): its own"
    answer = gateway.ask("POST", EXECUTE, {"code": f"raise ValueError({own!r})"})
    assert answer.json()["error"] == f"ValueError: {own}"
    text = "scorer/1 is a model of ONNX, which needs onnxruntime: pip install 'tr_mmap[onnx]'"
    assert describe(MissingPackage(text, package="onnxruntime"), "").error == text
