"""Programs as the original framework's documents have them: a worker's script, and the controller that starts it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import run_script

DOCUMENTS = Path(__file__).parent / "documents"
CONTROLLERS = sorted(path.stem for path in DOCUMENTS.glob("*.py") if not path.stem.endswith("_worker"))


def test_there_is_a_program_for_each_test_of_the_documents() -> None:
    assert CONTROLLERS == ["made_tensors", "natural_exit", "sent_tensors", "termination", "words"]


@pytest.mark.parametrize("name", CONTROLLERS)
def test_the_program_runs_and_leaves_nothing(name: str) -> None:
    ended = run_script(DOCUMENTS / f"{name}.py")
    assert ended.returncode == 0, ended.stdout + ended.stderr
