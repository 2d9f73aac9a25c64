# ruff: noqa: E501 - modules in text
"""Kind "wasm": tensors reach ``tr_run`` as ``tr_algorithm.h`` says, mapped into its memory, and come back."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from wasm_modules import DATA, DTYPE, EXAMPLES, NAME, NBYTES, NDIM, SCALE, SHAPE, module, tensors

from tr_mmap.sandbox import AlgorithmError, Limits, Sandbox

# What tr_run copies: the whole description and the elements of input 0 to output 0.
COPY = tensors(
    f"""(local $to i32) (local $from i32)
    (local.set $to (i32.load (i32.add (local.get $out) (i32.const {DATA}))))
    (local.set $from (i32.load (i32.add (local.get $in) (i32.const {DATA}))))
    (memory.copy (local.get $out) (local.get $in) (i32.const {DATA}))
    (memory.copy (local.get $to) (local.get $from) (i32.load (i32.add (local.get $in) (i32.const {NBYTES}))))
    (i32.const 0)"""
)


def says(*stores: tuple[str, int, int]) -> bytes:
    """A module that says these things of its output: type, offset, value."""
    body = "".join(
        f"({kind}.store (i32.add (local.get $out) (i32.const {offset})) ({kind}.const {value}))"
        for kind, offset, value in stores
    )
    return tensors(body + "(i32.const 0)")


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox("wasm", limits=Limits(output_nbytes=8 << 20)) as box:
        yield box


@pytest.mark.parametrize("reuse", [False, True], ids=["fresh", "kept"])
def test_a_compiled_algorithm_doubles_a_tensor(box: Sandbox, reuse: bool) -> None:
    scale = box.register("scale", SCALE, reuse=reuse)
    for shape in [(3, 4), (), (0,), (1000, 1000), (7,), (2, 0, 3)]:
        x = np.random.default_rng(1).random(shape, np.float32)
        y = box.run(scale, {"x": x}).outputs["output"]
        assert y.shape == shape
        np.testing.assert_array_equal(y, 2 * x)
        assert not y.flags.writeable


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "int8",
        "int32",
        "float16",
        "bfloat16",
        "float64",
        "int16",
        "uint8",
        "int64",
        "bool",
        "complex64",
        "float8_e4m3fn",
    ],
)
def test_every_type_and_shape_arrives_and_returns(box: Sandbox, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    copy = box.register("copy", COPY)
    for shape in [(), (5,), (2, 3, 1, 2), (1,) * 16, (0, 4)]:
        x = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
        y = box.run(copy, {"x": x}).outputs["output"]
        assert (y.dtype, y.shape) == (kind, shape)
        assert y.tobytes() == x.tobytes()


def test_arrays_of_any_layout_arrive_in_c_order(box: Sandbox) -> None:
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    for x in (base.T, base[::-1, ::2], np.asfortranarray(base), base.astype(">i4")):
        np.testing.assert_array_equal(box.run(box.register("copy", COPY), {"x": x}).outputs["output"], x)


def test_names_and_order_of_tensors_are_the_callers(box: Sandbox) -> None:
    # Output k is the name of input k: n outputs of n bytes, the third of which is of the third input.
    one = f"""(local $i i32) (local $to i32) (local $from i32)
    (loop $l
      (i32.store (local.get $out) (i32.const 8)) (i32.store (i32.add (local.get $out) (i32.const {NDIM})) (i32.const 1))
      (i64.store (i32.add (local.get $out) (i32.const {SHAPE})) (i64.const 3))
      (i64.store (i32.add (local.get $out) (i32.const {NBYTES})) (i64.const 3))
      (local.set $to (i32.load (i32.add (local.get $out) (i32.const {DATA}))))
      (local.set $from (i32.load (i32.add (local.get $in) (i32.const {NAME}))))
      (memory.copy (local.get $to) (local.get $from) (i32.const 3))
      (local.set $in (i32.add (local.get $in) (i32.const 160))) (local.set $out (i32.add (local.get $out) (i32.const 160)))
      (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $m))))
    (i32.const 0)"""
    algorithm = box.register("names", tensors(one), outputs=("a", "b", "c"))
    outputs = box.run(algorithm, {name: np.zeros(5) for name in ("uvw", "xyz", "rst")}).outputs
    assert {name: each.tobytes() for name, each in outputs.items()} == {"a": b"uvw", "b": b"xyz", "c": b"rst"}


def test_the_algorithms_own_error_reaches_its_user(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError, match=r"^one float32 tensor, please$") as caught:
        box.run(box.register("scale", SCALE), {"x": np.zeros(3)})
    assert caught.value.type == "Failed"


def test_a_result_that_has_no_room_is_an_error(box: Sandbox) -> None:
    scale = box.register("scale", SCALE)
    assert box.run(scale, {"x": np.zeros(2 << 20, np.float32)}).outputs["output"].nbytes == 8 << 20
    with pytest.raises(AlgorithmError, match="no room"):
        box.run(scale, {"x": np.zeros((2 << 20) + 1, np.float32)})


def test_a_number_is_no_tensor(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError, match="'k' is none"):
        box.run(box.register("scale", SCALE), {"x": np.zeros(3, np.float32), "k": 2})


LIES = {
    "nothing": says(),
    "a negative size": says(("i32", DTYPE, 8), ("i32", NDIM, 1), ("i64", SHAPE, -1), ("i64", NBYTES, 0)),
    "more bytes than there are": says(
        ("i32", DTYPE, 8), ("i32", NDIM, 1), ("i64", SHAPE, 1 << 40), ("i64", NBYTES, 1 << 40)
    ),
    "sizes whose product overflows": says(
        ("i32", DTYPE, 8), ("i32", NDIM, 2), ("i64", SHAPE, 1 << 32), ("i64", SHAPE + 8, 1 << 32), ("i64", NBYTES, 0)
    ),
    "too many sizes": says(("i32", DTYPE, 8), ("i32", NDIM, 17), ("i64", NBYTES, 1)),
    "fewer sizes than none": says(("i32", DTYPE, 8), ("i32", NDIM, -1), ("i64", NBYTES, 1)),
    "a type that does not exist": says(("i32", DTYPE, 99), ("i64", NBYTES, 1)),
    "another place": says(("i32", DTYPE, 8), ("i64", NBYTES, 1), ("i32", DATA, 0)),
    "bytes that its shape has not": says(("i32", DTYPE, 8), ("i32", NDIM, 1), ("i64", SHAPE, 3), ("i64", NBYTES, 4)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_an_outputs_description_is_an_error(box: Sandbox, lie: str) -> None:
    with pytest.raises(AlgorithmError):
        box.run(box.register("liar", LIES[lie]), {"x": np.zeros(3)})


STORE = tensors(f"(i32.store8 (i32.load (i32.add (local.get $in) (i32.const {DATA}))) (i32.const 1)) (i32.const 0)")


def test_a_store_into_an_input_is_an_ordinary_trap(box: Sandbox) -> None:
    x = np.zeros(3)
    with pytest.raises(AlgorithmError) as caught:
        box.run(box.register("store", STORE), {"x": x})
    assert caught.value.type == "MemoryOutOfBounds"
    assert "tr_run" in caught.value.traceback
    assert (x == 0).all()


def test_a_system_function_that_would_write_into_an_input_ends_the_process_only(box: Sandbox) -> None:
    with Sandbox("wasm", limits=box.limits) as granting:
        code = tensors(
            f"(call $args (i32.load (i32.add (local.get $in) (i32.const {DATA}))) (i32.const 0))",
            '(import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))',
        )
        with pytest.raises(AlgorithmError) as caught:
            granting.run(granting.register("store", code), {"x": np.zeros(3)})
        assert caught.value.type in ("ProcessEnded", "Failed")
        assert granting.run(granting.register("copy", COPY), {"x": np.ones(3)}).outputs["output"].tolist() == [1, 1, 1]


def test_inputs_do_not_count_for_the_limit_on_memory() -> None:
    with Sandbox("wasm", limits=Limits(memory_nbytes=4 << 20, output_nbytes=64 << 20)) as box:
        x = np.ones(16 << 20, np.float32)
        assert (box.run(box.register("scale", SCALE), {"x": x}).outputs["output"] == 2).all()


def test_a_kept_instance_takes_larger_and_smaller_tensors_in_turn(box: Sandbox) -> None:
    copy = box.register("copy", COPY, reuse=True)
    for size in (10, 1_000_000, 10, 2_000, 1_000_001, 0, 300_000):
        x = np.random.default_rng(size).integers(0, 255, size, np.uint8)
        np.testing.assert_array_equal(box.run(copy, {"x": x}).outputs["output"], x)


def test_a_result_of_a_kept_instance_does_not_change_when_the_instance_runs_again(box: Sandbox) -> None:
    copy = box.register("copy", COPY, reuse=True)
    first = box.run(copy, {"x": np.full(100_000, 1, np.uint8)}).outputs["output"]
    second = box.run(copy, {"x": np.full(100_000, 2, np.uint8)}).outputs["output"]
    assert (first == 1).all()
    assert (second == 2).all()


def test_memory_that_may_not_grow_is_an_error_that_says_so(box: Sandbox) -> None:
    code = module(
        '(memory (export "memory") 1 1)',
        '(func (export "tr_run") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))',
    )
    with pytest.raises(AlgorithmError, match="maximum of its own"):
        box.run(box.register("x", code), {"x": np.zeros(3)})


def test_tr_run_without_a_memory_is_an_error(box: Sandbox) -> None:
    code = module('(func (export "tr_run") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))')
    with pytest.raises(AlgorithmError, match="memory"):
        box.run(box.register("x", code), {"x": np.zeros(3)})


def test_tr_run_of_another_signature_is_an_error(box: Sandbox) -> None:
    code = module('(memory (export "memory") 1)', '(func (export "tr_run") (param i32) (result i32) (i32.const 0))')
    with pytest.raises(AlgorithmError):
        box.run(box.register("x", code), {"x": np.zeros(3)})


@pytest.mark.parametrize("reuse", [False, True], ids=["fresh", "kept"])
def test_runs_at_once_do_not_mix(reuse: bool) -> None:
    with Sandbox("wasm", max_workers=10, limits=Limits(wall_ms=30_000)) as box:
        scale = box.register("scale", SCALE, reuse=reuse)
        futures = [box.submit(scale, {"x": np.full(50_000, n, np.float32)}) for n in range(40)]
        for n, future in enumerate(futures):
            assert (future.result().outputs["output"] == 2 * n).all()


def test_nothing_is_left_after_a_sandbox() -> None:
    def count() -> tuple[int, list[str]]:
        gc.collect()
        children = subprocess.run(
            ["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True
        ).stdout
        return len(os.listdir("/proc/self/fd")), [each for each in children.split() if each != "ps"]

    def use() -> None:
        with Sandbox("wasm") as box:
            for reuse in (False, True):
                scale = box.register("scale", SCALE, reuse=reuse)
                for size in (10, 100_000):
                    box.run(scale, {"x": np.ones(size, np.float32)})
                with pytest.raises(AlgorithmError):
                    box.run(scale, {"x": np.ones(3)})

    use()
    before = count()
    use()
    assert count() == before


@pytest.mark.parametrize("reuse", [False, True], ids=["fresh", "kept"])
def test_a_loan_is_read_in_place(box: Sandbox, reuse: bool) -> None:
    copy = box.register("copy", COPY, reuse=reuse)
    for size in (1000, 100_000, 70_000):
        x = box.empty(size, np.int32)
        x[:] = np.arange(size)
        response = box.run(copy, {"x": x})
        np.testing.assert_array_equal(response.outputs["output"], x)
        assert response.copied_nbytes == 0


def test_the_example_in_c_is_built_from_its_source(tmp_path: Path) -> None:
    linker = os.environ.get("WASM_LD") or shutil.which("wasm-ld") or shutil.which("wasm-ld-14")
    if shutil.which("clang") is None or linker is None:
        pytest.skip("NOT TESTED: there is no clang with wasm-ld, so the example's module was not built again")
    include = EXAMPLES.parents[1] / "tr_mmap" / "cpp" / "include"
    flags = ["--target=wasm32", "-O3", "-msimd128", "-mbulk-memory", "-ffreestanding", "-nostdlib", "-Wl,--no-entry"]
    built = tmp_path / "scale.wasm"
    subprocess.run(
        ["clang", *flags, f"-I{include}", f"-fuse-ld={linker}", "-o", built, EXAMPLES / "scale.c"], check=True
    )
    with Sandbox("wasm") as box:
        x = np.arange(1000, dtype=np.float32)
        np.testing.assert_array_equal(box.run(box.register("s", built.read_bytes()), {"x": x}).outputs["output"], 2 * x)


def test_a_file_is_read_in_place(box: Sandbox, tmp_path: Path) -> None:
    x = np.arange(300_000, dtype=np.float32)  # its end is in the middle of a page
    np.save(tmp_path / "x.npy", x)
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    fresh, kept = box.register("fresh", SCALE), box.register("kept", SCALE, reuse=True)
    for _ in range(2):
        for algorithm, place in ((fresh, "in place"), (kept, "copied")):
            response = box.run(algorithm, {"x": array})
            np.testing.assert_array_equal(response.outputs["output"], 2 * x)
            assert response.input_places == {"x": place}
            assert response.output_places == {"output": "in place"}


def test_inputs_of_a_kept_instance_may_grow_until_one_alone_is_too_large() -> None:
    """Windows that were too small take addresses of the instance, which has 4 GiB."""
    with Sandbox("wasm", limits=Limits(output_nbytes=1 << 20, wall_ms=60_000, cpu_ms=60_000)) as box:
        first = box.register("first", COPY, reuse=True)
        for mib in (800, 1000, 1100, 1200):  # more than 4 GiB in all
            outputs = box.run(first, {"a": np.ones(3), "x": np.zeros(mib << 20, np.uint8)}).outputs
            assert outputs["output"].sum() == 3
