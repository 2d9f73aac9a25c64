"""Both clients of the gateway: what they send is run, and what comes back is what was raised or returned."""

from __future__ import annotations

import math as mathematics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from blocking_clients import KINDS, client_of
from gateways import RunningGateway
from support import wait_until

from tr_mmap.gateway.errors import AlreadyDone, BadRequest, Forbidden, NotFound, Unauthorized
from tr_mmap.sandbox import AlgorithmError, DeadlineExceeded, LimitExceeded, NotAllowed, RunCancelled

DOUBLE = "def double(inputs):\n    print('doubling')\n    return {'output': inputs['x'] * 2}\n"
SAME = "output = inputs['x']"
FOREVER = "while True: pass"
CONSTANT = 3.0


@pytest.fixture(scope="module", params=KINDS)
def client(request: pytest.FixtureRequest, gateway: RunningGateway) -> Iterator[Any]:
    with client_of(request.param, gateway.url, gateway.token("admin")) as made:
        made.register("double", DOUBLE)
        yield made


# -- algorithms ------------------------------------------------------------------------------------------------------


def test_an_algorithm_is_registered_described_listed_and_forgotten(client: Any) -> None:
    info = client.register("thrice", "output = inputs['x'] * 3", memory_mb=300, cpu_cores=1, timeout_ms=700, reuse=True)
    assert (info.name, info.kind, info.reuse, info.timeout_ms) == ("thrice", "python", True, 700)
    assert info.resource_requirements.memory_mb == 300
    assert client.algorithm("thrice") == info
    assert info in client.algorithms()
    assert client.run(info, {"x": 14}).value == 42
    assert client.unregister(info) == info
    with pytest.raises(NotFound, match="thrice"):
        client.algorithm("thrice")


def test_code_comes_from_a_text_a_file_or_bytes(client: Any, tmp_path: Path) -> None:
    source = tmp_path / "algorithm.py"
    source.write_text("output = inputs['x'] + 'ß'", encoding="utf-8")
    client.register("from-file", source)
    assert client.run("from-file", {"x": "ü"}).value == "üß"
    module = b"\0asm\1\0\0\0\1\7\1\x60\2\x7f\x7f\1\x7f\3\2\1\0\7\x0b\1\7process\0\0\x0a\x09\1\7\0\x20\0\x20\1\x6a\x0b"
    assert client.register("from-bytes", wasm=module).kind == "wasm"
    path = tmp_path / "module.wasm"
    path.write_bytes(module)
    assert client.register("from-bytes", wasm=path).kind == "wasm"


def centre(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    def square(x: float) -> float:
        return mathematics.pow(x, 2)

    return {"y": inputs["x"] - np.mean(inputs["x"]), "nine": square(3)}


def test_a_function_goes_with_the_modules_that_it_uses(client: Any) -> None:
    info = client.register(centre)
    assert (info.name, info.function) == ("centre", "centre")
    result = client.run("centre", {"x": np.array([1.0, 3.0])})
    assert (result["y"].tolist(), result["nine"]) == ([-1.0, 1.0], 9.0)
    assert client.execute(centre, {"x": np.array([2.0])})["y"].tolist() == [0.0]


def uses_a_constant(inputs: dict[str, Any]) -> Any:
    return inputs["x"] * CONSTANT


def test_a_function_that_cannot_go_says_why(client: Any) -> None:
    with pytest.raises(BadRequest, match="'CONSTANT' of its surroundings"):
        client.register(uses_a_constant)
    inner = 4

    def uses_its_surroundings(inputs: dict[str, Any]) -> Any:
        return inner

    with pytest.raises(BadRequest, match="'inner' of its surroundings"):
        client.register("x", uses_its_surroundings)

    async def is_awaited(inputs: dict[str, Any]) -> Any:
        return 1

    for wrong in (lambda _: 1, len, dict, is_awaited):
        with pytest.raises(BadRequest, match="def"):
            client.register("x", wrong)


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1.5, "text", None, True, [1, [2]], {"a": {"b": []}}, {"shape": [1]}, 1 << 63])
def test_values_come_back_as_they_went(client: Any, value: object) -> None:
    assert client.execute(SAME, {"x": value}).value == value


def test_an_object_that_only_looks_like_a_tensor_is_a_value(client: Any) -> None:
    code = "output = {'dtype': 'pear', 'shape': [1], 'data': 7}"
    assert client.execute(code).value == {"dtype": "pear", "shape": [1], "data": 7}


