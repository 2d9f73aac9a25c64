"""Every attack of a module is denied with a typed error; those that an engine without limits lets through, work there.

Behind the engine lies the contained process: code that has left the engine finds the kernel's rules.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from attacks_wasm import ATTACKS, LIMITS, MEMORY, WELL, WasmAttack
from environments import ENVIRONMENTS, Environment, machines, run_in
from support import once_a_run
from wasmtime import wat2wasm

from tr_mmap.sandbox import AlgorithmError, Allow, Sandbox


@pytest.fixture(scope="module")
def granted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is granted, beside a secret."""
    path = tmp_path_factory.mktemp("wasm") / "granted"
    path.mkdir()
    (path.parent / "secret").write_text("a secret")
    (path / "text").write_text("a text")
    (path / "link").symlink_to("/etc/passwd")
    return path


@pytest.fixture(scope="module")
def box(granted: Path) -> Iterator[Sandbox]:
    with Sandbox("wasm", limits=LIMITS, allow=Allow(read=(str(granted),), clock=True)) as box:
        yield box


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)
def test_an_attack_is_denied_by_name(box: Sandbox, granted: Path, attack: WasmAttack) -> None:
    inputs = attack.inputs_of(str(granted))
    with pytest.raises(attack.error) as caught:
        box.run(box.register("attack", attack.code), inputs)
    name, value = attack.field
    assert not name or getattr(caught.value, name) == value
    assert all((each == 0).all() for each in inputs.values() if isinstance(each, np.ndarray))
    assert sorted(each.name for each in granted.iterdir()) == ["link", "text"]
    assert (granted / "text").read_text() == "a text"
    assert box.run(box.register("well", WELL)).outputs == {"output": 7}


@once_a_run
def results_in(environment: Environment) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        granted = Path(folder, "granted")
        granted.mkdir()
        Path(folder, "secret").write_text("a secret")
        (granted / "text").write_text("a text")
        (granted / "link").symlink_to("/etc/passwd")
        for each in (Path(folder), granted):
            each.chmod(0o755)  # for whoever the program becomes
        _, results = json.loads(run_in(environment, "attack_wasm", str(granted)))
        assert sorted(each.name for each in granted.iterdir()) == ["link", "text"]
        assert (granted / "text").read_text() == "a text"
    return results


@pytest.mark.parametrize("environment", machines("nobody", of=ENVIRONMENTS[1:]))
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)
def test_an_attack_is_denied_by_name_on_other_machines(attack: WasmAttack, environment: Environment) -> None:
    found = results_in(environment)[attack.id]
    assert found is not None, "it works"
    name, value = attack.field
    assert found[0] == attack.error.__name__, found[1]
    assert not name or found[1][name] == value, found[1]


CONTROL = dedent(
    """
    import sys, wasmtime
    directory, *arguments = sys.argv[1:]
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, sys.stdin.buffer.read())
    store, wasi = wasmtime.Store(engine), wasmtime.WasiConfig()
    wasi.argv = ["attack", *arguments]
    wasi.inherit_stdout()
    wasi.preopen_dir(directory, directory)
    store.set_wasi(wasi)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    try:
        linker.instantiate(store, module).exports(store)["_start"](store)
    except wasmtime.ExitTrap as error:
        sys.exit(error.code)
    """
)


