"""The routes of the gateway, asked over HTTP as any client does."""

from __future__ import annotations

import base64
import json
import socket
import struct

import numpy as np
import pytest
from gateways import RunningGateway
from support import wait_until

DOUBLE = "def double(inputs):\n    print('doubling')\n    return {'output': inputs['x'] * 2}\n"
EXECUTE = "/api/v1/python/execute"


@pytest.fixture(autouse=True, scope="module")
def _double(gateway: RunningGateway) -> None:
    gateway.register("double", DOUBLE)


# -- algorithms ------------------------------------------------------------------------------------------------------


def test_a_registered_algorithm_is_described_listed_and_executed(gateway: RunningGateway) -> None:
    info = gateway.register("thrice", "def thrice(inputs):\n    return {'output': inputs['x'] * 3}\n")
    assert (info["name"], info["kind"], info["function"], info["status"]) == (
        "thrice",
        "python",
        "thrice",
        "registered",
    )
    assert len(info["version"]) == 16
    assert gateway.ask("GET", "/api/v1/python/algorithms/thrice").json() == info
    assert info in gateway.ask("GET", "/api/v1/python/algorithms").json()["algorithms"]
    assert gateway.execute(algorithm="thrice", inputs={"x": 14}) == 42


def test_the_document_s_own_fields_register_and_execute(gateway: RunningGateway) -> None:
    body = {
        "name": "sums",
        "code": "def process(inputs):\n    return {'y': inputs['a'] + inputs['b']}",
        "dependencies": [],
        "resource_requirements": {"cpu_cores": 1, "memory_mb": 256},
    }
    assert gateway.ask("POST", "/api/v1/python/algorithms", body).status_code == 201
    answer = gateway.ask("POST", EXECUTE, {"algorithm": "sums", "inputs": {"a": 1, "b": 2}}).json()
    assert (answer["result"], answer["status"]) == ({"y": 3}, "success")


def test_an_unregistered_algorithm_is_gone(gateway: RunningGateway) -> None:
    gateway.register("shortly", DOUBLE, function="double")
    assert gateway.ask("DELETE", "/api/v1/python/algorithms/shortly").status_code == 200
    for method in ("GET", "DELETE"):
        assert gateway.ask(method, "/api/v1/python/algorithms/shortly").status_code == 404
    answer = gateway.ask("POST", EXECUTE, {"algorithm": "shortly", "inputs": {}})
    assert (answer.status_code, answer.json()["type"]) == (404, "NotFound")


def test_a_new_version_takes_the_place_of_the_former(gateway: RunningGateway) -> None:
    first = gateway.register("versions", "output = 1")
    second = gateway.register("versions", "output = 2")
    assert first["version"] != second["version"]
    assert gateway.execute(algorithm="versions") == 2
    assert gateway.register("versions", "output = 1")["version"] == first["version"]


def test_nobody_replaces_or_forgets_another_subject_s_algorithm(gateway: RunningGateway) -> None:
    scopes = ("register", "execute")
    body = {"name": "owned", "code": "output = 'ada'"}
    assert gateway.ask("POST", "/api/v1/python/algorithms", body, scopes=scopes).status_code == 201
    for method, path, sent in (
        ("POST", "/api/v1/python/algorithms", {"name": "owned", "code": "output = 'eve'"}),
        ("DELETE", "/api/v1/python/algorithms/owned", None),
    ):
        answer = gateway.ask(method, path, sent, scopes=scopes, subject="eve")
        assert answer.status_code == 403
        assert answer.json()["error"].endswith("take another name" if method == "POST" else "or by an administrator")
    assert gateway.execute(algorithm="owned") == "ada"


