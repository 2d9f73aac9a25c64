# ruff: noqa: E501 - modules in text
"""Kind "wasm": exported functions, commands, what they are granted, and which modules are refused."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import wasmtime
from wasm_modules import EXAMPLES, MEMORY, NUMBERS, SCALE, WORDS, module, wasi

from tr_mmap.sandbox import AlgorithmError, Allow, Limits, NotAllowed, Sandbox, wasm


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox("wasm") as box:
        yield box


# -- exported functions -----------------------------------------------------------------------------------------------


def test_an_exported_function_is_called_with_numbers_and_returns_them(box: Sandbox) -> None:
    algorithm = box.register("numbers", NUMBERS)
    assert box.call(algorithm, "add", 2, 3) == 5
    assert box.call(algorithm, "both", 1, 2.5) == [2.5, 1]
    assert box.call(algorithm, "nothing") is None
    assert box.call(algorithm, "add", np.int32(2), np.uint8(3)) == 5


@pytest.mark.parametrize("value", [math.inf, -math.inf, 5e-324, -0.0, 1.7976931348623157e308])
def test_a_number_arrives_and_returns_without_loss(box: Sandbox, value: float) -> None:
    found = box.call(box.register("numbers", NUMBERS), "half", value)
    assert math.copysign(1, found) == math.copysign(1, value)
    assert found == value / 2


def test_not_a_number_is_a_number(box: Sandbox) -> None:
    assert math.isnan(box.call(box.register("numbers", NUMBERS), "half", math.nan))


@pytest.mark.parametrize(
    ("value", "found"), [(-(1 << 63), -(1 << 63)), ((1 << 63) - 1, (1 << 63) - 1), ((1 << 64) - 1, -1)]
)
def test_integers_are_as_wide_as_the_function_says(box: Sandbox, value: int, found: int) -> None:
    assert box.call(box.register("numbers", NUMBERS), "wide", value) == found


@pytest.mark.parametrize(
    ("arguments", "kind"), [((1,), "TypeError"), ((1, 2.5), "TypeError"), ((1, 1 << 32), "OverflowError")]
)
def test_arguments_that_do_not_fit_are_an_error(box: Sandbox, arguments: tuple[object, ...], kind: str) -> None:
    with pytest.raises(AlgorithmError) as caught:
        box.call(box.register("numbers", NUMBERS), "add", *arguments)
    assert caught.value.type == kind


def test_a_text_is_no_argument_of_an_exported_function(box: Sandbox) -> None:
    with pytest.raises(TypeError, match="numbers"):
        box.call(box.register("numbers", NUMBERS), "add", "2", 3)


def test_a_function_that_is_not_there_is_named_with_those_that_are(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError, match="'sub'; it has add, half"):
        box.call(box.register("numbers", NUMBERS), "sub", 2, 3)
    with pytest.raises(AlgorithmError):
        box.register("numbers", NUMBERS, "sub")


def test_the_function_of_the_algorithms_name_is_the_one_that_runs(box: Sandbox) -> None:
    assert box.run(box.register("add", NUMBERS), {"a": 2, "b": 3}).outputs == {"output": 5}


def test_state_stays_with_reuse_only(box: Sandbox) -> None:
    fresh, kept = box.register("fresh", NUMBERS), box.register("kept", NUMBERS, reuse=True)
    assert [box.call(fresh, "count") for _ in range(3)] == [1, 1, 1]
    assert [box.call(kept, "count") for _ in range(3)] == [1, 2, 3]
    assert box.call(kept, "add", 2, 3) == 5  # another function of the same instance
    assert box.call(kept, "count") == 4


def test_a_trap_names_its_reason_and_the_modules_frames(box: Sandbox) -> None:
    code = module(
        "(func $inner (param i32) (result i32) (i32.div_s (i32.const 1) (local.get 0)))",
        '(func $outer (export "f") (param i32) (result i32) (call $inner (local.get 0)))',
    )
    with pytest.raises(AlgorithmError, match="divide by zero") as caught:
        box.call(box.register("f", code), "f", 0)
    assert caught.value.type == "IntegerDivisionByZero"
    assert caught.value.traceback.index("inner") < caught.value.traceback.index("outer")


def test_a_name_of_a_function_makes_no_lines_of_its_own(box: Sandbox) -> None:
    code = module('(func $evil (export "f") unreachable)').replace(b"evil", b"e\nil")
    with pytest.raises(AlgorithmError) as caught:
        box.run(box.register("f", code))
    assert "  e?il, byte" in caught.value.traceback


def test_a_module_may_have_several_memories(box: Sandbox) -> None:
    code = module(
        "(memory $a 1) (memory $b 1)",
        '(func (export "f") (result i32) (i32.store $b (i32.const 0) (i32.const 7)) (i32.load $a (i32.const 0)))',
    )
    assert box.call(box.register("f", code), "f") == 0


# -- which modules are refused ----------------------------------------------------------------------------------------


def _serialized() -> bytes:
    return bytes(wasmtime.Module(wasmtime.Engine(), NUMBERS).serialize())


@pytest.mark.parametrize(
    "make",
    [lambda: b"(module)", lambda: b"", lambda: b"\0asm\x0d\0\1\0", lambda: b"\x7fELF" + bytes(64), _serialized],
    ids=["text", "nothing", "a component", "a shared library", "a compiled module"],
)
def test_what_is_no_module_in_its_binary_form_is_refused(box: Sandbox, make) -> None:
    with pytest.raises(AlgorithmError) as caught:
        box.register("x", make())
    assert caught.value.type == "NotAModule"


def test_a_compiled_module_behind_the_first_bytes_of_another_is_refused(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError):
        box.register("x", b"\0asm\x01\0\0\0" + _serialized())


@pytest.mark.parametrize("field", ["(memory i64 1)", "(memory 1 1 shared)"], ids=["64-bit memory", "shared memory"])
def test_what_is_off_is_refused_at_registration(box: Sandbox, field: str) -> None:
    with pytest.raises(AlgorithmError):
        box.register("x", module(field))


@pytest.mark.parametrize("what", ['"env" "f" (func)', '"wasi_snapshot_preview1" "memory" (memory 1)'])
def test_an_import_that_is_no_function_of_wasi_is_refused_by_name(box: Sandbox, what: str) -> None:
    with pytest.raises(AlgorithmError, match=what.split('"')[3]) as caught:
        box.register("x", module(f"(import {what})"))
    assert caught.value.type == "ImportError"


def test_a_module_of_another_digest_is_refused(box: Sandbox) -> None:
    digest = hashlib.sha256(NUMBERS).hexdigest()
    assert box.register("numbers", NUMBERS, sha256=digest.upper()).code == NUMBERS
    with pytest.raises(AlgorithmError, match=hashlib.sha256(SCALE).hexdigest()):
        box.register("other", SCALE, sha256=digest)
    with pytest.raises(KeyError):
        box.run("other")


def test_registration_executes_nothing(box: Sandbox) -> None:
    code = module('(func $f (unreachable)) (start $f) (func (export "g"))')
    algorithm = box.register("g", code)
    with pytest.raises(AlgorithmError) as caught:
        box.run(algorithm)
    assert caught.value.type == "Unreachable"


def test_a_modules_own_initialization_runs_before_its_function(box: Sandbox) -> None:
    code = module(
        "(global $n (mut i32) (i32.const 0)) (func $start (global.set $n (i32.const 3)))",
        '(func (export "_initialize") (global.set $n (i32.mul (global.get $n) (i32.const 2)))) (start $start)',
        '(func (export "f") (result i32) (global.get $n))',
    )
    assert box.call(box.register("f", code), "f") == 6


def test_a_compiled_module_is_made_again_when_a_limit_changes_what_it_is() -> None:
    with Sandbox("wasm") as box:
        algorithm = box.register("numbers", NUMBERS)
        for changes in ({"fuel": 1000}, {"stack_nbytes": 1 << 20}, {"fuel": None}):
            box.set_limits(**changes)
            assert box.call(algorithm, "add", 2, 3) == 5


# -- commands and what they are granted -------------------------------------------------------------------------------


def test_a_command_reads_its_input_and_prints(box: Sandbox) -> None:
    words = box.register("words", WORDS)
    response = box.run(words, {"stdin": "to be or not"})
    assert (response.stdout, response.outputs) == ("4 words\n", {"exit_code": 0})
    assert box.run(words, {"stdin": np.frombuffer(b"a b c", np.uint8)}).stdout == "3 words\n"
    assert box.run(words).stdout == "0 words\n"


def test_a_command_reads_what_was_granted_and_nothing_else(tmp_path: Path) -> None:
    granted, other = tmp_path / "granted", tmp_path / "other"
    for each in (granted, other):
        each.mkdir()
        (each / "text").write_text("one two")
    (granted / "link").symlink_to(other / "text")
    with Sandbox("wasm", allow=Allow(read=(str(granted),))) as box:
        words = box.register("words", WORDS)
        assert box.run(words, {"arguments": [str(granted / "text")]}).stdout == "2 words\n"
        for path in (other / "text", granted / ".." / "other" / "text", granted / "link", "/etc/passwd"):
            with pytest.raises(AlgorithmError, match=r"status 1; it printed last: .*(ermitted|pre-opened)") as caught:
                box.run(words, {"arguments": [str(path)]})
            assert caught.value.type == "ExitStatus"


@pytest.mark.parametrize(
    ("name", "flags", "rights", "is_allowed"),
    [("old", 0, 2, True), ("old", 0, 64, False), ("new", 1, 64, False), ("old", 8, 64, False)],
    ids=["read", "write", "create", "truncate"],
)
def test_a_granted_directory_can_be_read_and_not_written(
    tmp_path: Path, name: str, flags: int, rights: int, is_allowed: bool
) -> None:
    (tmp_path / "old").write_text("x")
    code = module(
        '(import "wasi_snapshot_preview1" "path_open"',
        "(func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))",
        f'(memory (export "memory") 1) (data (i32.const 0) "{name}")',
        '(func (export "f") (result i32) (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 3)',
        f"(i32.const {flags}) (i64.const {rights}) (i64.const 0) (i32.const 0) (i32.const 64)))",
    )
    with Sandbox("wasm", allow=Allow(read=(str(tmp_path),))) as box:
        assert (box.run(box.register("f", code)).outputs["output"] == 0) == is_allowed
    assert [each.name for each in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "x"


def test_a_command_has_the_granted_variables_and_not_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    # environ_sizes_get(0, 4), which prints nothing: the module returns how many there are.
    code = module(
        '(import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))',
        MEMORY,
        '(func (export "count") (result i32) (drop (call $sizes (i32.const 0) (i32.const 4))) (i32.load (i32.const 0)))',
    )
    for env in ({}, {"A": "1", "B": "2"}):
        with Sandbox("wasm", allow=Allow(env=env)) as box:
            assert box.call(box.register("count", code), "count") == len(env)


CLOCK = wasi("clock_time_get", "i32 i64 i32", "(i32.const 0) (i64.const 0) (i32.const 0)")
SLEEP = wasi("poll_oneoff", "i32 i32 i32 i32", "(i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)")
RANDOM = wasi("random_get", "i32 i32", "(i32.const 0) (i32.const 8)")


@pytest.mark.parametrize(
    ("rule", "code"), [("clock", CLOCK), ("clock", SLEEP), ("random", RANDOM)], ids=["time", "sleep", "random"]
)
def test_clock_and_chance_are_denied_by_name_unless_granted(box: Sandbox, rule: str, code: bytes) -> None:
    with pytest.raises(NotAllowed, match=rf"Allow\({rule}=True\)") as caught:
        box.run(box.register("x", code))
    assert caught.value.rule == rule
    with Sandbox("wasm", allow=Allow(**{rule: True})) as granting:
        assert granting.run(granting.register("x", code)).outputs == {"exit_code": 0}


def test_a_command_that_fails_says_how(box: Sandbox) -> None:
    code = module(
        '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))', MEMORY,
        '(func (export "_start") (call $exit (i32.const 3)))',
    )  # fmt: skip
    with pytest.raises(AlgorithmError, match="status 3") as caught:
        box.run(box.register("x", code))
    assert caught.value.type == "ExitStatus"


@pytest.mark.parametrize("inputs", [{"x": 1}, {"arguments": "a"}, {"arguments": ["a\0b"]}, {"stdin": 1}])
def test_inputs_that_a_command_does_not_have_are_an_error(box: Sandbox, inputs: dict[str, object]) -> None:
    with pytest.raises(AlgorithmError) as caught:
        box.run(box.register("words", WORDS), inputs)
    assert caught.value.type == "TypeError"


def test_what_is_printed_is_cut_to_its_limit() -> None:
    code = module(
        '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))',
        '(memory (export "memory") 1) (data (i32.const 0) "\\08\\00\\00\\00\\04\\00\\00\\00abc\\0a")',
        '(func (export "_start") (local $n i32) (loop $l',
        "(drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))",
        "(br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 5000)))))",
    )
    with Sandbox("wasm", limits=Limits(output_nbytes=4096)) as box:
        assert box.run(box.register("x", code)).stdout == "abc\n" * 1024


# -- the package ------------------------------------------------------------------------------------------------------


def test_without_wasmtime_the_package_works_and_the_kind_names_its_extra() -> None:
    program = """if True:
        import sys
        sys.modules["wasmtime"] = None
        import importlib.util
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "wasmtime" else find_spec(name, *rest)
        import tr_mmap.sandbox
        from tr_mmap.errors import MissingPackage
        try:
            tr_mmap.sandbox.Sandbox("wasm")
        except MissingPackage as error:
            assert error.package == "wasmtime" and "tr_mmap[sandbox]" in str(error), error
        else:
            raise SystemExit("no error")
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_host_never_loads_the_engine() -> None:
    program = f"""if True:
        import sys
        from tr_mmap.sandbox import Sandbox
        with Sandbox("wasm") as box:
            assert box.call(box.register("add", {NUMBERS!r}), "add", 2, 3) == 5
        assert "wasmtime" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("limits", [{"stack_nbytes": 1 << 30}, {"stack_nbytes": 1 << 10}, {"fuel": -1}])
def test_a_limit_that_cannot_be_kept_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"stack_nbytes|fuel"):
        Sandbox("wasm", limits=Limits(**limits))


def test_a_grant_that_cannot_be_given_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"{path.name}' is no directory"):
            Sandbox("wasm", allow=Allow(read=(str(path),)))


def test_fuel_is_refused_where_nothing_burns_it() -> None:
    with pytest.raises(ValueError, match="wasm"):
        Sandbox("contained", limits=Limits(fuel=1))


def test_the_committed_modules_are_small() -> None:
    assert {each.name for each in EXAMPLES.glob("*.wasm")} == {"scale.wasm", "words.wasm"}
    assert all(each.stat().st_size < 100 << 10 for each in EXAMPLES.glob("*.wasm"))


def numbered(number: int) -> bytes:
    return module(f'(func (export "f") (result i32) (i32.const {number}))')


def test_modules_that_come_and_go_leave_nothing_in_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do those stay that go on: a descriptor and addresses for each would be used up."""

    def addresses() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    with Sandbox("wasm") as box:
        for number in range(5):
            box.register("f", numbered(number))
            assert box.call("f", "f") == number
            box.unregister("f")
        assert not box._kept._values
        descriptors, mapped = len(os.listdir("/proc/self/fd")), addresses()
        for number in range(20):
            box.register("f", numbered(number), reuse=number % 2 == 0)
            assert box.call("f", "f") == number
            if number % 4:
                box.unregister("f")
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 8
        assert addresses() < mapped + 10 * (512 << 20)
        monkeypatch.setattr(wasm, "_MAX_KEPT", 3)
        for number in range(5):
            box.register(f"f{number}", numbered(100 + number))
        assert len(box._kept._values) == 3
