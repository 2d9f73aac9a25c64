"""Several tensors as one input: they are copied once, and every run has the same memory."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import check_open_files, grandchildren, open_files, wait_until
from wasm_modules import SCALE

from tr_mmap.errors import UnsupportedTensor
from tr_mmap.sandbox import AlgorithmError, Bundle, Limits, Sandbox

WEIGHTS = {"weight": np.arange(12.0).reshape(3, 4), "bias": np.ones(4, np.float32), "count": np.int64(7)}
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(limits=Limits(wall_ms=30_000, cpu_ms=30_000)) as box:
        yield box


def test_an_algorithm_gets_a_bundle_as_arrays_by_name_and_nothing_is_copied(box: Sandbox) -> None:
    code = "m = inputs['model']\noutput = {'y': inputs['x'] @ m['weight'] + m['bias'], 'n': int(m['count']), 'k': [*m]}"
    response = box.execute(code, {"x": np.ones((1, 3)), "model": Bundle(WEIGHTS)})
    assert response.outputs["y"].tolist() == [[13, 16, 19, 22]]
    assert (response.outputs["n"], response.outputs["k"]) == (7, ["weight", "bias", "count"])
    assert response.input_places == {"x": "copied", "model": "in place"}
    assert response.copied_nbytes == 24


def test_nobody_can_change_a_bundle(box: Sandbox) -> None:
    bundle = Bundle(WEIGHTS)
    assert fcntl.fcntl(bundle.fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    code = """
import os
tried = []
for fd in range(3, 64):
    try:
        if os.fstat(fd).st_size == inputs["nbytes"]:
            os.pwrite(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"x", 0)
            tried.append("written")
    except OSError as error:
        tried.append(type(error).__name__)