def test_registration_executes_nothing(gateway: RunningGateway) -> None:
    code = "import sys\n@sys.exit\ndef f(x=sys.exit('default')):\n    return x\n"
    assert gateway.register("quiet", code)["function"] == "f"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"name": "x", "code": "def f(:"}, "syntax"),
        ({"name": "x", "code": "output = 1", "function": "nope"}, "nope"),
        ({"name": "x", "code": "output = 1", "sha256": "0" * 64}, "sha256"),
        ({"name": "x", "kind": "wasm", "wasm": "AAAA"}, "module"),
        ({"name": "x", "code": "output = 1", "dependencies": ["no-such-package"]}, "no-such-package"),
    ],
)
def test_code_that_cannot_run_is_refused_at_registration(gateway: RunningGateway, body: object, said: str) -> None:
    answer = gateway.ask("POST", "/api/v1/python/algorithms", body)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["error"].lower()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"code": "output = 1"}, "name"),
        ({"name": "a/b", "code": "output = 1"}, "name"),
        ({"name": "..", "code": "output = 1"}, "name"),
        ({"name": "x"}, "code"),
        ({"name": "x", "wasm": "AAAA"}, "code"),
        ({"name": "x", "kind": "wasm", "wasm": "!!"}, "base64"),
        ({"name": "x", "kind": "java", "code": "1"}, "kind"),
        ({"name": "x", "code": "output = 1", "colour": 1}, "colour"),
        ({"name": "x", "code": "output = 1", "resource_requirements": {"memory_mb": 1 << 30}}, "memory_mb"),
        ({"name": "x", "code": "output = 1", "timeout_ms": 0}, "timeout_ms"),
    ],
)
def test_a_registration_with_a_mistake_says_which(gateway: RunningGateway, body: object, said: str) -> None:
    answer = gateway.ask("POST", "/api/v1/python/algorithms", body)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]
    assert answer.json()["status_code"] == 400


def test_a_module_of_webassembly_runs_behind_the_same_routes(gateway: RunningGateway) -> None:
    wasm = (
        b"\0asm\1\0\0\0"
        b"\1\7\1\x60\2\x7f\x7f\1\x7f"  # a type: (i32, i32) -> i32
        b"\3\2\1\0"  # a function of it
        b"\7\x0b\1\7process\0\0"  # exported
        b"\x0a\x09\1\7\0\x20\0\x20\1\x6a\x0b"  # its code: add
    )
    body = {"name": "adds", "kind": "wasm", "wasm": base64.b64encode(wasm).decode()}
    assert gateway.ask("POST", "/api/v1/python/algorithms", body).status_code == 201


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1.5, "text", None, True, [1, [2]], {"a": {"b": []}}, 1 << 63])
def test_values_of_json_come_back_as_they_went(gateway: RunningGateway, value: object) -> None:
    assert gateway.execute(code="output = inputs['x']", inputs={"x": value}) == value


def test_code_of_its_own_runs_without_registration(gateway: RunningGateway) -> None:
    answer = gateway.ask("POST", EXECUTE, {"code": "print('hi'); output = 1 + inputs['x']", "inputs": {"x": 1}}).json()
    assert (answer["result"], answer["stdout"]) == (2, "hi\n")
    assert answer["execution_time_ms"] > 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint64", "bool"])
def test_tensors_go_in_and_come_out_as_lists_and_as_base64(gateway: RunningGateway, dtype: str) -> None:
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    forms = ({"data": array.tolist()}, {"base64": base64.b64encode(array.tobytes()).decode()})
    for given in forms:
        x = {"dtype": dtype, "shape": [2, 3], **given}
        for form in ("list", "base64"):
            answer = gateway.ask(
                "POST", EXECUTE, {"code": "output = inputs['x'].T.copy()", "inputs": {"x": x}, "tensors": form}
            ).json()["result"]
            assert (answer["dtype"], answer["shape"]) == (dtype, [3, 2])
            if form == "list":
                assert answer["data"] == array.T.tolist()
            else:
                raw = base64.b64decode(answer["base64"])
                assert np.array_equal(np.frombuffer(raw, dtype).reshape(3, 2), array.T)


