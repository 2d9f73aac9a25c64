"""What is said of the worker that ships with the package names all of its commands."""

from __future__ import annotations

import re

from support import ROOT

from tr_mmap.worker import default


def test_docstring_and_page_list_the_commands_of_the_default_worker() -> None:
    said = (default.__doc__ or "").partition(". ")[0].partition(": ")[2]
    assert said.split(", ") == list(default.server._commands)
    page = (ROOT / "docs" / "sessions.md").read_text(encoding="utf-8")
    listed = re.search(r"It knows the commands (.*?)\. ", page, re.DOTALL)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == list(default.server._commands)
