"""Kind "native": shared libraries that g++ has built, what is refused at registration, and how crashes are told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from native_libraries import AT_LOAD, DOUBLE, EXAMPLE, MANY, library

from tr_mmap.sandbox import AlgorithmError, Allow, LimitExceeded, Limits, NotAllowed, Sandbox
from tr_mmap.sandbox.kept import Kept

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    limits = Limits(memory_nbytes=128 << 20, wall_ms=30_000, output_nbytes=4 << 20)
    with Sandbox("native", limits=limits) as box:
        yield box


# -- tensors ----------------------------------------------------------------------------------------------------------


def test_a_library_computes_on_a_tensor(box: Sandbox) -> None:
    algorithm = box.register("double", library(DOUBLE))
    assert algorithm.function == "tr_run"
    for x in (X, X.T, X[:, ::2], X[:0], np.float32(3), np.zeros((1,) * 16, np.float32)):
        y = box.run(algorithm, {"x": x}).outputs["output"]
        assert np.array_equal(y, x * 2)
        assert y.shape == x.shape
        assert not y.flags.writeable


def test_a_library_is_given_by_its_path_too(box: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "double.so"
    path.write_bytes(library(DOUBLE))
    for given in (path, str(path)):
        algorithm = box.register("double", given)
        assert np.array_equal(box.run(algorithm, {"x": X}).outputs["output"], X * 2)
    path.write_bytes(b"changed")  # it was read when it was registered
    assert np.array_equal(box.run(algorithm, {"x": X}).outputs["output"], X * 2)
    with pytest.raises(FileNotFoundError):
        box.register("double", tmp_path / "missing.so")
    with pytest.raises(AlgorithmError) as caught:
        box.register("double", library(DOUBLE), sha256="0" * 64)
    assert caught.value.type == "DigestMismatch"


def test_a_function_is_called_with_arguments(box: Sandbox) -> None:
    box.register("many", library(MANY))
    assert np.array_equal(box.call("many", "tr_run", X), X * 2)
    with pytest.raises(AlgorithmError, match="0:3 1:6 output ") as caught:
        box.call("many", "names", np.int32(1), 2.0 * np.ones(3))
    assert caught.value.type == "Failed"
    with pytest.raises(AlgorithmError, match="no 'missing'"):
        box.call("many", "missing", X)


def test_the_example_decides_types_and_shapes_of_two_outputs(box: Sandbox) -> None:
    algorithm = box.register("normalize", library(EXAMPLE), outputs=("y", "means"))
    x = np.random.default_rng(1).normal(3, 2, (100, 7)).astype(np.float32)
    for outputs in (box.run(algorithm, {"x": x}).outputs, box.call(algorithm, "tr_run", x)):
        assert np.allclose(outputs["means"], x.mean(0), atol=1e-5)
        assert outputs["means"].dtype == np.float64
        assert np.allclose(outputs["y"], (x - x.mean(0)) / x.std(0), atol=1e-4)
    with pytest.raises(AlgorithmError, match=r"^one float32 matrix, please"):
        box.run(algorithm, {"x": x.astype(np.float64)})


def test_outputs_are_as_many_as_were_named_each_with_its_own_type_and_shape(box: Sandbox) -> None:
    names = [f"o{number}" for number in range(8)]
    outputs = box.run(box.register("many", library(MANY), "triangle", outputs=names), {}).outputs
    assert list(outputs) == names
    assert [each.shape for each in outputs.values()] == [(1, number) for number in range(8)]
    assert [each.dtype for each in outputs.values()] == ["uint8", "int16", "int32", "float64"] * 2


@pytest.mark.parametrize("reuse", [False, True])
def test_outputs_have_room_up_to_their_limit_together(box: Sandbox, reuse: bool) -> None:
    limit = box.limits.output_nbytes
    large = box.register("large", library(MANY), "large", outputs=("a", "b"), reuse=reuse)
    for sizes in ([limit, 0], [0, limit], [limit // 2, limit // 2], [5, 7]):
        found = box.run(large, {"sizes": np.array(sizes)}).outputs
        assert [each.size for each in found.values()] == sizes
        assert all((each == 7).all() for each in found.values())
    with pytest.raises(LimitExceeded) as caught:
        box.run(large, {"sizes": np.array([limit, 64])})
    assert caught.value.limit == "output_nbytes"
    with pytest.raises(AlgorithmError, match="no room"):
        box.run(large, {"sizes": np.array([limit + 1, 0])})


@pytest.mark.parametrize(
    "lie", [(0, 17), (0, -1), (0, 3), (1, -2), (1, 1 << 62), (2, 9), (2, 1 << 40), (3, 0), (3, 4096), (4, 99), (4, -1)]
)
def test_what_a_library_says_wrongly_of_an_output_is_an_error(box: Sandbox, lie: tuple[int, int]) -> None:
    with pytest.raises(AlgorithmError) as caught:
        box.call(box.register("many", library(MANY)), "lies", np.array(lie))
    assert caught.value.type in ("ValueError", "UnsupportedTensor")


def test_an_output_that_was_not_made_is_an_error(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError, match="has not made its output 'output'"):
        box.call(box.register("many", library(MANY)), "nothing", X)


def test_a_value_that_is_no_tensor_is_an_error_by_name(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError, match="'factor' is none") as caught:
        box.run(box.register("double", library(DOUBLE)), {"x": X, "factor": 2})
    assert caught.value.type == "TypeError"


def test_a_loan_is_read_in_place(box: Sandbox) -> None:
    lent = box.empty((300, 40), np.float32)
    lent[:] = 4
    for part, copied_nbytes in ((lent, 0), (lent[8:88], 80 * 40 * 4)):
        response = box.run(box.register("double", library(DOUBLE)), {"x": part})
        assert response.copied_nbytes == copied_nbytes
        assert np.array_equal(response.outputs["output"], part * 2)


def test_a_library_stays_loaded_only_if_its_process_is_reused(box: Sandbox) -> None:
    fresh = box.register("counts", library(MANY), "counts")
    assert [int(box.run(fresh).outputs["output"][0]) for _ in range(3)] == [1, 1, 1]
    kept = box.register("counts", library(MANY), "counts", reuse=True)
    assert [int(box.run(kept).outputs["output"][0]) for _ in range(3)] == [1, 2, 3]
    assert np.array_equal(
        box.run(box.register("double", library(DOUBLE), reuse=True), {"x": X}).outputs["output"], X * 2
    )


# -- registration -----------------------------------------------------------------------------------------------------


def test_a_library_that_does_not_export_the_function_is_refused_with_what_it_exports(box: Sandbox) -> None:
    code = library("FUNCTION(other) { return 0; }\nint tr_run_hidden() { return 0; }")
    with pytest.raises(AlgorithmError, match=r"exports no 'tr_run'; it exports other$") as caught:
        box.register("other", code)
    assert caught.value.type == "NameError"
    assert box.register("other", code, "other").function == "other"
    with pytest.raises(AlgorithmError, match="'tr_run'; it exports nothing"):
        box.register("empty", library("static int x = 1;"))
    with pytest.raises(AlgorithmError, match="'tr_run'"):  # data of that name
        box.register("data", library('extern "C" { __attribute__((visibility("default"))) int tr_run = 1; }'))


@pytest.mark.parametrize(
    "flags", [("-Wl,--hash-style=sysv",), ("-Wl,--hash-style=gnu",), ("-Wl,--hash-style=both",), ("-s",)]
)
def test_exports_are_found_however_the_library_was_linked(box: Sandbox, flags: tuple[str, ...]) -> None:
    algorithm = box.register("double", library(DOUBLE, *flags))
    assert np.array_equal(box.run(algorithm, {"x": X}).outputs["output"], X * 2)


def _changed(code: bytes, at: int, value: bytes) -> bytes:
    return code[:at] + value + code[at + len(value) :]


def test_what_is_no_library_for_this_machine_is_refused(box: Sandbox, tmp_path: Path) -> None:
    code = library(DOUBLE)
    source = tmp_path / "main.c"
    source.write_text("int main() { return 0; }\nint tr_run() { return 0; }")
    subprocess.run(["gcc", "-fPIE", "-pie", "-rdynamic", "-o", tmp_path / "program", source], check=True)
    subprocess.run(["gcc", "-fPIC", "-c", "-o", tmp_path / "object.o", source], check=True)
    wrong = {
        "is no ELF file": b"",
        "is no ELF file ": b"\0asm\1\0\0\0",
        "ends within": code[:20],
        "is for another machine": _changed(code, 18, b"\x28\0"),
        "word or byte order": _changed(code, 4, b"\1"),
        "is a program": (tmp_path / "program").read_bytes(),
        "is an object file": (tmp_path / "object.o").read_bytes(),
        "is damaged": code[: len(code) // 3],
        "is damaged ": _changed(code, 32, b"\xff" * 7),
    }
    for why, data in wrong.items():
        with pytest.raises(AlgorithmError, match=why.strip()) as caught:
            box.register("wrong", data)
        assert caught.value.type == "NotALibrary"


def test_a_damaged_library_is_refused_or_fails_by_a_typed_error() -> None:
    code, random = library(DOUBLE), np.random.default_rng(7)
    with Sandbox("native", limits=Limits(wall_ms=1000, cpu_ms=200)) as box:
        for _ in range(50):
            data = bytearray(code)
            for at in random.integers(0, min(len(code), 0x1200), 6):
                data[at] = random.integers(256)
            try:
                box.run(box.register("damaged", bytes(data)), {"x": X})
            except (AlgorithmError, LimitExceeded, NotAllowed):
                pass
        assert np.array_equal(box.run(box.register("double", code), {"x": X}).outputs["output"], X * 2)


def test_nothing_of_a_library_is_executed_at_registration_or_in_the_host(tmp_path: Path) -> None:
    code = library(DOUBLE + AT_LOAD + 'AT_LOAD { FILE *f = fopen("/data/ran", "w"); if (f) fclose(f); }')
    from tr_mmap.sandbox import Mount

    mount = Mount(str(tmp_path), "/data", readonly=False)
    with Sandbox("native", allow=Allow(mounts=(mount,))) as box:
        algorithm = box.register("eager", code)
        assert not list(tmp_path.iterdir())
        box.run(algorithm, {"x": X})
        assert [each.name for each in tmp_path.iterdir()] == ["ran"]  # a run does
    assert "/memfd:tr_mmap-area" not in _executable_mappings()


def _executable_mappings() -> str:
    return "\n".join(line for line in Path("/proc/self/maps").read_text().splitlines() if "x" in line.split()[1])


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("for (;;);", LimitExceeded),
        ("pause();", LimitExceeded),
        ("abort();", AlgorithmError),
        ("*reinterpret_cast<volatile int *>(8) = 1;", AlgorithmError),
        ("_exit(0);", AlgorithmError),
        ("if (fork() < 0) _exit(7);", AlgorithmError),
        ("for (;;) memset(malloc(1 << 20), 1, 1 << 20);", AlgorithmError),
    ],
)
def test_what_runs_as_a_library_is_loaded_is_contained_and_bounded(body: str, error: type[Exception]) -> None:
    code = library(DOUBLE + AT_LOAD + f"AT_LOAD {{ {body} }}")
    with Sandbox("native", limits=Limits(wall_ms=2000, cpu_ms=300, memory_nbytes=64 << 20)) as box:
        algorithm = box.register("eager", code)
        with pytest.raises(error):
            box.run(algorithm, {"x": X})
        assert np.array_equal(box.run(box.register("double", library(DOUBLE)), {"x": X}).outputs["output"], X * 2)


def test_a_library_that_lacks_another_says_which_and_what_to_do(box: Sandbox, tmp_path: Path) -> None:
    helper = tmp_path / "libhelper.so"
    helper.write_bytes(
        library(
            'extern "C" __attribute__((visibility("default"))) int help() { return 0; }', "-Wl,-soname,libhelper.so"
        )
    )
    needy = (
        'extern "C" int help();\n'
        "FUNCTION(tr_run) { const int64_t one = 1; tr_make(&out[0], TR_INT8, 1, &one); return help(); }"
    )
    with pytest.raises(AlgorithmError, match=r"libhelper\.so.*-Wl,-rpath,") as caught:
        box.run(box.register("needy", library(needy, str(helper))))
    assert caught.value.type == "LoadError"
    with Sandbox("native", allow=Allow(read=(str(tmp_path),))) as granting:
        code = library(needy, str(helper), f"-Wl,-rpath,{tmp_path}")
        assert granting.run(granting.register("needy", code)).outputs["output"].size == 1


# -- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("touch_nothing", "SIGSEGV"),
        ("abort_", "SIGABRT"),
        ("throws", "SIGABRT"),
        ("throws_in_thread", "SIGABRT"),
        ("divides", "SIGFPE"),
        ("illegal", "SIGILL"),
        ("exits", "exit status 3"),
        ("exits_well", "exit status 0"),
    ],
)
def test_a_crash_is_told_by_what_happened(box: Sandbox, function: str, told: str) -> None:
    with pytest.raises(AlgorithmError, match=told) as caught:
        box.call(box.register("many", library(MANY)), function, X)
    assert caught.value.type == "ProcessEnded"
    assert np.array_equal(box.call("many", "tr_run", X), X * 2)


def test_what_was_printed_before_a_crash_is_told(box: Sandbox) -> None:
    box.register("many", library(MANY))
    with pytest.raises(AlgorithmError) as caught:
        box.call("many", "touch_nothing", X)
    assert caught.value.stdout == "before the fault\n"
    with pytest.raises(AlgorithmError) as caught:
        box.call("many", "throws", X)
    assert "thrown and not caught" in caught.value.stdout
    assert "thrown and not caught" in caught.value.__notes__[0]


@pytest.mark.parametrize("function", ["recurses", "large_frame"])
def test_a_full_stack_is_told_as_its_limit(box: Sandbox, function: str) -> None:
    with pytest.raises(LimitExceeded) as caught:
        box.call(box.register("many", library(MANY)), function, X)
    assert caught.value.limit == "stack_nbytes"


def test_errors_of_a_library_are_passed_on(box: Sandbox) -> None:
    box.register("many", library(MANY))
    with pytest.raises(AlgorithmError, match=r"^one float32 tensor, please$") as caught:
        box.call("many", "tr_run", np.zeros(3))
    assert caught.value.type == "Failed"
    with pytest.raises(AlgorithmError, match=r"^fails_by_number returned 7$"):
        box.call("many", "fails_by_number")
    with pytest.raises(AlgorithmError, match=r"^x{1023}$"):
        box.call("many", "long_error")
    with pytest.raises(LimitExceeded) as exceeded:
        box.call("many", "no_memory")
    assert exceeded.value.limit == "memory_nbytes"


def test_a_system_call_that_was_refused_is_told_by_its_rule(box: Sandbox) -> None:
    with pytest.raises(NotAllowed, match=r"^fork: .*Allow\(syscalls") as caught:
        box.call(box.register("many", library(MANY)), "forks")
    assert caught.value.rule == "syscalls"
    is_hidden = "mount_namespace" in box.layers  # then the file is not there, and only its name could tell more
    with pytest.raises(AlgorithmError if is_hidden else NotAllowed, match=r"/etc/passwd.*Allow\(read"):
        box.call("many", "wants_file")


def test_what_a_library_prints_is_captured(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError) as caught:  # it makes no output
        box.call(box.register("many", library(MANY)), "prints")
    assert caught.value.stdout == "printed\nand told\n"


def test_a_sandbox_leaves_no_descriptor() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with Sandbox("native") as box:
            for flags in ((), ("-s",), ("-O2",)):
                box.run(box.register("double", library(DOUBLE, *flags), reuse=bool(flags)), {"x": X})
        del box
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_no_torch_and_no_engine_is_needed() -> None:
    program = f"""if True:
        import sys
        import numpy as np
        sys.modules["torch"] = sys.modules["wasmtime"] = None
        from tr_mmap.sandbox import Sandbox
        with Sandbox("native") as box:
            box.register("double", {library(DOUBLE)!r})
            assert box.call("double", "tr_run", np.ones(3, np.float32)).tolist() == [2, 2, 2]
    """
    subprocess.run([sys.executable, "-"], input=program.encode(), check=True)


def test_executors_that_follow_each_other_share_what_they_keep() -> None:
    kept = Kept()
    wrong: list[object] = []

    def use(first: int) -> None:
        for number in range(first, first + 3000):
            kept.put(number % 40, number, lambda values: len(values) > 16)
            kept.get((number + 7) % 40)
            if len(kept._values) > 17:
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    assert 1 <= len(kept._values) <= 16
    with Sandbox("native") as box:
        former = box._executor
        box.set_limits(wall_ms=4000)
        assert former._kept is box._executor._kept is box._kept  # type: ignore[attr-defined]


def test_libraries_that_come_and_go_leave_no_descriptor() -> None:
    with Sandbox("native") as box:
        for number in range(10):
            box.register("double", library(DOUBLE) + bytes([number]))
            assert np.array_equal(box.run("double", {"x": X}).outputs["output"], X * 2)
            box.unregister("double")
            assert not box._kept._values