def test_tensors_go_in_and_come_out_as_bytes_beside_the_json(gateway: RunningGateway) -> None:
    array = np.arange(100_000, dtype=np.float32)
    head = json.dumps(
        {
            "algorithm": "double",
            "inputs": {"x": {"dtype": "float32", "shape": [100_000], "offset": 0, "nbytes": array.nbytes}},
        }
    ).encode()
    answer = gateway.ask(
        "POST",
        EXECUTE,
        headers={
            "content-type": "application/octet-stream",
            "accept": "application/octet-stream",
            "tr-json-length": str(len(head)),
        },
        content=head + array.tobytes(),
    )
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["tr-json-length"])
    said = json.loads(answer.content[:length])["result"]
    binary = answer.content[length:]
    result = np.frombuffer(binary[said["offset"] : said["offset"] + said["nbytes"]], said["dtype"])
    assert np.array_equal(result.reshape(said["shape"]), array * 2)


def test_numbers_that_json_lacks_come_as_bytes(gateway: RunningGateway) -> None:
    answer = gateway.execute(code="import numpy as np\noutput = np.array([np.inf, np.nan])")
    assert struct.unpack("<d", base64.b64decode(answer["base64"])[:8]) == (float("inf"),)
    x = {"dtype": "float32", "shape": [2], "data": [None, 1]}
    assert gateway.execute(code="import numpy as np\noutput = bool(np.isnan(inputs['x'][0]))", inputs={"x": x}) is True


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ({"dtype": "float99", "shape": [1], "data": [1]}, "float99"),
        ({"dtype": "float32", "shape": [2], "data": [1]}, "shape"),
        ({"dtype": "float32", "shape": [-1], "data": [1]}, "shape"),
        ({"dtype": "float32", "shape": [2, 2], "data": [[1, 2], [3]]}, "length"),
        ({"dtype": "int8", "shape": [2], "data": [1, 300]}, "x': 300 is not in the range of int8, -128 to 127"),
        ({"dtype": "uint8", "shape": [1], "data": [-1]}, "-1 is not in the range of uint8, 0 to 255"),
        ({"dtype": "int8", "shape": [2], "data": [1, 1.5]}, "1.5 is no whole number, and int8 has no others"),
        ({"dtype": "int64", "shape": [2], "data": [1, 1 << 64]}, "18446744073709551616 is not in the range of int64"),
        ({"dtype": "int8", "shape": [1], "data": [None]}, "null is NaN, which int8 does not have"),
        ({"dtype": "float16", "shape": [2], "data": [None, 70000]}, "70000 is not in the range of float16"),
        ({"dtype": "float32", "shape": [1], "data": [1e39]}, "1e+39 is not in the range of float32"),
        ({"dtype": "bool", "shape": [2], "data": [True, 2]}, "2 is none of bool, which has true and false"),
        ({"dtype": "float32", "shape": [1], "data": ["x"]}, "numbers"),
        ({"dtype": "float32", "shape": [1], "base64": "!"}, "base64"),
        ({"dtype": "float32", "shape": [1], "base64": "AAAA"}, "bytes"),
        ({"dtype": "float32", "shape": [1 << 40, 1 << 40], "base64": ""}, "bytes"),
        ({"dtype": "float32", "shape": [1], "offset": 0, "nbytes": 4}, "behind the body"),
        ({"dtype": "float32", "shape": [1], "offset": -4, "nbytes": 4}, "offset"),
    ],
)
def test_a_tensor_that_is_none_says_why(gateway: RunningGateway, tensor: object, said: str) -> None:
    answer = gateway.ask("POST", EXECUTE, {"code": "output = 1", "inputs": {"x": tensor}})
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [
        ("output = 1 / 0", "AlgorithmError", 422),
        ("open('/etc/shadow')", "NotAllowed", 422),
        ("output = bytes(1 << 40)", "LimitExceeded", 422),
        ("import os; os._exit(3)", "AlgorithmError", 422),
        ("def f(: pass", "AlgorithmError", 422),
    ],
)
def test_a_run_that_fails_says_how(gateway: RunningGateway, code: str, kind: str, status: int) -> None:
    answer = gateway.ask("POST", EXECUTE, {"code": code})
    assert (answer.status_code, answer.json()["type"]) == (status, kind)
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_the_traceback_of_an_algorithm_is_its_own(gateway: RunningGateway) -> None:
    answer = gateway.ask("POST", EXECUTE, {"code": "def f(inputs):\n    return 1 / 0\n", "function": "f"}).json()
    assert answer["details"]["type"] == "ZeroDivisionError"
    assert "line 2" in answer["details"]["traceback"]
    assert "tr_mmap" not in answer["details"]["traceback"]


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("output = 1 / 0", 1),
        ("output = 1 / 0\n", 1),
        ("def f(inputs):\n    return 1 / 0", 2),
        (
            "text = 'a\x0cb\u2028c\x1cd'\noutput = 1 / 0",
            2,
        ),  # characters at which only Python's splitlines() ends a line
        ("a = 1\r\nif a:\r\n    output = 1 / 0\r\n", 3),
        ("a = 1\routput = 1 / 0\r", 2),
        ("ä = 'ü'; output = 1 / 0", 1),
    ],
)
def test_a_traceback_marks_the_line_and_the_column_of_the_fault(gateway: RunningGateway, code: str, line: int) -> None:
    answer = gateway.ask("POST", EXECUTE, {"code": code}).json()
    where, shown, marks = answer["details"]["traceback"].splitlines()[-3:]
    assert f"line {line}" in where
    assert marks.index("~~^~~") == shown.index("1 / 0")


