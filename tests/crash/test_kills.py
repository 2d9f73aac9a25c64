"""Controllers and workers are killed at any moment: nothing wrong arrives, nobody hangs, nothing is left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
from content import MIRROR, content, fault_of


@pytest.mark.long
@pytest.mark.timeout(0)  # the harness ends what hangs, and says so
@pytest.mark.parametrize(("framework", "kills", "most"), [("numpy", 22, 2000), ("torch", 4, 500)])
def test_no_kill_at_any_moment_tears_a_tensor_hangs_anyone_or_leaves_anything(
    framework: str, kills: int, most: int, is_full: bool, figures: Callable[[str], None]
) -> None:
    kills = most if is_full else kills
    report = harness.run(kills, jobs=2, framework=framework)
    figures(report.to_text())
    assert report.kills >= kills - len(report.hangs)
    assert report.is_good
    if kills >= 200:  # fewer say little about a share
        assert report.inside() >= 0.3 * report.kills


@pytest.mark.parametrize("index", [0, 77_777, -1])
def test_one_element_of_another_tensor_is_found(index: int) -> None:
    tensor = content(7)
    assert fault_of(tensor, 7) == ""
    assert "1 of" in fault_of(np.concatenate([tensor[:index], content(6)[index:][:1], tensor[index:][1:]]), 7)
    assert fault_of(tensor, 8)
    assert fault_of(tensor[:-1], 7)
    assert fault_of(tensor ^ MIRROR, 7, is_answer=True) == ""
    assert fault_of(tensor, 7, is_answer=True)
