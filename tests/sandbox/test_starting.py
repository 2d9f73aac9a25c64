"""A sandbox starts in every program that has Python: frozen, embedded, patched, with strange directories on its path.

A program that has none is told so, and is never started itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

RUN = "from tr_mmap.sandbox import Sandbox\nwith Sandbox() as box:\n  print(box.execute('output = 1 + 1').outputs)\n"
REFUSED = (
    "from tr_mmap.sandbox import Sandbox, SandboxBroken\n"
    "try:\n  Sandbox()\nexcept SandboxBroken as error:\n  print('refused:', error)\n"
)


def run(code: str, *, cwd: Path, **env: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


WITHOUT_PYTHON = {
    "frozen": "sys.frozen = True; sys.executable = app",
    "embedded": "sys.executable = app",
    "empty": "sys.executable = ''",
    "unknown": "sys.executable = None",
    "gone": "sys.executable = app + '/gone'",
}


@pytest.mark.parametrize("kind", WITHOUT_PYTHON)
def test_a_program_that_is_no_python_never_starts_itself_and_is_told_what_to_set(tmp_path: Path, kind: str) -> None:
    app = tmp_path / "app"
    app.write_text("#!/bin/sh\ntouch started\nsleep 1000\n")
    app.chmod(0o755)
    begin = f"import sys; app = {str(app)!r}; {WITHOUT_PYTHON[kind]}\n"
    told = run(begin + REFUSED, cwd=tmp_path, TR_PYTHON="")
    assert "refused: there is no Python to run the sandbox:" in told
    assert "set TR_PYTHON" in told
    assert run(begin + RUN, cwd=tmp_path, TR_PYTHON=sys.executable) == "{'output': 2}\n"
    assert sorted(os.listdir(tmp_path)) == ["app"]


def test_a_python_that_is_not_there_is_told(tmp_path: Path) -> None:
    told = run(REFUSED, cwd=tmp_path, TR_PYTHON=str(tmp_path / "none"))
    assert f"refused: the interpreter of the sandbox, '{tmp_path}/none' (TR_PYTHON), is no program" in told


@pytest.mark.parametrize("module", ["numpy", "msgspec", "json", "tr_mmap"])
def test_no_module_is_taken_from_a_directory_that_the_program_put_on_its_path_later(
    tmp_path: Path, module: str
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / f"{module}.py").write_text("raise SystemExit('the wrong one')")
    begin = "import os, sys, json, numpy, msgspec, tr_mmap\nos.chdir('project'); sys.path.insert(0, os.getcwd())\n"
    assert run(begin + RUN, cwd=tmp_path) == "{'output': 2}\n"


def test_modules_are_found_in_a_directory_that_only_the_program_knows(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "known_here.py").write_text("x = 2")
    code = (
        "import sys; sys.path.append('mine'); sys.path[-1] = __import__('os').path.abspath('mine')\n"
        "from tr_mmap.sandbox import Sandbox\n"
        "with Sandbox(preload=('known_here',)) as box:\n"
        "  print(box.execute('import known_here; output = known_here.x').outputs)"
    )
    assert run(code, cwd=tmp_path) == "{'output': 2}\n"


def test_runs_are_right_in_a_program_that_gevent_has_patched(tmp_path: Path) -> None:
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "from tr_mmap.sandbox import Sandbox\n"
        "with Sandbox() as box:\n"
        "  for _ in range(5): assert box.execute('output = 1 + 1').outputs == {'output': 2}\n"
        "  f = box.register('f', 'output = inputs[\"x\"] + 1', reuse=True)\n"
        "  futures = [box.submit(f, {'x': x}) for x in range(5)]\n"
        "  print([each.result(60).outputs['output'] for each in futures])"
    )
    assert run(code, cwd=tmp_path) == "[1, 2, 3, 4, 5]\n"