ARRAYS = {
    "floats": np.array([[0.0, -0.0, np.nan], [np.inf, 1e-40, 3]], np.float32),
    "scalar": np.array(2.5),
    "empty": np.empty((0, 3), np.int16),
    "bools": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(10, dtype=np.uint64)[::3],
    "big_endian": np.arange(4, dtype=">i4"),
    "bfloat16": np.arange(4).astype(ml_dtypes.bfloat16),
    "large": np.arange(1 << 18, dtype=np.float64),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_for_bit(client: Any, name: str) -> None:
    array = ARRAYS[name]
    result = client.execute(SAME, {"x": array}).value
    wanted = array.astype(array.dtype.newbyteorder("="))
    assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape)
    assert result.tobytes() == wanted.tobytes()


def test_several_tensors_go_and_come_by_name(client: Any) -> None:
    code = "def f(inputs):\n    return {'sum': inputs['a'] + inputs['b'], 'b': inputs['b'], 'n': inputs['n']}"
    a, b = np.arange(5, dtype=np.float32), np.ones(5, np.float32)
    result = client.execute(code, {"a": a, "n": 7, "b": b})
    assert np.array_equal(result["sum"], a + b)
    assert np.array_equal(result["b"], b)
    assert result["n"] == 7


def test_a_result_says_what_was_printed_and_how_long_it_took(client: Any) -> None:
    result = client.run("double", {"x": np.float32(4)})
    assert (result.value, result.stdout) == (8, "doubling\n")
    assert result.execution_time_ms > 0
    assert len(result.request_id) == 32


def test_tensors_of_torch_give_tensors_of_torch(client: Any) -> None:
    import torch

    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        tensor = torch.tensor([[0, 1], [1, 1]]).to(dtype)
        result = client.execute(SAME, {"x": tensor}).value
        assert isinstance(result, torch.Tensor)
        assert result.dtype == dtype
        assert torch.equal(result, tensor)
    code = "import numpy as np; output = np.arange(3)"
    assert torch.equal(client.execute(code, framework="torch").value, torch.arange(3))
    task = client.submit(code=code, framework="torch")
    assert torch.equal(task.result().value, torch.arange(3))
    as_numpy = client.execute(SAME, {"x": torch.arange(3)}, framework="numpy").value
    assert isinstance(as_numpy, np.ndarray)


