"""The pages are true: their programs run as they stand, and their links lead somewhere."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import BLOCKS, PAGES, without_blocks
from support import ROOT

RUN_PROGRAM = Path(__file__).with_name("run_program.py")

# Pages whose blocks other tests run: those of the gateway ask a gateway (tests/gateway/test_gateway_page.py), those of
# the tutorial build on one another (test_tutorial.py).
ELSEWHERE = ("gateway", "tutorial", "recipes/")
# Every block of Python that is a whole program, by its page and its number there.
PROGRAMS = {
    f"{block.page}-{block.number}": block.text
    for block in BLOCKS
    if block.language == "python" and not block.page.startswith(ELSEWHERE) and not block.text.startswith("# fragment")
}


def test_most_pages_for_users_have_a_program() -> None:
    assert {"README", "sessions", "workers", "loans", "files", "sandbox", "store"} <= {
        name.rpartition("-")[0] for name in PROGRAMS
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_of_a_page_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[name], encoding="utf-8")
    workspace = tmp_path / "workspace"
    ended = subprocess.run(
        [sys.executable, str(RUN_PROGRAM), str(script)],
        cwd=tmp_path,
        env={**os.environ, "TR_WORKSPACE": str(workspace)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    stores = workspace / "stores"  # they are made to stay
    assert not [path for path in workspace.rglob("*") if path.is_file() and stores not in path.parents]


def anchor_of(heading: str) -> str:
    """As GitHub makes it: lower case, spaces to dashes, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            wrong.append(target)
    assert not wrong


@functools.cache
def anchors_of(page: Path) -> list[str]:
    return [anchor_of(each) for each in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)]


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = set(re.findall(r"\]\(([\w/-]+\.md)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    folders = {name.removesuffix("index.md") for name in listed if name.endswith("/index.md")}
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "index.md" or name in listed or name.startswith(tuple(folders)), f"docs/index.md lacks {name}"


def test_the_readme_and_the_architecture_page_are_short() -> None:
    for path, most in ((ROOT / "README.md", 200), (ROOT / "docs" / "architecture.md", 275)):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= most, path
