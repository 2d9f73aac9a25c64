"""List the options of the gateway's configuration in ``docs/gateway.md``, as ``tr_mmap/gateway/sections.py`` has them.

``python tools/list_options.py`` writes the tables; with ``--check`` it writes nothing, and fails if the page has
others. The text of each option is taken from the docstring of its section's class.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import msgspec

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "gateway.md"
BEGIN: Final = "<!-- options: begin (python tools/list_options.py) -->\n"
END: Final = "<!-- options: end -->\n"


def sections(kind: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each section below one: its path, and its type."""
    for each in msgspec.structs.fields(kind):
        name = f"{path}.{each.name}".lstrip(".")
        if isinstance(each.type, type) and issubclass(each.type, msgspec.Struct):
            yield name, each.type
            yield from sections(each.type, name)
        elif get_origin(each.type) is dict:  # of sections, whose names are the user's
            yield f"{name}.NAME", get_args(each.type)[1]


def described(kind: Any) -> dict[str, str]:
    """The text of each option of a section, from ``Attributes:`` in its class's docstring."""
    attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def default_of(field: Any) -> str:
    """An option's default, as TOML writes it; an empty text if it has none."""
    if field.default is None or field.default is msgspec.NODEFAULT:
        return ""
    return f"`{json.dumps(field.default)}`"


def tables() -> str:
    """The tables of all sections, as Markdown."""
    from tr_mmap.gateway.config import Config

    text = ""
    for path, kind in sections(Config):
        said = described(kind)
        title = (inspect.getdoc(kind) or "").partition("\n\n")[0].partition("``: ")[2]
        title = " ".join(title.split()).replace("``", "`")
        text += f"\n**`[{path}]`**: {title}\n\n| option | default | what it is |\n|---|---|---|\n"
        for field in msgspec.structs.fields(kind):
            if field.name in said:
                what = said[field.name].replace("``", "`").replace("|", "\\|")
                text += f"| `{field.name}` | {default_of(field)} | {what} |\n"
            elif not (isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)):
                sys.exit(f"{kind.__name__} does not say what {field.name} is")
    return text + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page has other tables")
    is_check = parser.parse_args().check
    sys.path.insert(0, str(ROOT))
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = before + BEGIN + tables() + END + after
    if wanted == page:
        return
    if is_check:
        sys.exit("docs/gateway.md has other options than sections.py: python tools/list_options.py")
    PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
