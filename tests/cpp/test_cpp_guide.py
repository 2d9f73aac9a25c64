"""The guide to C++ is true: its programs compile as they stand, without RTTI, and run; so does the how-to in C.

The programs are a part of one program (``cpp_together.py``). So are the recipe's to verify an algorithm, and examples;
``tests/recipes`` and ``test_cpp_programs.py`` compile these by themselves, as their readers do, with ``--full``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from cpp_programs import outcome, run
from cpp_together import GUIDE_PROGRAMS, GUIDE_WORKER, VERIFY
from support import ROOT, leftovers

import tr_mmap

pytestmark = pytest.mark.timeout(400)  # the first test compiles the programs

SAID = [  # by each program of the page, in their order
    ["512x256: 3072"],
    ["12.5", "1 5", "2"],
    ["2x3 24 bytes, 4 bytes", "1", "another type"],
    ["0 0", "2.0736e+06 0", "4.1472e+06 0", "0 bytes copied"],
    ["matmul: ValueError", "Hello Again"],
    ["4950000 Hello Many", "dance"],
    ["1", "scale: the request was cancelled before its handler was called", "1", "2.5"],
    ["2 1", "1 a test", "there is no value 'slope'; there are: coefficients, degree, label"],
    ["0 10 20 30 "],
    ["9"],
    ["512x256 1"],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the worker is that the page has."""
    (tmp_path / "worker.py").write_text(GUIDE_WORKER, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("number", range(len(SAID)))
def test_a_program_of_the_guide_compiles_without_rtti_and_says_what_it_should(
    plain: Path, folder: Path, workspace: Path, number: int
) -> None:
    output = run(["env", "-C", folder, plain, "program", str(number)])
    assert output.splitlines() == SAID[number]
    assert leftovers(workspace) == []


def test_every_program_of_the_guide_is_run() -> None:
    assert len(GUIDE_PROGRAMS) == len(SAID)


def test_a_program_in_c_reads_a_file_without_a_library(compiler: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```c\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "read.c").write_text(text, encoding="utf-8")
    run([compiler, "-x", "c", "-std=c99", "-Wall", "-Wextra", "-Werror", tmp_path / "read.c", "-o", tmp_path / "read"])
    tr_mmap.save(tmp_path / "x.tsr", np.full((2, 3), 1.5, "float32"), version=1)
    assert run([tmp_path / "read", tmp_path / "x.tsr"]) == "2 dimensions, 6 elements, sum 9\n"


def test_the_recipe_finds_a_wrong_algorithm_and_not_a_right_one(plain: Path) -> None:
    code, printed = outcome(plain, "program", "verify", "reference.py", cwd=VERIFY.parent)
    assert code == 1, printed
    said = [line.partition(" of ")[0] for line in printed.splitlines()]
    assert said[:2] == ["naive, scale 1: ok: 0", "stable, scale 1: ok: 0"]
    assert said[2].startswith("naive, scale 50: WRONG: ")
    assert said[3] == "stable, scale 50: ok: 0"
    assert "nan, expected" in printed.splitlines()[2]
