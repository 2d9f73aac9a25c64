"""What is not well formed, in every place where a client may put it: one clear refusal each, and never a fault."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gateways import RunningGateway, running
from hypothesis import example, given, settings
from hypothesis import strategies as st
from raw_http import Answer, Wire

from tr_mmap.errors import OutOfSpace
from tr_mmap.gateway.client.failures import error_of
from tr_mmap.gateway.errors import BadRequest
from tr_mmap.gateway.payloads import decode_inputs
from tr_mmap.gateway.problems import describe, headers_of, status_of
from tr_mmap.gateway.store_payloads import vector_of
from tr_mmap.tsr.dtypes import by_name

EXECUTE = "/api/v1/python/execute"
ALGORITHMS = "/api/v1/python/algorithms"
INSTALLS = '[python.dependencies]\nauto_install = true\nallow = ["humanize"]\nwheel_dir = "wheels"\n'
NO_BYTES = memoryview(b"")
MANY = settings(max_examples=60)


@pytest.fixture(scope="module", params=["", INSTALLS], ids=["installs nothing", "installs"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway as it is by default, and one that may install packages."""
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "wheels").mkdir()
    with running(folder, request.param, auth="requests_per_minute = 0\nfailures_per_minute = 0") as started:
        yield started
        assert not [each for each in started.logged() if each["level"] == "error"]


def check(status: int, headers: Any, body: Any) -> None:
    """It is an answer as documented, and no fault of the gateway's."""
    assert status < 500, body
    assert "x-request-id" in headers
    if status >= 400:
        assert body["status_code"] == status
        assert body["error"]


# -- headers ---------------------------------------------------------------------------------------------------------

LINES = st.text(st.characters(codec="latin-1", categories=["L", "N", "P", "S", "Zs"]), max_size=40)
ADDRESSES = st.text("[]:/@?#%.x1htp", max_size=20)


@MANY
@example("http://[", "localhost")
@example("http://[::1", "localhost")
@example("http://[x]", "localhost")
@example("null", "[")
@example("", "[::")
@given(st.one_of(LINES, ADDRESSES, ADDRESSES.map("http://".__add__)), st.one_of(st.just("localhost"), LINES, ADDRESSES))
def test_no_origin_and_no_host_is_a_fault(gateway: RunningGateway, origin: str, host: str) -> None:
    with Wire(gateway.address) as wire:
        wire.send(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\r\n".encode("latin-1"))
        answer = wire.answer()
    assert isinstance(answer, Answer)
    check(answer.status, answer.headers, answer.json())


# -- tensors ---------------------------------------------------------------------------------------------------------

SIZES = st.one_of(st.integers(-1, 3), st.sampled_from([1 << 40, (1 << 47), (1 << 48) - 1, 10**4299, 1.5, True, "2"]))
JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 300),
        st.sampled_from([1 << 63, 1 << 64, -(1 << 63) - 1, 10**4299, 1e308]),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=3),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
    max_leaves=8,
)
TENSORS = st.builds(
    lambda said, elements: {**said, **elements},
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(
                st.sampled_from(["float32", "int8", "uint64", "bool", "complex64", "bfloat16"]), JSON_VALUES
            ),
            "shape": st.one_of(st.lists(SIZES, max_size=4), JSON_VALUES),
        }
    ),
    st.one_of(
        st.fixed_dictionaries({"data": JSON_VALUES}),
        st.fixed_dictionaries({"base64": st.one_of(st.sampled_from(["", "AAAA", "AA==", "é", "A"]), JSON_VALUES)}),
        st.fixed_dictionaries({"offset": st.one_of(SIZES, JSON_VALUES), "nbytes": st.one_of(SIZES, JSON_VALUES)}),
    ),
)
WIDE = [0, 140737488355328, 140737488355328]  # no array has such sizes, though it would have no element


@MANY
@example({"dtype": "uint8", "shape": WIDE, "base64": ""})
@example({"dtype": "uint8", "shape": WIDE, "data": []})
@example({"dtype": "int8", "shape": [], "data": 1e308})
@example({"dtype": "uint8", "shape": WIDE, "offset": 0, "nbytes": 0})
@example({"dtype": "uint8", "shape": [1], "offset": int("9" * 4300), "nbytes": int("9" * 4300)})
@given(TENSORS)
def test_no_tensor_is_a_fault(gateway: RunningGateway, tensor: dict[str, Any]) -> None:
    body = {"algorithm": "there-is-none", "inputs": {"x": tensor}}
    answer = gateway.ask("POST", EXECUTE, body)
    check(answer.status_code, answer.headers, answer.json())


