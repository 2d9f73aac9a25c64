"""A request that is wrong is told where, what would be right, and by an error of its own kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gateways import RunningGateway, running
from raw_http import Wire

from tr_mmap.gateway import Config
from tr_mmap.gateway.complaints import explain
from tr_mmap.gateway.errors import BadConfig

ALGORITHMS = "/api/v1/python/algorithms"
EXECUTE = "/api/v1/python/execute"
NAMES = "1 to 128 of A-Za-z0-9_.-, not beginning with . or -"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running(tmp_path_factory.mktemp("wrong"), server="body_timeout_s = 0.2\nheader_timeout_s = 0.2") as started:
        yield started


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (ALGORITHMS, {"name": "a/b", "code": "1"}, f"name: expected {NAMES}"),
        (ALGORITHMS, {"name": "a", "code": "1", "sha256": "x"}, "sha256: expected 64 hexadecimal digits"),
        (ALGORITHMS, {"name": "a", "kind": "java"}, "kind: there is no 'java'; there are native, python, torch, wasm"),
        (EXECUTE, {"code": "1", "tensors": "x"}, "tensors: there is no 'x'; there are base64, list"),
        (EXECUTE, {"code": "1", "inputs": {"x": {"y": [1, "1e999"]}, "z": 1}}, "inputs.x.y[1]: number out of range"),
        (EXECUTE, {"code": "1", "inputs": {"a b": "1e999"}}, "inputs['a b']: number out of range"),
        (
            ALGORITHMS,
            {"name": "a", "code": "1", "timeout_ms": 5001},
            "may have timeout_ms=5000 here, and not 5001; see [sandbox] wall_ms",
        ),
        (
            ALGORITHMS,
            {"name": "a", "kind": "wasm", "wasm": "AAAA", "timeout_ms": 30001},
            "and not 30001; see [python.wasm] max_execution_time",
        ),
        (
            ALGORITHMS,
            {"name": "a", "code": "1", "resource_requirements": {"memory_mb": 9999}},
            "may have memory_mb=2048 here, and not 9999; see [sandbox] most_memory_mb",
        ),
        (
            ALGORITHMS,
            {"name": "a", "kind": "wasm", "wasm": "AAAA", "resource_requirements": {"memory_mb": 9999}},
            "may have memory_mb=512 here, and not 9999; see [python.wasm] max_memory_mb",
        ),
        (
            ALGORITHMS,
            {"name": "a", "code": "1", "resource_requirements": {"cpu_cores": 99}},
            "may have cpu_cores=4 here, and not 99; see [sandbox] most_cpu_cores",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_is_allowed_there(
    gateway: RunningGateway, path: str, body: dict[str, Any], said: str
) -> None:
    answer = gateway.ask("POST", path, content=as_json(body))
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]


def as_json(body: dict[str, Any]) -> bytes:
    """A body in which a number is too large for every machine, which Python cannot write."""
    import json

    return json.dumps(body).replace('"1e999"', "1e999").encode()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"dtype": "float32", "shape": [1]}, "the input 'x' has a dtype, and is no tensor: it has dtype, shape; one"),
        ({"dtype": "float32", "data": [1]}, "it has dtype, data; one has dtype, shape, and"),
        ({"dtype": "float32", "shape": [2], "dat": [1, 2]}, "a tensor has no 'dat'; one has"),
        ({"dtype": "float32", "shape": [2], "data": [1, 2], "extra": 1}, "a tensor has no 'extra'"),
        ({"dtype": "float32", "shape": [2], "data": [1, 2], "base64": "", "x": 1, "y": 2}, "no 'x', 'y'; one"),
        ({"dtype": "float32"}, "it has dtype; one has"),
        ({"dtype": "pear", "color": 1}, "a tensor has no 'color'"),
        ({"dtype": None, "shape": None}, "it has dtype, shape; one has"),
        ({"dtype": {}, **{"n" * 1000 + str(n): n for n in range(1000)}}, "is no tensor: a tensor has no 'nnn"),
        ({"dtype": "float32", "shape": [1], "data": [1], "base64": "AACAPw=="}, "its elements as data, as base64, or"),
        ({"dtype": "float32", "shape": [1], "offset": 0}, "as offset and nbytes"),
    ],
)
def test_what_is_nearly_a_tensor_is_refused_by_name(gateway: RunningGateway, value: object, said: str) -> None:
    answer = gateway.ask("POST", EXECUTE, {"code": "output = inputs['x']", "inputs": {"x": value}})
    assert (answer.status_code, answer.json()["type"]) == (400, "BadRequest"), answer.text
    assert said in answer.json()["error"]
    assert len(answer.json()["error"]) < 400


@pytest.mark.parametrize("value", [{"shape": [1], "data": [1]}, {"base64": "AA=="}, {"options": {"dtype": "x"}}, {}])
def test_objects_without_a_dtype_are_values(gateway: RunningGateway, value: object) -> None:
    assert gateway.execute(code="output = inputs['x']", inputs={"x": value}) == value


def test_values_may_be_as_deep_as_the_page_says(gateway: RunningGateway) -> None:
    def nested(levels: int) -> bytes:
        return b'{"code": "output = 1", "inputs": {"x": ' + b"[" * levels + b"]" * levels + b"}}"

    assert gateway.ask("POST", EXECUTE, content=nested(100)).status_code == 200
    answer = gateway.ask("POST", EXECUTE, content=nested(101))
    assert (answer.status_code, "deeper than 100 levels" in answer.json()["error"]) == (400, True)


def test_parameters_that_no_route_has_are_refused_everywhere(gateway: RunningGateway) -> None:
    for method, path, body in (
        ("GET", f"/api/v1/task/{'0' * 32}?tensors=base64", None),
        ("GET", f"{ALGORITHMS}?limit=1", None),
        ("POST", f"{EXECUTE}?timeout_ms=1", {"code": "output = 1"}),
    ):
        for _ in range(3):  # by the short way, too
            answer = gateway.ask(method, path, body)
            assert (answer.status_code, "the query: object contains unknown field" in answer.text) == (400, True), path
    assert gateway.ask("GET", "/healthz?verbose=1").status_code == 200  # probes send what they like


def test_a_method_that_a_path_lacks_has_a_type_of_its_own(gateway: RunningGateway) -> None:
    answer = gateway.ask("DELETE", EXECUTE)
    assert (answer.status_code, answer.json()["type"]) == (405, "MethodNotAllowed")


def test_what_comes_too_slowly_is_a_408_and_too_many_headers_are_a_431(gateway: RunningGateway) -> None:
    host = f"Host: {gateway.address[0]}\r\n"
    token = f"Authorization: Bearer {gateway.token('execute')}\r\n"
    many = "".join(f"X-{number}: 1\r\n" for number in range(101))
    for sent, status, kind in (
        (f"POST {EXECUTE} HTTP/1.1\r\n{host}{token}Content-Length: 10\r\n\r\n{{", 408, "TooSlow"),
        (f"POST {EXECUTE} HTTP/1.1\r\n{host}", 408, "TooSlow"),
        (f"GET /healthz HTTP/1.1\r\n{host}{many}\r\n", 431, "HeadersTooLarge"),
    ):
        with Wire(gateway.address) as wire:
            wire.send(sent.encode())
            answer = wire.answer()
        assert answer is not None
        assert (answer.status, answer.json()["type"]) == (status, kind)


def test_of_two_functions_one_has_to_be_meant(gateway: RunningGateway) -> None:
    two = "def f(inputs):\n    return 1\ndef g(inputs):\n    return 2\n"
    nested = f"{two}class A:\n    def h(self):\n        self.output = output\n"
    local = "def f(inputs):\n    output = 1\n    return output\ndef g(inputs):\n    import math as output\n"
    for code in (two, nested, local, f"{two}table = [f({{}}) for _ in range(3)]\n"):
        answer = gateway.ask("POST", ALGORITHMS, {"name": "x", "code": code})
        assert (answer.status_code, answer.json()["details"]["type"]) == (422, "NameError"), answer.text
        assert "the functions f, g, and none of them is named 'x' or 'process'" in answer.json()["error"]
        assert gateway.ask("GET", f"{ALGORITHMS}/x").status_code == 404
    for more in (
        {"code": f"{two}from math import *"},
        {"code": f"{two}from math import pi as output"},
        {"code": f"{two}def h():\n    global output\n    output = 1\nh()"},
        {"code": f"{two}for output in range(3):\n    pass"},
        {"code": f"{two}import sys\nsys._getframe().f_globals['output'] = 1"},
        {"function": "g"},
        {"name": "f"},
        {"code": f"{two}output = f(inputs)"},
        {"code": f"{two}globals().update(output=3)"},
        {"code": f"{two}exec('out' + 'put = 4')"},
    ):
        made = gateway.ask("POST", ALGORITHMS, {"name": "x", "code": two, **more})
        assert made.status_code == 201, made.text
    assert gateway.execute(algorithm="x") == 4


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1", "the code has no function, and sets no output"),
        ("import math\nclass A:\n    def f(self):\n        output = 1\n", "has no function, and sets no output"),
        ("async def g(inputs):\n    return 1", "has no function, and sets no output"),
        ("algo.py", "'algo.py', which looks like the path of a file"),
        ("/home/ada/my algo.py\n", "'/home/ada/my algo.py', which looks like the path of a file"),
    ],
)
@pytest.mark.parametrize("kind", ["python", "torch"])
def test_code_that_can_never_give_a_result_is_refused(gateway: RunningGateway, code: str, said: str, kind: str) -> None:
    if kind == "torch":
        pytest.importorskip("torch")
    answer = gateway.ask("POST", ALGORITHMS, {"name": "x", "code": code, "kind": kind})
    assert (answer.status_code, answer.json()["type"]) == (422, "AlgorithmError"), answer.text
    assert said in answer.json()["error"]


def test_a_key_where_it_does_nothing_is_refused_with_the_routes_that_take_one(gateway: RunningGateway) -> None:
    answer = gateway.ask("DELETE", f"{ALGORITHMS}/x", headers={"Idempotency-Key": "one"})
    assert answer.status_code == 400
    assert "POST to execute, compute, algorithms and the records of a store" in answer.json()["error"]


def test_answers_end_with_their_line(gateway: RunningGateway) -> None:
    """So that those of several commands in a terminal do not run together."""
    for method, path, body in (
        ("GET", "/healthz", None),
        ("POST", EXECUTE, {"code": "output = 1"}),
        ("GET", "/x", None),
    ):
        answer = gateway.ask(method, path, body)
        assert answer.content.endswith(b"}\n")
        assert answer.headers["content-length"] == str(len(answer.content))
    with Wire(gateway.address) as wire:
        wire.send(b"no request at all\r\n\r\n")
        refused = wire.answer()
    assert refused is not None
    assert refused.body.endswith(b"}\n")


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ({"workers": {"good": {"script": "x"}, "a b": {"script": "x"}}}, "workers['a b']", NAMES),
        ({"workers": {"good": {"script": "x"}, "bad": {}}}, "workers.bad", "missing required field `script`"),
        ({"workers": {"good": {"script": "x"}, "bad": {"script": "x", "count": 0}}}, "workers.bad.count", ">= 1"),
        ({"python": {"dependencies": {"manager": "pip"}}}, "python.dependencies.manager", "no 'pip'; there are uv"),
        ({"server": {"prot": 1}}, "server.prot", "there is no such option; there are host, port"),
    ],
)
def test_a_wrong_option_is_named_with_its_section(options: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        Config.from_dict(options)
    assert caught.value.key == key
    assert said in str(caught.value)


def test_a_place_that_is_not_known_stays_open() -> None:
    assert explain("Number out of range - at `$.inputs[...]`", Config) == ("inputs[...]", "number out of range")
    assert explain("Expected `int`, got `str`", Config) == ("", "expected `int`, got `str`")
