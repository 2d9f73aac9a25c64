"""The attacks of Python algorithms in sandboxes of kind "torch", and models whose pickles attack as they are loaded."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from attacks import ATTACKS, Attack
from environments import Environment, machines, run_in
from support import once_a_run

from tr_mmap.sandbox import AlgorithmError, LimitExceeded, Limits, NotAllowed, Sandbox

torch = pytest.importorskip("torch", reason="NOT TESTED: escapes of kind 'torch' (torch is not installed)")

# Without private mappings, so not for this kind: its inputs are torch tensors, and stores change the run's own copy.
_NUMPYS = {"store into an input", "make an input writable", "store into an input behind numpy's back",
           "make an input's memory writable"}  # fmt: skip


@once_a_run
def results_in(environment: Environment) -> tuple[list[str], dict[str, Any]]:
    layers, results = json.loads(run_in(environment, "attack_all", "torch"))
    return layers, results


@pytest.mark.parametrize("environment", machines())
@pytest.mark.parametrize("attack", [each for each in ATTACKS if each.name not in _NUMPYS], ids=lambda attack: attack.id)
def test_an_attack_is_denied_by_name(attack: Attack, environment: Environment) -> None:
    layers, results = results_in(environment)
    attack.check(layers, results[attack.id])


class Bomb:
    """Runs code as it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return exec, (self.code,)


class Model(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@once_a_run
def exported() -> bytes:
    made = io.BytesIO()
    torch.export.save(torch.export.export(Model(), (torch.ones(3),)), made)
    return made.getvalue()


def trapped(code: str) -> bytes:
    """A program of torch.export whose example inputs are a pickle that runs code."""
    bomb, changed = io.BytesIO(), io.BytesIO()
    torch.save(Bomb(code), bomb)
    with zipfile.ZipFile(io.BytesIO(exported())) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, bomb.getvalue() if "sample_inputs" in name else old.read(name))
    return changed.getvalue()


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox("torch", limits=Limits(memory_nbytes=1 << 30, wall_ms=60_000, cpu_ms=20_000)) as box:
        yield box


TRAPS: dict[str, tuple[str, type[Exception], tuple[str, str]]] = {
    "reads": ("open('/etc/passwd').read()", NotAllowed, ("rule", "read")),
    "writes": ("open('/var/tmp/escaped', 'w')", NotAllowed, ("rule", "write")),
    "connects": ("import socket; socket.socket()", NotAllowed, ("rule", "net")),
    "forks": ("import os; os.fork() or os._exit(0)", NotAllowed, ("rule", "processes")),
}


@pytest.mark.parametrize("what", TRAPS)
def test_a_pickle_in_a_model_is_opened_contained_and_not_before_a_run(box: Sandbox, what: str) -> None:
    code, error, (name, value) = TRAPS[what]
    algorithm = box.register("trap", trapped(code))  # nothing happens yet
    with pytest.raises(error) as caught:
        box.run(algorithm, {"x": torch.ones(3)})
    assert getattr(caught.value, name) == value


def test_a_pickle_in_a_model_is_bounded(box: Sandbox) -> None:
    limits = Limits(memory_nbytes=1 << 30, wall_ms=20_000, cpu_ms=2000)
    with Sandbox("torch", limits=limits) as short, pytest.raises(LimitExceeded) as caught:
        short.run(short.register("trap", trapped("while True: pass")), {"x": torch.ones(3)})
    assert caught.value.limit in ("cpu_ms", "wall_ms")
    with pytest.raises(AlgorithmError) as ended:
        box.run(box.register("trap", trapped("import os; os.abort()")), {"x": torch.ones(3)})
    assert ended.value.type == "ProcessEnded"


def test_the_same_pickle_runs_its_code_without_the_sandbox() -> None:
    codes = ("open('/etc/passwd').read()", "import socket; socket.socket()", "import os; os.fork() or os._exit(0)")
    traps = [trapped(f"{code}\nprint({code!r}, 'worked')") for code in codes]
    program = """if True:
        import gc
        gc.disable()
        import io, sys, torch
        for nbytes in map(int, sys.argv[1:]):
            try:
                torch.export.load(io.BytesIO(sys.stdin.buffer.read(nbytes)))
            except Exception as error:  # its example inputs are none
                print(error, file=sys.stderr)
        gc.freeze()
    """
    sizes = [str(len(each)) for each in traps]
    ended = subprocess.run(
        [sys.executable, "-c", program, *sizes], input=b"".join(traps), capture_output=True, timeout=100
    )
    for code in codes:
        assert f"{code} worked\n".encode() in ended.stdout, ended.stderr