@pytest.mark.parametrize(
    "inputs", [[1, 2], [], (), "x", 0, np.arange(3), np.zeros(0), {1: 2}, {None: 1}, {"a": 1}.items()]
)
def test_inputs_that_are_no_dictionary_by_name_are_refused(client: Any, inputs: Any) -> None:
    for ask in (client.run, client.execute, client.submit):
        with pytest.raises(BadRequest, match=r"inputs? (are|is) "):
            ask("output = 1", inputs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout_ms": "5"}, "timeout_ms"),
        ({"timeout_ms": object()}, "timeout_ms"),
        ({"priority": "high"}, "priority"),
        ({"priority": object()}, "priority"),
        ({"priority": float("nan")}, "priority"),
        ({"function": b"f"}, "function"),
    ],
)
def test_an_option_of_a_run_that_is_of_a_wrong_type_is_named(client: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        client.execute("output = 1", **options)
    with pytest.raises(BadRequest, match=said):
        client.submit(code="output = 1", **options)
    assert client.execute("output = 1", priority=np.int64(5), timeout_ms=np.float64(5000)).value == 1


@pytest.mark.parametrize(
    "path", ["alg.py", "./alg.py", "/home/ada/my algorithm.py", r"C:\alg.py", "alg.py\n", "mod.wasm", "lib.so"]
)
def test_the_path_of_a_file_as_a_text_is_no_code_and_a_path_is_advised(client: Any, path: str) -> None:
    for ask in (
        lambda: client.register("x", path),
        lambda: client.execute(path),
        lambda: client.submit(code=path),
    ):
        with pytest.raises(BadRequest, match="looks like the path of a file: give Path"):
            ask()
    for field in ("wasm", "library"):
        with pytest.raises(BadRequest, match=f"{field} is .*; give the bytes of the file, or its path as a Path"):
            client.register("x", **{field: path})


def test_code_that_ends_as_a_path_does_is_code(client: Any) -> None:
    assert client.execute("class a: py = 1\noutput = a.py").value == 1
    assert client.register("attribute", "import types; a = types.SimpleNamespace(py=2); output = a.py").function is None


@pytest.mark.parametrize("timeout_s", ["1", -1, float("nan"), True, object()])
def test_a_time_that_is_none_is_refused(client: Any, timeout_s: Any) -> None:
    with pytest.raises(BadRequest, match="is no number of seconds"):
        client.task("0" * 32).result(timeout_s)
    with pytest.raises(BadRequest, match="is no number of seconds"):
        client.make_environment(["numpy"], timeout_s=timeout_s)


def test_an_input_that_cannot_be_sent_is_named(client: Any) -> None:
    for value in (object(), float("nan"), {1: 2}):
        with pytest.raises(BadRequest, match="the input 'x'"):
            client.execute(SAME, {"x": value})


# -- errors ----------------------------------------------------------------------------------------------------------


def test_an_algorithm_s_error_has_its_type_and_traceback(client: Any) -> None:
    with pytest.raises(AlgorithmError, match="division") as caught:
        client.execute("def f(inputs):\n    print('before')\n    return 1 / 0\n")
    error = caught.value
    assert (error.type, error.stdout) == ("ZeroDivisionError", "before\n")
    assert "line 3" in error.traceback
    assert error.__notes__ == [error.traceback]
    assert len(error.request_id) == 32


def test_what_the_sandbox_refuses_is_the_same_error_here(client: Any) -> None:
    with pytest.raises(NotAllowed) as denied:
        client.execute("open('/etc/shadow')")
    assert (denied.value.rule, denied.value.detail) == ("read", "/etc/shadow")
    with pytest.raises(LimitExceeded) as exceeded:
        client.execute("output = bytes(1 << 40)")
    assert (exceeded.value.limit, exceeded.value.value) == ("memory_mb", 512)
    with pytest.raises(DeadlineExceeded) as late:
        client.execute(FOREVER, timeout_ms=100)
    assert (late.value.limit, late.value.value) == ("timeout_ms", 100)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_does_not_do_is_an_error_of_its_own(gateway: RunningGateway, kind: str) -> None:
    for token in ("", "nonsense"):
        with client_of(kind, gateway.url, token) as client, pytest.raises(Unauthorized, match="token"):
            client.algorithms()
    with client_of(kind, gateway.url, gateway.token("execute") + "\n") as client:
        client.algorithms()
        with pytest.raises(Forbidden, match="'register'"):
            client.register("x", "output = 1")


def test_a_registration_with_a_mistake_says_which(client: Any) -> None:
    with pytest.raises(BadRequest, match="memory_mb"):
        client.register("x", "output = 1", memory_mb=1 << 30)
    with pytest.raises(BadRequest, match="code"):
        client.register("x")
    with pytest.raises(AlgorithmError, match="syntax"):
        client.register("x", "def f(:")
    for name in ("a/b", "..", ""):
        with pytest.raises((BadRequest, NotFound)):
            client.algorithm(name)


# -- tasks -----------------------------------------------------------------------------------------------------------


def test_a_task_is_started_followed_and_asked_for_its_result(client: Any) -> None:
    array = np.arange(1000, dtype=np.float32)
    task = client.submit("double", {"x": array}, priority=3)
    result = task.result()
    assert np.array_equal(result.value, array * 2)
    assert (result.stdout, task.status()) == ("doubling\n", "success")
    assert [each.status for each in task.events()] == ["success"]
    info = client.task(task.id).info()
    assert (info.algorithm, info.priority) == ("double", 3)
    assert np.array_equal(info.result, array * 2)


def test_a_task_that_fails_raises_what_failed(client: Any) -> None:
    with pytest.raises(AlgorithmError) as caught:
        client.submit(code="1 / 0").result()
    assert caught.value.type == "ZeroDivisionError"


def test_a_task_that_goes_on_is_waited_for_no_longer_than_is_said_and_cancelled(client: Any) -> None:
    task = client.submit(code=FOREVER, timeout_ms=60_000)
    wait_until(lambda: task.status() == "running")
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        task.result(timeout_s=0.05)
    task.cancel()
    with pytest.raises(RunCancelled):
        task.result()
    assert [each.status for each in task.events()][-1] == "cancelled"
    with pytest.raises(AlreadyDone):
        task.cancel()


def test_a_task_that_is_not_there_is_not_found(client: Any) -> None:
    task = client.task("0" * 32)
    for ask in (task.status, task.result, task.cancel, lambda: list(task.events())):
        with pytest.raises(NotFound):
            ask()


# -- the gateway -----------------------------------------------------------------------------------------------------


def test_the_gateway_says_how_it_is(client: Any) -> None:
    assert client.health().status == "ok"
    client.execute("output = 1")
    status = client.scheduler_status()
    counts = {
        name: value for each in status.queues.values() for name, value in each.items() if not name.endswith("_ms")
    }
    assert counts
    assert all(type(each) is int for each in counts.values()), counts
    assert status.queues["python"]["success_total"] >= 1
    assert not status.is_draining
