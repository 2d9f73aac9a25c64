"""12 and 13, for files that a contained process reads in place by a descriptor that only reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks_files import COUNT, FILE_ATTACKS, FIND, FOR_ROOT, NO_CONTROL
from environments import ENVIRONMENTS, Environment, run_in
from support import once_a_run


def may_read_in_place(environment: Environment) -> bool:
    """Whether Landlock is there, and looks at truncation, as it does from its version 3 on."""
    return "landlock" not in environment.missing and "old_landlock" not in environment.preload


@once_a_run
def results_in(environment: Environment) -> tuple[list[str], str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        layers, place, results = json.loads(run_in(environment, "attack_file", os.path.join(directory, "x")))
    return layers, place, results


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda each: each.name)
def test_a_file_is_read_in_place_only_where_landlock_keeps_it_whole(environment: Environment) -> None:
    layers, place, results = results_in(environment)
    assert ("landlock" in layers) is ("landlock" not in environment.missing)
    assert place == ("in place" if may_read_in_place(environment) else "copied")
    if place == "in place":
        assert results["read it"] == 8
    else:
        assert results["read it"][0] == "AlgorithmError"  # no descriptor of it is there


@pytest.mark.parametrize(
    "environment", [each for each in ENVIRONMENTS if may_read_in_place(each)], ids=lambda each: each.name
)
@pytest.mark.parametrize("attack", [each for each in FILE_ATTACKS if each != "read it"])
def test_an_attack_on_the_file_is_denied(attack: str, environment: Environment) -> None:
    found = results_in(environment)[2][attack]
    assert isinstance(found, list), "it works"
    assert found[0] == "NotAllowed" or (attack in NO_CONTROL and found[0] == "AlgorithmError"), found


@pytest.mark.parametrize("attack", [each for each in FILE_ATTACKS if each not in NO_CONTROL])
def test_the_same_attack_works_without_the_sandbox(attack: str, tmp_path: Path) -> None:
    if attack in FOR_ROOT and os.geteuid() != 0:
        pytest.skip("NOT TESTED: controls of attacks that work for root only; run the tests as root")
    path = tmp_path / "x"
    np.arange(float(COUNT)).tofile(path)
    root = Path(__file__).parents[2]
    code = f"import numpy as np\npath = {str(path)!r}\ninputs = {{'x': np.memmap(path, np.float64, 'r')}}\n"
    code += "file = open(path, 'rb')\n"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run(
        [sys.executable, "-c", code + FIND + FILE_ATTACKS[attack]],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr
