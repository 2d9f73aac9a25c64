"""Draw the rooms of the package and the imports between them: ``docs/architecture.svg``.

``python tools/draw_rooms.py`` writes the picture; with ``--check`` it writes nothing, and fails if the picture is not
what it would draw. The floors are the layers of ``pyproject.toml``, the arrows the imports in the code, the words in a
room the first sentence of its docstring. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import ast
import html
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = ROOT / "tr_mmap"
PICTURE: Final = ROOT / "docs" / "architecture.svg"

WIDTH: Final = 1020
MARGIN: Final = 20
BOX_WIDTH: Final = 310
BOX_HEIGHT: Final = 122
FLOOR_HEIGHT: Final = 170
MAX_IMPORT_LINES: Final = 2
TEXT_CHARS: Final = 44  # of a line in a box

LEFT, CENTER, RIGHT = 0.17, 0.5, 0.83
# Where a room stands, as a part of the width, so that arrows pass between boxes; others share their floor evenly.
COLUMNS: Final = {
    **dict.fromkeys(("sandbox", "sessions", "processes", "errors"), LEFT),
    **dict.fromkeys(("compat", "store", "controller", "channel", "protocol", "native"), CENTER),
    **dict.fromkeys(("cli", "cpp", "worker", "transfer", "shm", "tsr"), RIGHT),
}

FRONT_DOOR: Final = "the public names"  # of tr_mmap/__init__.py

Arrows = set[tuple[str, str]]


def floors() -> list[list[str]]:
    """The rooms on each floor, from the top down."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each["type"] == "layers")
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def imports() -> Arrows:
    """Which room imports which; what only a type checker reads does not count."""
    arrows: Arrows = set()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts == ("tr_mmap", "__init__"):
            continue  # the front door: it hands on names, and imports a room when one of its names is used
        found = _Imports(parts[:-1])
        found.visit(ast.parse(path.read_text(encoding="utf-8")))
        arrows |= {(parts[1], room) for room in found.rooms if room != parts[1]}
    return arrows


class _Imports(ast.NodeVisitor):
    def __init__(self, package: tuple[str, ...]) -> None:
        self.rooms: set[str] = set()
        self._package = package

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        named = (node.module or "").split(".") if node.module else []
        if node.level:
            named = [*self._package[: len(self._package) - node.level + 1], *named]
        if named[:1] == ["tr_mmap"]:
            for room in named[1:2] or [each.name for each in node.names]:
                is_room = (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()
                self.rooms.add(room if is_room else FRONT_DOOR)


def without_detours(arrows: Arrows) -> Arrows:
    """The arrows that no chain of other arrows replaces."""

    def reaches(start: str, end: str, left_out: tuple[str, str]) -> bool:
        seen, waiting = {start}, [start]
        while waiting:
            room = waiting.pop()
            following = {there for here, there in arrows - {left_out} if here == room} - seen
            if end in following:
                return True
            seen |= following
            waiting += following
        return False

    return {arrow for arrow in arrows if not reaches(*arrow, arrow)}


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = PACKAGE / room / "__init__.py" if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split(". ")[0].split("\n\n")[0].split()).rstrip(".").replace("`", "")


def draw() -> str:
    """The picture."""
    rows, arrows = floors(), imports()
    places: dict[str, tuple[float, float]] = {}  # the middle of each box's upper edge
    for row, rooms in enumerate(rows):
        for column, room in enumerate(rooms):
            share = COLUMNS.get(room, (2 * column + 1) / (2 * len(rooms)))
            places[room] = (WIDTH * share, MARGIN + FLOOR_HEIGHT * row)
    height = MARGIN + FLOOR_HEIGHT * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">',
        '<path d="M0,0 L10,5 L0,10 z" fill="#567"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fcfcfa"/>',
    ]
    for here, there in sorted(without_detours({each for each in arrows if each[1] != FRONT_DOOR})):
        (x1, top1), (x2, y2) = places[here], places[there]
        y1 = top1 + BOX_HEIGHT
        x1, x2 = x1 + (x2 - x1) * 0.12, x2 + (x1 - x2) * 0.12  # so that several arrows at a box keep apart
        bend = (y2 - y1) / 2
        out.append(
            f'<path d="M{x1:.0f},{y1:.0f} C{x1:.0f},{y1 + bend:.0f} {x2:.0f},{y2 - bend:.0f} {x2:.0f},{y2 - 2:.0f}" '
            'fill="none" stroke="#567" stroke-width="1.6" marker-end="url(#tip)"/>'
        )
    for room, (x, y) in places.items():
        left = x - BOX_WIDTH / 2
        used = ", ".join(sorted(there for here, there in arrows if here == room)) or "nothing of the package"
        out.append(
            f'<rect x="{left:.0f}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="#fff" '
            'stroke="#345" stroke-width="1.4"/>'
        )
        out.append(_text(x, y + 22, f"{room}", size=17, weight="bold"))
        for number, line in enumerate(textwrap.wrap(purpose(room), TEXT_CHARS)):
            out.append(_text(x, y + 42 + 16 * number, line, size=12.5))
        used_lines = textwrap.wrap(f"imports {used}", TEXT_CHARS + 6)
        if len(used_lines) > MAX_IMPORT_LINES:
            raise SystemExit(f"{room} imports more than its box can say: make BOX_HEIGHT larger")
        for number, line in enumerate(used_lines):
            out.append(_text(x, y + 98 + 15 * number, line, size=11.5, color="#678"))
    return "\n".join([*out, "</svg>", ""])


def _text(x: float, y: float, text: str, *, size: float, weight: str = "normal", color: str = "#123") -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{color}" text-anchor="middle"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{html.escape(text)}</text>'


def main(arguments: list[str] | None = None) -> int:
    """Write the picture, or check it; the exit status."""
    parser = argparse.ArgumentParser(prog="tools/draw_rooms.py", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the picture is out of date")
    is_check = parser.parse_args(arguments).check
    picture = draw()
    if PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == picture:
        return 0
    name = PICTURE.relative_to(ROOT)
    if is_check:
        print(f"{name} is out of date: run python tools/draw_rooms.py")
        return 1
    PICTURE.write_text(picture, encoding="utf-8")
    print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