def test_a_run_ends_at_its_timeout(gateway: RunningGateway) -> None:
    answer = gateway.ask("POST", EXECUTE, {"code": "while True: pass", "timeout_ms": 100})
    assert (answer.status_code, answer.json()["type"]) == (504, "DeadlineExceeded")


def test_what_one_run_leaves_is_not_there_for_another_subject_s(gateway: RunningGateway) -> None:
    code = "import sys\ndef count(inputs):\n    sys.n = getattr(sys, 'n', 0) + 1\n    return sys.n\n"
    gateway.register("count", code, reuse=True)
    assert [gateway.execute(algorithm="count") for _ in range(3)] == [1, 2, 3]
    body = {"algorithm": "count"}
    for _ in range(2):
        assert gateway.ask("POST", EXECUTE, body, subject="eve", scopes=("execute",)).json()["result"] == 1
    assert gateway.execute(algorithm="count") == 4
    gateway.register("count", code + "#", reuse=True)
    assert gateway.execute(algorithm="count") == 1


# -- tasks -----------------------------------------------------------------------------------------------------------


def test_a_task_is_started_and_asked_for_its_result(gateway: RunningGateway) -> None:
    answer = gateway.ask("POST", "/api/v1/compute", {"algorithm": "double", "inputs": {"x": 4}})
    assert answer.status_code == 202
    path = answer.headers["location"]
    assert path == f"/api/v1/task/{answer.json()['task_id']}"
    wait_until(lambda: gateway.ask("GET", path).json()["status"] == "success")
    info = gateway.ask("GET", path).json()
    assert (info["result"], info["stdout"], info["error"]) == (8, "doubling\n", None)
    assert info["created_at"] <= info["started_at"] <= info["ended_at"]


def test_a_task_that_fails_keeps_its_error(gateway: RunningGateway) -> None:
    path = gateway.ask("POST", "/api/v1/compute", {"code": "1 / 0"}).headers["location"]
    wait_until(lambda: gateway.ask("GET", path).json()["status"] == "failed")
    assert gateway.ask("GET", path).json()["error"]["details"]["type"] == "ZeroDivisionError"


def test_a_cancelled_task_ends_at_once(gateway: RunningGateway) -> None:
    body = {"code": "while True: pass", "timeout_ms": 60_000}
    path = gateway.ask("POST", "/api/v1/compute", body).headers["location"]
    wait_until(lambda: gateway.ask("GET", path).json()["status"] == "running")
    assert gateway.ask("PUT", path + "/cancel").status_code == 202
    wait_until(lambda: gateway.ask("GET", path).json()["status"] == "cancelled")
    again = gateway.ask("PUT", path + "/cancel")
    assert (again.status_code, again.json()["type"]) == (409, "AlreadyDone")


