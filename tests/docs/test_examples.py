"""Every example runs by itself, says what it should, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from page_blocks import BLOCKS
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
    "many_at_once.py": [
        "a hundred quick ones: True",
        "the long one is done: False",
        "and now: the long one",
        "trained 1000 epochs - the last report: (1.0, 'epoch 1000')",
        "cancelled while it ran",
        "by name: [2.0, 1.0] 1",
    ],
    "futures.py": [
        "right means: 100 of 100",
        "trained after 100% epoch 3",
        "a slow one delays no quick one: 7.0 False",
        "cancelled before its handler was called: False",
        "cancelled then: True",
    ],
    "asyncio_session.py": [
        "norms: 0.000 2.000 1998.000",
        "given up after 100 ms",
        "and the session goes on: 6.000",
    ],
    "pool_folder.py": ["read: 40 first: 00.npy 0.0 last: 39.npy 39.0", "and: broken.npy is broken"],
    "pool_images.py": ["right labels: 60 of 60", "workers: 4 died: 1 failed: 0"],
    "files.py": [
        "header: float32 (512, 256) 524288 bytes",
        "equal: True writeable: False",
        "checksum right: True",
        "layout 1: 128 bytes",
        "a damaged file: truncated",
    ],
    "sandbox.py": [
        "mean 255.5, then 0.0; copied: 0 bytes",
        "it printed: normalizing (512, 512)",
        "reads a file: NotAllowed: ",
        "calls home: NotAllowed: ",
        "starts a process: NotAllowed: ",
        "never ends: LimitExceeded: the algorithm needed more than wall_ms=1000",
        "takes all memory: LimitExceeded: the algorithm needed more than memory_nbytes",
        "is wrong: AlgorithmError: ZeroDivisionError",
        "and the next run: well",
    ],
    "gateway_client.py": [
        "registered: normalize with 256 MiB",
        "mean 255.5, then 0.0; it printed: normalizing (2, 256)",
        "states end with: success 1.5",
        "cancelled: RunCancelled",
        "is wrong: AlgorithmError",
        "takes all memory: LimitExceeded",
        "again: [1 2 3]",
        "no more than its token grants: the token does not grant 'register'",
    ],
    "store_memory.py": [
        "ada: Ada's train leaves at seven in the morning.",
        "ben: Ben's train leaves at nine.",
        "conflict: version 2 is there, not 1",
        "  add 1: Ada takes her tea without milk.\n  update 2: Ada takes her tea with oat milk.\n",
        "gone in 7 days: Ada is in Lyon this week.",
        "Ben's handle sees: 3 records, and of Ada's: None",
        "forgotten: 4 of Ada's; left: 3",
    ],
    "store_images.py": [
        "1000 images, 1000 vectors",
        "its image: (8, 8) uint8 read-only: True",
        "of 797 digits recognised by their nearest",
        "all labels known: True",
    ],
    "store_processes.py": ["counted: 600 version: 601", "said by the others: ['done', 'done']"],
    "wasm/scale.py": ["[[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]", "one float32 tensor, please", "6 words"],
    "gateway_model.py": [
        "exported version 1 pt2 loaded",
        "scorer version 1 safetensors loaded",
        "exported is right: True",
        "weights and code are right: True",
        "now version 2\nthe new one is right: True",
    ],
    "loans.py": ["sum: 4194304.0", "kept: [0.0, 1.0, 2.0]"],
    "native/normalize.py": [
        "[[-1.225, -1.225], [0.0, 0.0], [1.225, 1.225]] [2.0, 3.0]",
        "\n[2.0, 3.0]\n",
        "one float32 matrix, please",
    ],
    "torch/training.py": ["losses: 0.", "each with its own weights: True", "right batches: 8 copied: 0 bytes"],
    "torch/module_costs.py": ["new weights, 4 MiB", "1 x 1024, 4 KiB", "512 x 1024, 2048 KiB"],
    "torch/model.py": ["exported Tensor True", "scripted Tensor True", "source ndarray [2.0, 2.0]"],
    "digits/demo.py": [
        "every result is what the same computation gives here",
        "both processes have mapped one file",
        "the worker has ended and the session directory is gone",
    ],
}
WORKERS = {"matrix_math_server.py", "decorator_worker.py", "many_at_once_worker.py", "digits/worker.py"}


def run(name: str, workspace: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    usual = {"TR_WORKSPACE": str(workspace), "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_program.py")), str(EXAMPLES / name), *arguments],
        cwd=workspace.parent,  # an example must not depend on where it is started
        env={**os.environ, **usual, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_every_example_is_run_here() -> None:
    found = {path.relative_to(EXAMPLES) for path in EXAMPLES.rglob("*.py")}
    recipes = {path for path in found if path.parts[0] == "recipes"}  # tests/recipes runs them
    assert {str(path) for path in found - recipes} == set(EXPECTED) | WORKERS


@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs_and_says_what_it_should(name: str, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    result = run(name, workspace)
    assert result.returncode == 0, result.stdout + result.stderr
    for expected in EXPECTED[name]:
        assert expected in result.stdout
    assert not [path for path in workspace.rglob("*") if path.is_file()]


def test_pieces_of_an_example_on_a_page_are_in_the_example() -> None:
    pieces = [each for each in BLOCKS if each.text.startswith("# fragment: of examples/")]
    assert {each.page for each in pieces} == {"torch"}
    for piece in pieces:
        first, _, rest = piece.text.partition("\n")
        whole = (ROOT / first.split()[-1]).read_text(encoding="utf-8")
        assert any(textwrap.indent(rest, " " * depth) in whole for depth in (0, 4, 8, 12)), piece.name


def without_torch(folder: Path) -> dict[str, str]:
    """An environment in which torch, which takes seconds to import, is not installed."""
    (folder / "torch.py").write_text("raise ImportError('no torch')")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def test_demo_runs_over_the_portable_channel_and_without_torch(tmp_path: Path) -> None:
    result = run("digits/demo.py", tmp_path / "workspace", "--channel", "files", **without_torch(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "torch to torch" not in result.stdout


def test_demo_fails_when_a_result_is_wrong(tmp_path: Path) -> None:
    broken = tmp_path / "digits"
    broken.mkdir()
    for path in (EXAMPLES / "digits").iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    worker = broken / "worker.py"
    worker.write_text(worker.read_text().replace("return a @ b", "return a @ b + 1"))
    result = run(str(broken / "demo.py"), tmp_path / "workspace", **without_torch(tmp_path))
    assert result.returncode == 1, result.stdout + result.stderr
    assert "✗" in result.stdout


def test_first_example_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n", 1)[1].split("```", 1)[0]
    script = tmp_path / "first.py"
    script.write_text(first, encoding="utf-8")
    result = run(str(script), tmp_path / "workspace")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["Hello World", "True"]