inputs["model"]["weight"][0] = 1
"""
    with pytest.raises(AlgorithmError, match="read-only"):
        box.execute(code, {"model": bundle, "nbytes": bundle.nbytes})
    found = box.execute("output = float(inputs['model']['weight'].sum())", {"model": bundle}).outputs["output"]
    assert found == WEIGHTS["weight"].sum()


def test_all_runs_have_the_same_memory(box: Sandbox, tmp_path: Path) -> None:
    """By what the kernel says of two processes that have it at once."""
    bundle = Bundle({"large": np.ones(1 << 20)})
    inode = os.fstat(bundle.fd).st_ino

    def having_it() -> set[int]:
        found = set()
        for process in grandchildren():
            try:
                maps = Path(f"/proc/{process.pid}/maps").read_text()
            except OSError:  # it has ended
                continue
            if any(line.split()[4] == str(inode) and line.split()[1] == "r--s" for line in maps.splitlines()):
                found.add(process.pid)
        return found

    waits = box.register("waits", "import time\noutput = time.sleep(30)")
    futures = [box.submit(waits, {"model": bundle}, request_id=f"wait-{number}") for number in range(2)]
    wait_until(lambda: len(having_it()) == 2)
    for number, future in enumerate(futures):
        assert box.cancel(f"wait-{number}")
        with pytest.raises(BaseException, match="cancelled"):
            future.result(30)


def descriptors_of(inode: int) -> int:
    """How many this process has of some memory."""
    found = 0
    for each in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # of that listing itself
            found += os.stat(f"/proc/self/fd/{each}").st_ino == inode
    return found


def test_its_memory_is_released_with_the_last_run_that_has_it(box: Sandbox) -> None:
    bundle = Bundle(WEIGHTS)
    inode = os.fstat(bundle.fd).st_ino
    assert descriptors_of(inode) == 1
    future = box.submit(box.register("sum", "output = float(inputs['m']['weight'].sum())"), {"m": bundle})
    del bundle
    assert future.result(30).outputs["output"] == 66
    del future
    wait_until(lambda: not descriptors_of(inode))


def test_a_process_that_is_kept_gets_the_bundle_of_each_run(box: Sandbox) -> None:
    kept = box.register("kept", "output = float(inputs['m']['w'][0])", reuse=True)
    for value in (1.0, 2.0, 1.0):
        assert box.run(kept, {"m": Bundle({"w": np.array([value])})}).outputs["output"] == value


def test_a_bundle_is_an_argument_too(box: Sandbox) -> None:
    algorithm = box.register("first", "def first(model, name):\n    return model[name]")
    assert box.call(algorithm, "first", Bundle(WEIGHTS), "bias").tolist() == [1, 1, 1, 1]


def test_a_run_takes_eight_bundles_and_more_arrays_are_copied(box: Sandbox) -> None:
    bundles = {f"b{number}": Bundle({"w": np.full(2, number)}) for number in range(8)}
    code = "output = [int(inputs[f'b{n}']['w'][1]) for n in range(8)] + [int(inputs['x'][0])]"
    lent = box.empty(1000, np.int64)
    lent[:] = 9
    response = box.execute(code, {"x": lent, **bundles, "again": bundles["b0"]})
    assert response.outputs["output"] == [*range(8), 9]
    assert response.input_places["x"] == "copied"
    with pytest.raises(ValueError, match="8 bundles at most"):
        box.execute("output = 1", {**bundles, "one more": Bundle(WEIGHTS)})


def test_what_is_no_tensor_is_in_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTensor):
        Bundle({"text": np.array(["a"])})
    with pytest.raises(TypeError, match="name"):
        Bundle({1: np.ones(2)})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(Bundle(WEIGHTS))


def test_a_file_that_is_truncated_under_a_bundle_is_an_error_and_no_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    np.ones(1 << 16).tofile(path)
    array = np.memmap(path, np.float64, "r")
    os.truncate(path, 100)
    before = open_files()
    with pytest.raises(OSError, match="address"):
        Bundle({"lost": array})
    check_open_files(before)


def test_kinds_without_bundles_say_so() -> None:
    with Sandbox("wasm") as box:
        box.register("scale", SCALE)
        with pytest.raises(TypeError, match="takes no Bundle"):
            box.run("scale", {"model": Bundle(WEIGHTS)})


def test_code_may_lie_in_a_bundle(box: Sandbox) -> None:
    source = np.frombuffer(b"def process(inputs):\n    return {'y': inputs['x'] + 1}\n", np.uint8)
    algorithm = box.register("bundled", Bundle({"code": source}))
    assert (algorithm.code, algorithm.function) == (b"", "process")
    assert box.run(algorithm, {"x": np.arange(3)}).outputs["y"].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="one array of uint8"):
        box.register("bundled", Bundle(WEIGHTS))
    with pytest.raises(ValueError, match="sha256"):
        box.register("bundled", Bundle({"code": source}), sha256="0" * 64)


_DTYPES = st.sampled_from(["float32", "float64", "int8", "uint16", "int64", "bool", "complex64", "float16"])
_ARRAYS = st.builds(
    lambda shape, dtype, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    _DTYPES,
    st.integers(0, 1 << 30),
)


@given(st.dictionaries(st.text(max_size=8).filter(lambda each: each.isprintable()), _ARRAYS, max_size=6))
def test_every_tensor_arrives_as_it_was(box: Sandbox, tensors: dict[str, np.ndarray]) -> None:
    code = """
import hashlib
output = {'said': [[name, str(each.dtype), list(each.shape), bool(each.flags.writeable), bool(each.flags.aligned),
    hashlib.sha256(each.tobytes()).hexdigest()] for name, each in inputs['m'].items()]}
"""
    bundle = Bundle(tensors)
    assert bundle.nbytes == Bundle.nbytes_of(tensors)
    assert box.execute(code, {"m": bundle}).outputs["said"] == [
        [name, str(each.dtype), list(each.shape), False, True, hashlib.sha256(each.tobytes()).hexdigest()]
        for name, each in tensors.items()
    ]