def test_a_task_tells_its_changes_as_they_come(gateway: RunningGateway) -> None:
    body = {"code": "output = 'done'"}
    path = gateway.ask("POST", "/api/v1/compute", body).headers["location"]
    events = gateway.ask("GET", path + "/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    blocks = [each for each in events.text.split("\n\n") if each.startswith("event: ")]
    assert blocks[-1].startswith("event: success\ndata: {")
    assert json.loads(blocks[-1].partition("data: ")[2])["result"] == "done"


def test_nobody_sees_another_subject_s_task(gateway: RunningGateway) -> None:
    path = gateway.ask("POST", "/api/v1/compute", {"code": "output = 1"}).headers["location"]
    for method, each in (("GET", path), ("PUT", path + "/cancel"), ("GET", path + "/events")):
        assert gateway.ask(method, each, scopes=("execute",), subject="eve").status_code == 404
    assert gateway.ask("GET", path, scopes=("admin",), subject="root").status_code == 200


def test_a_client_that_hangs_up_ends_its_run(gateway: RunningGateway) -> None:
    def runs() -> int:
        return int(gateway.ask("GET", "/api/v1/scheduler/status").json()["queues"]["python"]["running"])

    body = json.dumps({"code": "while True: pass", "timeout_ms": 86_400_000}).encode()
    with socket.create_connection(gateway.address) as client:
        client.sendall(
            b"POST /api/v1/python/execute HTTP/1.1\r\nHost: localhost\r\n"
            + f"Authorization: Bearer {gateway.token('execute')}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_until(lambda: runs() == 1)
    wait_until(lambda: runs() == 0)


# -- what is around them ---------------------------------------------------------------------------------------------


def test_a_request_id_and_a_trace_are_passed_on(gateway: RunningGateway) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = gateway.ask("GET", "/healthz", headers={"x-request-id": "mine.1", "traceparent": trace})
    assert (answer.headers["x-request-id"], answer.headers["traceparent"]) == ("mine.1", trace)
    wait_until(lambda: any(each.get("request_id") == "mine.1" for each in gateway.logged()))
    odd = gateway.ask("GET", "/healthz", headers={"x-request-id": "a b", "traceparent": "x"})
    assert "traceparent" not in odd.headers
    assert len(odd.headers["x-request-id"]) == 32


def test_a_path_or_method_that_is_not_there_answers_in_the_same_form(gateway: RunningGateway) -> None:
    for method, path, status in (("GET", "/nope", 404), ("DELETE", EXECUTE, 405), ("POST", "/healthz", 405)):
        answer = gateway.ask(method, path)
        assert answer.status_code == status
        assert answer.json()["status_code"] == status


def test_the_metrics_count_what_was_run(gateway: RunningGateway) -> None:
    gateway.execute(algorithm="double", inputs={"x": 1})
    text = gateway.ask("GET", "/metrics", scopes=("metrics",)).text
    assert 'tr_success_total{kind="python"}' in text
    assert 'tr_sandbox_layer_active{layer="seccomp"} 1.0' in text
    assert 'route="/api/v1/python/execute"' in text
    assert gateway.ask("GET", "/metrics", scopes=("execute",)).status_code == 403


def test_logs_have_neither_tokens_nor_what_was_sent(gateway: RunningGateway) -> None:
    gateway.ask("POST", EXECUTE, {"code": "output = 'payload-7f3a'"}, headers={"x-request-id": "secret-check"})
    wait_until(lambda: any(each.get("request_id") == "secret-check" for each in gateway.logged()))
    text = "".join(gateway.lines)
    assert "payload-7f3a" not in text
    assert "eyJ" not in text


def test_without_a_directory_there_are_no_models(gateway: RunningGateway) -> None:
    assert gateway.ask("GET", "/api/v1/python/models").json() == {"models": []}
    answer = gateway.ask("POST", "/api/v1/python/models/anything")
    assert (answer.status_code, "model_dir" in answer.json()["error"]) == (404, True)