@given(TENSORS)
def test_a_tensor_is_what_it_says_or_is_refused(tensor: dict[str, Any]) -> None:
    try:
        found = decode_inputs({"x": tensor}, NO_BYTES)["x"]
    except BadRequest:
        return
    assert found.dtype == by_name(tensor["dtype"]).numpy
    assert list(found.shape) == tensor["shape"]


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (200_000,), (2, 1, 3), (70_000, 2)])
def test_lists_become_the_array_that_they_were(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(5).integers(0, 2, shape).astype(dtype)
    said = {"dtype": dtype, "shape": list(shape), "data": array.tolist()}
    found = decode_inputs({"x": said}, NO_BYTES)["x"]
    assert (found.dtype, found.shape) == (array.dtype, shape)
    assert np.array_equal(found, array)


def test_whole_numbers_are_not_rounded_wherever_they_stand() -> None:
    numbers = [1, (1 << 63) + 1] + [0] * 100_000 + [(1 << 64) - 1]
    found = decode_inputs({"x": {"dtype": "uint64", "shape": [len(numbers)], "data": numbers}}, NO_BYTES)["x"]
    assert found.tolist() == numbers


# -- memory ----------------------------------------------------------------------------------------------------------

LONG = "x" * 10_000


@pytest.mark.parametrize(
    "data",
    [
        [LONG, *["a"] * 10_000],
        [*["a"] * 10_000, LONG],
        [1, *["a"] * 10_000, LONG],
        [[LONG, "a"], *[["a", "a"]] * 10_000],
        [[1.0, 1.0], *[["a", LONG]] * 2, *[["a", "a"]] * 10_000],
        {"a": [LONG] * 100},
    ],
)
@pytest.mark.parametrize(
    "take",
    [
        lambda data: decode_inputs({"x": {"dtype": "float32", "shape": [10_001], "data": data}}, NO_BYTES),
        lambda data: decode_inputs({"x": {"dtype": "int64", "shape": [10_001, 2], "data": data}}, NO_BYTES),
        lambda data: vector_of(data, NO_BYTES, "the vector"),
    ],
    ids=["floats", "pairs", "vector"],
)
def test_long_texts_among_numbers_take_no_memory(take: Callable[[Any], Any], data: Any) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest):
            take(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_memory_that_cannot_be_had_is_an_answer_that_clients_know() -> None:
    body = describe(MemoryError("of numpy's"), "an id")
    assert (status_of(MemoryError()), headers_of(MemoryError())) == (503, {"retry-after": "1"})
    assert isinstance(error_of(body), OutOfSpace)
    assert "numpy" not in body.error


def test_a_text_among_numbers_is_refused_over_http(gateway: RunningGateway) -> None:
    tensor = {"dtype": "float32", "shape": [1], "data": ["x" * 30_000, *["a"] * 60_000]}  # of 7 GiB, if numpy saw it
    answer = gateway.ask("POST", EXECUTE, {"code": "output = 1", "inputs": {"x": tensor}})
    assert answer.status_code == 400
    assert "shape" in answer.json()["error"]


# -- registrations ---------------------------------------------------------------------------------------------------

PIECES = [
    "numpy",
    "no-such",
    "==",
    "~=",
    ">=",
    "1.0",
    "1.*",
    ";",
    " ",
    "os_name",
    "extra",
    '"x"',
    "in",
    "@",
    "[a]",
    "(",
    ")",
]
REQUIREMENTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=7).map("".join), st.text(max_size=20))


@MANY
@example([""])
@example(["==1"])
@example([" "])
@example(['numpy; os_name ~= "x"'])
@example(['numpy; "a" in "b"'])
@example(['numpy; "x" in extras'])
@given(st.lists(REQUIREMENTS, max_size=3))
def test_no_dependency_is_a_fault(gateway: RunningGateway, dependencies: list[str]) -> None:
    answer = gateway.ask("POST", ALGORITHMS, {"name": "any", "code": "output = 1", "dependencies": dependencies})
    check(answer.status_code, answer.headers, answer.json())


@MANY
@example({"function": "\0"})
@example({"outputs": ["", ""]})
@example({"timeout_ms": 5e-324})
@example({"resource_requirements": {"memory_mb": 1}})
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["python", "native", "wasm", "torch"]),
            "code": st.sampled_from(["output = 1", "", "\0", "def f(inputs): pass", "\u2028"]),
            "library": st.sampled_from(["", "AAAA", "f0VMRg=="]),
            "wasm": st.sampled_from(["", "AGFzbQEAAAA=", "AGFz"]),
            "function": st.text(max_size=5),
            "outputs": st.lists(st.text(max_size=5), min_size=1, max_size=3),
            "timeout_ms": st.floats(0, 86_400_000, exclude_min=True),
            "reuse": st.booleans(),
            "model": st.text(max_size=5),
            "sha256": st.text("0123456789abcdefABCDEF", min_size=64, max_size=64),
        },
    )
)
def test_no_registration_is_a_fault(gateway: RunningGateway, fields: dict[str, Any]) -> None:
    kind = fields.get("kind", "python")
    usual = {"python": {"code": "output = 1"}, "torch": {"code": "output = 1"}}.get(kind, {})
    answer = gateway.ask("POST", ALGORITHMS, {"name": "any", **usual, **fields})
    check(answer.status_code, answer.headers, answer.json())


@MANY
@given(st.binary(max_size=30), st.sampled_from([EXECUTE, ALGORITHMS, "/api/v1/compute"]))
def test_no_body_is_a_fault(gateway: RunningGateway, body: bytes, path: str) -> None:
    for content in (body, json.dumps({"name": body.decode("latin-1")}).encode()):
        answer = gateway.ask("POST", path, content=content)
        check(answer.status_code, answer.headers, answer.json())
