"""The page of the errors names every error and its fields."""

from __future__ import annotations

import re

import pytest
from support import ROOT

from tr_mmap import errors

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
KINDS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.TRException)]
NAMES = {kind.__name__ for kind in KINDS}


def words_in(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def rows() -> dict[str, set[str]]:
    """By error, the words in code in its row of the table of the fields."""
    table = PAGE.partition("\n## The fields\n")[2].partition("\n\n```")[0]
    found = re.findall(r"^\| (`.*?) \| (.*) \|$", table, re.MULTILINE)
    return {name: words_in(cell) for names, cell in found for name in words_in(names)}


def test_every_error_is_in_both_tables() -> None:
    table = PAGE.partition("\n## The table\n")[2].partition("\n\nThe sandbox")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == NAMES - {"TRException"}
    assert rows().keys() == NAMES - {"TRException"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_fields_of_an_error_are_in_its_row_and_no_others(kind: type[errors.TRException]) -> None:
    fields = {name for each in kind.__mro__ if each.__module__ == errors.__name__ for name in each.__annotations__}
    shown = rows().get(kind.__name__, set())
    for other in shown & NAMES:
        shown = shown | rows()[other]
    assert shown - NAMES - {"None", "Fault", "errno"} == fields
