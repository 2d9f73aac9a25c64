"""What may be written to a loaded tensor, and how a tensor without elements is laid out."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import bits
from support import FRAMEWORKS, environment, open_files
from tsr_files import ARRAY

from tr_mmap import PythonSession
from tr_mmap.tsr import from_file, load, memmap, save
from tr_mmap.tsr.dtypes import TABLE

SHAPES = [(0,), (0, 3), (3, 0), (3, 0, 2), (0, 0), (2, 0, 0, 3), (1, 0, 1), (4, 2, 0), (1,) * 15 + (0,)]


@FRAMEWORKS
@pytest.mark.parametrize("mode", ["r", "c", None])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_in_every_mode_a_tensor_is_the_one_in_the_file(path: Path, framework: str, mode: Any, version: int) -> None:
    for tensor in (ARRAY, np.float32(3), np.zeros((0, 2), np.int8), np.arange(5.0)):
        save(path, tensor, version=version)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert bits(load(path, framework=framework, mode=mode)) == bits(tensor)


@pytest.mark.parametrize("dtype", TABLE, ids=lambda d: d.name)
def test_a_torch_tensor_over_a_read_only_mapping_has_every_dtype(path: Path, dtype: Any) -> None:
    array = np.frombuffer(np.random.default_rng(1).bytes(6 * dtype.itemsize), np.uint8) & 1
    save(path, array.view(dtype.numpy))
    for verify in (False, True):  # the fast path, and the slow one
        save(path, array.view(dtype.numpy), checksum=verify)
        tensor = load(path, framework="torch", mode="r", verify=verify)
        assert (tensor.dtype, bits(tensor)) == (dtype.torch, array.tobytes())


@FRAMEWORKS
def test_what_is_written_to_a_copy_on_write_tensor_stays_here(path: Path, framework: str) -> None:
    save(path, ARRAY)
    before = path.read_bytes()
    tensor: Any = load(path, framework=framework, mode="c")
    other: Any = load(path, framework=framework, mode="c")
    tensor[:] = 7
    assert bool((tensor == 7).all())
    assert path.read_bytes() == before
    assert bits(other) == bits(load(path)) == bits(ARRAY)


@pytest.mark.parametrize("shape", [(3, 5), (), (0, 5)])
def test_numpy_says_which_mode_an_array_has(path: Path, shape: tuple[int, ...]) -> None:
    save(path, np.zeros(shape))
    assert load(path, mode="c").flags.writeable
    assert not load(path, mode="r").flags.writeable
    assert not load(path).flags.writeable


def test_torch_over_a_copy_on_write_array_is_safe(path: Path) -> None:
    """Over a read-only one, ``torch.from_dlpack`` gives a tensor whose store is SIGSEGV."""
    save(path, ARRAY)
    array = load(path, mode="c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tensor in (torch.from_numpy(array), torch.from_dlpack(array), torch.as_tensor(array)):
            tensor.add_(1)
    assert bits(array) == bits(ARRAY + 3)
    assert bits(load(path)) == bits(ARRAY)


STORE = """
import faulthandler, resource, sys, torch
from tr_mmap import load
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
tensor = load(sys.argv[1], framework="torch", mode=sys.argv[2])
print(float(tensor.sum()), flush=True)
tensor.add_(1)
print(float(tensor.sum()), flush=True)
"""


@pytest.mark.parametrize(("mode", "ends"), [("r", -signal.SIGSEGV), ("c", 0)])
def test_a_store_into_a_read_only_torch_tensor_never_reaches_the_file(path: Path, mode: str, ends: int) -> None:
    save(path, ARRAY)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", STORE, str(path), mode], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == ends, done.stderr
    assert done.stdout == ("105.0\n" if mode == "r" else "105.0\n120.0\n")
    assert path.read_bytes() == before


@FRAMEWORKS
def test_a_live_segment_is_loaded_in_either_mode(mapped: PythonSession, framework: str) -> None:
    mapped.send_tensor(ARRAY, "a")
    segment = Path(mapped.session_dir()) / "a.tsr"
    read_only: Any = load(segment, framework=framework, mode="r")
    private: Any = load(segment, framework=framework, mode="c")
    private[:] = 7
    assert bits(read_only) == bits(ARRAY)
    mapped.send_tensor(-ARRAY, "a")
    assert bits(read_only) == bits(ARRAY)


@FRAMEWORKS
@pytest.mark.parametrize("mode", ["r", "c"])
def test_a_sealed_tensor_is_in_memory_of_its_own_in_either_mode(path: Path, framework: str, mode: Any) -> None:
    pytest.importorskip("cryptography")
    save(path, ARRAY, key=bytes(32))
    tensor: Any = load(path, framework=framework, mode=mode, key=bytes(32))
    assert bits(tensor) == bits(ARRAY)
    if (framework, mode) == ("numpy", "r"):
        assert not tensor.flags.writeable
    else:
        tensor[:] = 7
    assert bits(load(path, key=bytes(32))) == bits(ARRAY)


def test_no_mode_keeps_a_descriptor(path: Path) -> None:
    save(path, ARRAY)
    before = open_files().total()
    kept = [load(path, framework=framework, mode=mode) for framework in ("numpy", "torch") for mode in ("r", "c")]
    assert open_files().total() == before
    assert len(kept) == 4


# -- tensors without elements -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_loaded_tensor_without_elements_has_the_strides_of_its_framework(path: Path, shape: tuple[int, ...]) -> None:
    for dtype in (torch.int64, torch.bfloat16, torch.bool):
        original = torch.zeros(shape, dtype=dtype)
        save(path, original)
        tensors = [load(path, framework="torch", mode=mode) for mode in ("r", "c", None)]
        for tensor in (*tensors, from_file(path)):
            assert (tensor.dtype, tensor.shape, tensor.stride()) == (dtype, original.shape, original.stride())
            assert tensor.flatten().view(torch.uint8).numel() == 0
    array = np.zeros(shape, np.int64)
    save(path, array)
    for mode in ("r", "c"):
        mapped = memmap(path, mode)
        assert (type(mapped), mapped.shape, mapped.strides) == (np.memmap, shape, array.strides)
        assert (mapped.mode, mapped.offset, mapped.flags.writeable) == (mode, 256, mode == "c")
    for found in (load(path), load(path, mode="c")):
        assert (found.shape, found.strides) == (array.shape, array.strides)


@FRAMEWORKS
def test_a_received_and_a_lent_tensor_without_elements_have_the_strides_of_their_framework(
    workspace: Path, framework: str
) -> None:
    del workspace
    with PythonSession(session_id="empty", quiet_mode=True, framework=framework) as session:
        for shape in SHAPES:
            original: Any = torch.zeros(shape, dtype=torch.int64) if framework == "torch" else np.zeros(shape, np.int64)
            lent = session.empty(shape, "int64")
            found = [lent, *(session.calculate("echo", tensor) for tensor in (original, lent, original))]
            for tensor in found:
                assert tensor.shape == original.shape
                assert strides(tensor) == strides(original)
                assert framework == "numpy" or tensor.flatten().view(torch.uint8).numel() == 0


def strides(tensor: Any) -> tuple[int, ...]:
    return tensor.stride() if isinstance(tensor, torch.Tensor) else tensor.strides


def test_tensors_without_elements_stay_on_the_cpu_whatever_the_default_device_is(path: Path) -> None:
    save(path, np.zeros((0, 3)))
    torch.set_default_device("meta")
    try:
        found = [load(path, framework="torch"), load(path, framework="torch", mode="r"), from_file(path)]
        save(path, ARRAY)
        found += [load(path, framework="torch"), load(path, framework="torch", mode="r"), from_file(path)]
    finally:
        torch.set_default_device(None)
    assert {str(each.device) for each in found} == {"cpu"}
