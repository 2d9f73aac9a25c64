"""The page that a newcomer reads first is true: its picture, its rooms, and what it says that rooms may import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from support import ROOT

PACKAGE = ROOT / "tr_mmap"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_the_picture_is_what_the_imports_draw() -> None:
    drawn = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "draw_rooms.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr


def test_at_the_top_there_are_only_rooms_and_the_errors() -> None:
    found = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert found == {*ROOMS, "__init__.py", "__main__.py", "errors.py", "py.typed"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_and_the_page_says_what_is_in_it(room: str) -> None:
    text = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert re.search(rf"^\| `{room}` \|", PAGE, re.MULTILINE), f"docs/architecture.md does not list {room}"


def rows() -> list[tuple[str, str]]:
    """Each room of the table, and what is said of it."""
    return re.findall(r"^\| `([\w.]+)` \| (.*) \|$", PAGE.partition("### What may import what")[0], re.MULTILINE)


@pytest.mark.parametrize(("room", "text"), rows(), ids=[room for room, _ in rows()])
def test_every_file_that_the_table_names_is_in_its_room(room: str, text: str) -> None:
    for name in re.findall(r"`([\w./*\[\]]+\.(?:py|c|h|hpp|\[ch\]|\*))`", text):
        assert list((PACKAGE / room).glob(name)), f"{room} has no {name}"


def test_every_file_that_the_page_names_by_its_path_is_there() -> None:
    text = PAGE.partition("### What may import what")[2]  # what is above is the table
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_.]+\.(?:py|c|h|hpp|svg))`", text))
    assert len(named) > 15
    for name in named:
        assert any((base / name).exists() for base in (PACKAGE, ROOT)), name


def test_the_contracts_cover_every_room() -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = settings.partition("layers = [")[2].partition("]")[0]
    assert sorted(re.findall(r"[a-z_]+", layers)) == sorted([*ROOMS, "__main__", "errors"])


def test_no_test_module_is_too_long_to_read() -> None:
    for pattern in ("*.[ch]pp", "*.py"):
        for path in (ROOT / "tests").rglob(pattern):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, path