@pytest.mark.parametrize("attack", [each for each in ATTACKS if each.has_control], ids=lambda attack: attack.id)
def test_the_same_attack_works_where_all_is_granted(tmp_path: Path, attack: WasmAttack) -> None:
    granted = tmp_path / "granted"
    granted.mkdir()
    (tmp_path / "secret").write_text("a secret")
    (granted / "text").write_text("a text")
    (granted / "link").symlink_to("../secret")
    arguments = attack.inputs_of(str(granted)).get("arguments", [])
    root = "/" if arguments else str(granted)
    program = [sys.executable, "-c", CONTROL, root, *arguments]
    ended = subprocess.run(program, input=attack.code, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_16_a_run_finds_nothing_of_the_run_before(box: Sandbox) -> None:
    code = f"""(module {MEMORY} (func (export "f") (result i32)
        (i32.load (i32.const 1024)) (i32.store (i32.const 1024) (i32.const 7))))"""
    algorithm = box.register("f", bytes(wat2wasm(code)))
    assert [box.run(algorithm).outputs["output"] for _ in range(3)] == [0, 0, 0]
    kept = box.register("f", bytes(wat2wasm(code)), reuse=True)
    assert [box.run(kept).outputs["output"] for _ in range(3)] == [0, 7, 7]  # the control


# -- code that has left the engine ------------------------------------------------------------------------------------

STORES = " ".join(f"(i32.store (i32.const {4 * n}) (i32.const {0x11110000 + n}))" for n in range(40))
VICTIM = bytes(wat2wasm(f'(module {MEMORY} (func (export "attack") (result i32) {STORES} (i32.const 0)))'))
FORK, SOCKET, OPEN = "57", "41", "2"


def _native(number: str, rdi: int, rsi: int, rdx: int) -> bytes:
    """Machine code of a function: a system call, whose result is the function's."""
    loads = b"".join(
        code + value.to_bytes(4, "little") for code, value in ((b"\xbf", rdi), (b"\xbe", rsi), (b"\xba", rdx))
    )
    return loads + b"\xb8" + int(number).to_bytes(4, "little") + b"\x0f\x05\x48\x89\xec\x5d\xc3"


def _subvert(compiled: bytes, code: bytes) -> bytes:
    """A compiled module whose function runs other machine code, as an error of the compiler might let it."""
    start = compiled.index((0x11110000).to_bytes(4, "little")) + 4
    return compiled[:start] + code + compiled[start + len(code) :]


def _kept(box: Sandbox) -> dict[Any, Any]:
    """The compiled modules that a sandbox keeps."""
    return box._kept._values


@pytest.mark.skipif(platform.machine() != "x86_64", reason="NOT TESTED here: the machine code is of x86-64")
@pytest.mark.parametrize(
    "call", [(FORK, 0, 0, 0), (SOCKET, 2, 1, 0), (SOCKET, 1, 1, 0)], ids=["fork", "TCP", "unix socket"]
)
def test_code_that_has_left_the_engine_is_contained(box: Sandbox, call: tuple[str, int, int, int]) -> None:
    algorithm = box.register("attack", VICTIM)
    assert box.run(algorithm).outputs["output"] == 0
    key, found = next((key, each) for key, each in _kept(box).items() if key[0] == VICTIM)
    subverted = _subvert(found.code.tobytes(), _native(*call))
    _kept(box)[key] = found._replace(code=np.frombuffer(subverted, np.uint8))
    try:
        assert box.run(algorithm).outputs["output"] == -1  # EPERM
    finally:
        _kept(box)[key] = found
    program = dedent(
        """
        import os, sys, wasmtime
        engine = wasmtime.Engine()
        compiled = bytes(wasmtime.Module(engine, bytes.fromhex(sys.argv[1])).serialize())
        start = compiled.index(bytes.fromhex("00001111")) + 4
        code = bytes.fromhex(sys.argv[2])
        module = wasmtime.Module.deserialize(engine, compiled[:start] + code + compiled[start + len(code):])
        store = wasmtime.Store(engine)
        result = wasmtime.Instance(store, module, []).exports(store)["attack"](store)
        if result == 0:
            os._exit(0)  # the child
        sys.exit(0 if result > 0 else 1)
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, VICTIM.hex(), _native(*call).hex()], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def test_a_compiled_module_of_other_flags_is_refused_by_the_engine(box: Sandbox) -> None:
    import wasmtime

    algorithm = box.register("attack", VICTIM)
    key, found = next((key, each) for key, each in _kept(box).items() if key[0] == VICTIM)
    other = bytes(wasmtime.Module(wasmtime.Engine(), VICTIM).serialize())
    _kept(box)[key] = found._replace(code=np.frombuffer(other, np.uint8))
    try:
        with pytest.raises(AlgorithmError):
            box.run(algorithm)
    finally:
        _kept(box)[key] = found
