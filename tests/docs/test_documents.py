"""The tables of promises and of abuse ideas: every test that they name is there, and every long test is in one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ATTACKS = TESTS / "attacks"


def functions_of(path: Path) -> dict[str, list[str]]:
    """Name of each test of a file, with the names of its marks."""
    return {
        node.name: [ast.unparse(each) for each in node.decorator_list]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def matching(name: str, names: list[str] | dict[str, list[str]]) -> list[str]:
    """Those that a name stands for in which ``…`` is any text."""
    pattern = re.compile(".*".join(map(re.escape, name.split("…"))))
    return [each for each in names if pattern.fullmatch(each)]


def rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| promise ", "| # ")):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def sections() -> Iterator[tuple[list[Path], list[list[str]]]]:
    """Of the table of abuse ideas: the files that a heading names, and the rows below it."""
    for part in (ATTACKS / "README.md").read_text().split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        yield [ATTACKS / name for name in re.findall(r"`(\w+\.py)`", heading)], list(rows(text))


def test_abuse_ideas_are_numbered() -> None:
    numbers = [int(row[0]) for _, found in sections() for row in found]
    assert len(numbers) > 40
    assert numbers == sorted(set(numbers))


IDEAS = [(row[0], paths, row[-1]) for paths, found in sections() for row in found]


@pytest.mark.parametrize(("number", "paths", "answer"), IDEAS, ids=[idea[0] for idea in IDEAS])
def test_each_abuse_idea_is_answered_by_tests_that_exist(number: str, paths: list[Path], answer: str) -> None:
    names = re.findall(r"`(test_[\w…]+)`", answer)
    assert names or answer.startswith("not "), "an idea without a test says that it is not answered"
    known = [name for path in paths for name in functions_of(path)]
    for name in names:
        assert matching(name, known), name


def test_every_file_of_attacks_has_its_section() -> None:
    assert {path for paths, _ in sections() for path in paths} == set(ATTACKS.glob("test_*.py"))


PROMISES = list(rows((TESTS / "README.md").read_text()))


def named(cell: str) -> Iterator[tuple[Path, str]]:
    path = None
    for file, name in re.findall(r"`([\w/]+\.py)`|`(test_[\w…]+)`", cell):
        if file:
            path = TESTS / file
        else:
            assert path is not None, f"{name} is in no file"
            yield path, name


@pytest.mark.parametrize("row", PROMISES, ids=[row[0][:30] for row in PROMISES])
def test_each_promise_names_tests_that_exist(row: list[str]) -> None:
    found = list(named(row[1]))
    assert found or "attacks/README.md" in row[1]
    for path, name in found:
        assert matching(name, functions_of(path)), f"{path.name}: {name}"


def test_every_long_test_is_in_the_table_of_promises() -> None:
    mentioned = {
        (path, each) for row in PROMISES for path, name in named(row[1]) for each in matching(name, functions_of(path))
    }
    for path in TESTS.rglob("test_*.py"):
        for name, marks in functions_of(path).items():
            if "pytest.mark.long" in marks:
                assert (path, name) in mentioned, f"{path.name}: {name}"
