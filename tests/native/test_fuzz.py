"""Short runs of the fuzzers, which ``tools/sanitize`` runs for longer, and under the sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import BOUND_S, ROOT

from tr_mmap import native

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(not native.IS_COMPILED, reason="the objects are the extension's")


@pytest.mark.parametrize("fuzzer", ["fuzz_objects.py", "fuzz_pages.py"])
def test_random_calls_and_hostile_pages_crash_nothing(fuzzer: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / fuzzer), "compiled", "--seconds", "2", "--rounds", "4"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=2 * BOUND_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("nothing found\n")


def test_a_crash_of_a_fuzzer_names_the_round_that_plays_it_again(tmp_path: Path) -> None:
    (tmp_path / "fuzz_crash.py").write_text(
        "import os, sys\nfrom fuzz_runs import run\n"
        "sys.exit(run(lambda source: os.abort() if source.random() < 0.5 else None))\n"
    )
    command = [sys.executable, str(tmp_path / "fuzz_crash.py"), "compiled"]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    once = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=BOUND_S)
    assert once.returncode == 1
    again = once.stdout.strip().rpartition("once more: python ")[2].split()
    assert again[:4] == ["fuzz_crash.py", "compiled", "--rounds", "1"]
    command = [sys.executable, *again]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == 1
