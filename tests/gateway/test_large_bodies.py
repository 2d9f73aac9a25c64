"""Large requests and results: read in other threads than the loop's, and given in a form that takes little memory."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from gateways import RunningGateway

from tr_mmap.gateway import Client
from tr_mmap.gateway.calls import Call
from tr_mmap.gateway.payloads import TensorEncoder, decode_inputs
from tr_mmap.gateway.routes import _asked

EXECUTE = "/api/v1/python/execute"
MOST = 1 << 18  # numbers and lists, as the documentation says


# -- results ---------------------------------------------------------------------------------------------------------


def is_list(encoder: TensorEncoder, shape: tuple[int, ...], dtype: str = "int8") -> bool:
    said = encoder.encode(np.zeros(shape, dtype))
    assert decode_inputs({"x": said}, memoryview(b""))["x"].shape == shape
    return "data" in said


@pytest.mark.parametrize(
    ("shape", "listed"),
    [
        ((), True),
        ((0,), True),
        ((MOST - 1,), True),
        ((MOST,), False),
        ((MOST // 2, 1), False),  # a list for each of its numbers
        ((1 << 30, 0), False),  # no number, and a list for each of its rows
        ((0, 1 << 30), True),
    ],
)
def test_what_would_be_many_lists_is_base64(shape: tuple[int, ...], listed: bool) -> None:
    assert is_list(TensorEncoder("list"), shape) is listed


def test_the_bound_is_for_all_tensors_of_a_response() -> None:
    encoder = TensorEncoder("list")
    assert [is_list(encoder, (MOST // 3,)) for _number in range(5)] == [True, True, False, False, False]
    assert is_list(encoder, (10,))  # there is room for a small one yet


def test_a_large_result_comes_as_base64_and_is_the_same(gateway: RunningGateway) -> None:
    code = "import numpy as np; output = np.arange(300_000, dtype=np.float32)"
    answer = gateway.execute(code=code)
    found = np.frombuffer(base64.b64decode(answer["base64"]), answer["dtype"])
    assert np.array_equal(found, np.arange(300_000, dtype=np.float32))
    assert "data" in gateway.execute(code=code.replace("300_000", "1000"))
    task = gateway.ask("POST", "/api/v1/compute", {"code": code}).headers["location"] + "/events"
    assert '"base64"' in gateway.ask("GET", task).text


def test_clients_read_both_forms(gateway: RunningGateway) -> None:
    with Client(gateway.url, gateway.token("admin")) as client:
        for count in (1000, 300_000):
            code = f"import numpy as np; output = {{'x': np.arange({count}), 'y': np.ones(2)}}"
            task = client.submit(code=code)
            for result in (client.execute(code), task.result(timeout_s=60)):
                assert np.array_equal(result["x"], np.arange(count))
                assert np.array_equal(result["y"], np.ones(2))


def test_a_result_of_rows_without_an_element_takes_no_memory(gateway: RunningGateway) -> None:
    answer = gateway.execute(code="import numpy as np; output = np.zeros((1 << 30, 0))")
    assert (answer["shape"], answer["base64"]) == ([1 << 30, 0], "")


# -- requests --------------------------------------------------------------------------------------------------------


async def ticks_of(said: dict[str, Any], binary: bytes) -> int:
    """How often the loop came to something else while it read a request."""
    text = json.dumps({"code": "output = 1", "inputs": {"x": said}}).encode()
    headers = [(b"content-type", b"application/octet-stream"), (b"tr-json-length", str(len(text)).encode())]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": text + binary}

    call = Call({"headers": headers}, receive, 1 << 30, 10.0)
    await call.read()
    ticks, loop = 0, asyncio.get_running_loop()

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        loop.call_soon(tick)

    loop.call_soon(tick)
    asked = await _asked(call)
    assert asked.inputs["x"].shape == tuple(said["shape"])
    assert asked.nbytes == len(text) + len(binary)
    return ticks


def test_large_inputs_are_decoded_in_another_thread_and_small_ones_at_once() -> None:
    count = 1 << 20
    odd = {"dtype": "float32", "shape": [count], "offset": 1, "nbytes": 4 * count}  # is copied, for it is not aligned
    assert asyncio.run(ticks_of(odd, bytes(4 * count + 1)))
    assert asyncio.run(ticks_of({"dtype": "int8", "shape": [2], "data": [1, 2]}, b"")) == 0


def test_binary_bodies_are_described_where_they_are_taken_and_given(gateway: RunningGateway) -> None:
    binary, paths = "application/octet-stream", gateway.ask("GET", "/openapi.json").json()["paths"]
    takes, gives = set(), set()
    for path, operations in paths.items():
        for method, operation in operations.items():
            where = f"{method} {path.removeprefix('/api/v1')}"
            if binary in operation.get("requestBody", {}).get("content", {}):
                takes.add(where)
                assert "TR-JSON-Length" in operation["requestBody"]["description"]
            if any(binary in each.get("content", {}) for each in operation["responses"].values()):
                gives.add(where)
    records = "/store/{store}/records"
    both = {"post /python/execute", "post /store/{store}/search", f"patch {records}/{{record_id}}"}
    assert takes == {"post /compute", f"post {records}", *both}
    only = {f"get {records}", f"get {records}/{{record_id}}", f"get {records}/{{record_id}}/tensors/{{tensor}}"}
    assert gives == both | only
