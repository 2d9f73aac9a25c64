"""Every example runs by itself, says what it should, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

EXAMPLES = ROOT / "examples"

# What each must print: lines, or parts of them. Workers are run by their controllers.
EXPECTED = {
    "hello.py": ["Hello World", "[11. 22.]"],
    "matrix_math.py": [
        "Hello Matrix",
        "product is right: True",
        "and as JSON: True",
        "and in one call: True",
        "unknown command: transpose",
    ],
    "decorator.py": [
        "one tensor: [[0.0, 2.5], [5.0, 7.5], [10.0, 12.5]]",
        "in one call: [10.0, 20.0]",
        "two tensors: [0.0, 1.0] [4.0, 5.0]",
        "a text: sample: float32 (3, 2)",
        "the worker's state: 45",
        "an error: ValueError in extremes",
        "raised at: ValueError: zero-size array",
        "and the worker goes on: True",
    ],
    "files.py": [
        "header: float32 (512, 256) 524288 bytes",
        "equal: True writeable: False",
        "checksum right: True",
        "layout 1: 128 bytes",
        "a damaged file: truncated",
    ],
    "loans.py": ["sum: 4194304.0", "kept: [0.0, 1.0, 2.0]"],
    "digits/demo.py": [
        "every result is what the same computation gives here",
        "both processes have mapped one file",
        "the worker has ended and the session directory is gone",
    ],
}
WORKERS = {"matrix_math_server.py", "decorator_worker.py", "digits/worker.py"}


def run(name: str, workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=workspace.parent,  # an example must not depend on where it is started
        env={**os.environ, "TR_WORKSPACE": str(workspace), "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_every_example_is_run_here() -> None:
    found = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py")}
    assert found == set(EXPECTED) | WORKERS


@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs_and_says_what_it_should(name: str, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    result = run(name, workspace)
    assert result.returncode == 0, result.stdout + result.stderr
    for expected in EXPECTED[name]:
        assert expected in result.stdout
    assert not [path for path in workspace.rglob("*") if path.is_file()]


def test_demo_runs_over_the_portable_channel(tmp_path: Path) -> None:
    result = run("digits/demo.py", tmp_path / "workspace", "--channel", "files")
    assert result.returncode == 0, result.stdout + result.stderr


def test_demo_fails_when_a_result_is_wrong(tmp_path: Path) -> None:
    broken = tmp_path / "digits"
    broken.mkdir()
    for path in (EXAMPLES / "digits").iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    worker = broken / "worker.py"
    worker.write_text(worker.read_text().replace("return a @ b", "return a @ b + 1"))
    result = run(str(broken / "demo.py"), tmp_path / "workspace")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "✗" in result.stdout


def test_first_example_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n", 1)[1].split("```", 1)[0]
    script = tmp_path / "first.py"
    script.write_text(first, encoding="utf-8")
    result = run(str(script), tmp_path / "workspace")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["Hello World", "True"]
