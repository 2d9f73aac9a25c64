"""What the marker ``each_value`` leaves out: combinations of parameters, never a value, and nothing with --full."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from support import ROOT, run_python

MARKED = """
import pytest

@pytest.mark.each_value
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("word", ["few", "many"])
@pytest.mark.parametrize("size", [10, 20, 30, 40])
def test_marked(size, word, number): ...

@pytest.mark.each_value
@pytest.mark.parametrize(("size", "word"), [(10, "few"), (10, "many"), (20, "many")])
def test_of_pairs(size, word): ...

@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("word", ["few", "many"])
def test_unmarked(word, number): ...
"""


def collected(folder: Path, *options: str) -> dict[str, list[tuple[str, ...]]]:
    """The values of each test that is not left out, by the test's name."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_values.py").write_text(MARKED)
    quiet = ["--collect-only", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    ended = run_python("-m", "pytest", *quiet, *options, str(folder))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found: dict[str, list[tuple[str, ...]]] = {}
    for name, values in re.findall(r"::(test_\w+)\[(.*)\]$", ended.stdout, re.MULTILINE):
        found.setdefault(name, []).append(tuple(values.split("-")))
    return found


def test_each_value_is_in_a_combination_that_stays_and_an_unmarked_test_keeps_all(tmp_path: Path) -> None:
    found = collected(tmp_path)
    sizes, words, numbers = (set(each) for each in zip(*found["test_marked"], strict=True))
    assert (numbers, words, sizes) == ({"0", "1", "2"}, {"few", "many"}, {"10", "20", "30", "40"})
    assert len(found["test_marked"]) == 4  # as many as there are sizes
    assert set(found["test_of_pairs"]) == {("10", "few"), ("20", "many")}
    assert len(found["test_unmarked"]) == 6


def test_with_full_no_combination_is_left_out(tmp_path: Path) -> None:
    assert {name: len(values) for name, values in collected(tmp_path, "--full").items()} == {
        "test_marked": 24,
        "test_of_pairs": 3,
        "test_unmarked": 6,
    }
