"""The blocks of code of the pages, by page, with the language and the title that each says. Runs none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md") if (ROOT / name).exists()),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```([\w-]*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        page: its page, without its ending, from ``docs/`` on.
        number: which it is among those of its language on its page, from 1 on.
        title: the file that it is the text of, or "".
    """

    page: str
    language: str
    number: int
    title: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}-{self.language}-{self.number}"


def name_of(page: Path) -> str:
    """Its path without its ending, from ``docs/`` on."""
    folder = ROOT / "docs"
    return str(page.relative_to(folder if page.is_relative_to(folder) else ROOT).with_suffix(""))


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    for language, title, text in FENCE.findall(page.read_text(encoding="utf-8")):
        number = 1 + sum(each.language == language for each in found)
        found.append(Block(name_of(page), language, number, title, text))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def without_blocks(page: Path) -> str:
    """The prose of a page."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """Each command of a block of shell, with the lines that it is said to print: those that begin with ``# ``."""
    found: list[tuple[str, list[str]]] = []
    is_open = False
    for line in text.splitlines():
        if not is_open and (line.startswith("# ") or line == "#"):
            found[-1][1].append(line[2:])
            continue
        if is_open:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        else:
            found.append((line, []))
        is_open = found[-1][0].count("'") % 2 == 1 or line.endswith("\\")
    return [(command, said) for command, said in found if command]
