"""Programs as the original framework's documents have them: a worker's script, and the controller that starts it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import run_python

DOCUMENTS = Path(__file__).parent / "documents"
CONTROLLERS = sorted(path.stem for path in DOCUMENTS.glob("*.py") if not path.stem.endswith("_worker"))


def test_there_is_a_program_for_each_test_of_the_documents() -> None:
    assert CONTROLLERS == ["made_tensors", "natural_exit", "sent_tensors", "termination", "words"]


# One after the other in one interpreter, which imports torch once. Collections then, and at its end, would take longer
# than the programs.
IN_TURN = """
import gc, runpy, sys
gc.disable()
for program in sys.argv[1:]:
    runpy.run_path(program, run_name="__main__")
    gc.freeze()
"""
WITH_TORCH = [each for each in CONTROLLERS if "import torch\n" in (DOCUMENTS / f"{each}.py").read_text()]
IN_TURNS = [WITH_TORCH, *([each] for each in CONTROLLERS if each not in WITH_TORCH)]


@pytest.mark.parametrize("names", IN_TURNS, ids=" ".join)
def test_the_programs_run_and_leave_nothing(names: list[str]) -> None:
    ended = run_python("-c", IN_TURN, *(str(DOCUMENTS / f"{each}.py") for each in names))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(ended.stdout.splitlines()) == len(names)  # each ends with a line
