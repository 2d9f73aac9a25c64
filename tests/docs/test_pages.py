"""The pages are true: their programs run as they stand, and their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def programs() -> dict[str, str]:
    """Every block of Python that is a whole program, by its page and its number there.

    Those of the gateway's pages ask a gateway: tests/gateway/test_gateway_page.py runs them.
    """
    found = {}
    for page in PAGES:
        if page.stem.startswith("gateway"):
            continue
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for number, block in enumerate(blocks, 1):
            if not block.startswith("# fragment"):
                found[f"{page.stem}-{number}"] = block
    return found


PROGRAMS = programs()


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
        [sys.executable, str(script)],
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


def links() -> list[tuple[Path, str]]:
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        found += [(page, target) for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    return found


@pytest.mark.parametrize(("page", "target"), links(), ids=[f"{page.stem}-{target}" for page, target in links()])
def test_every_link_leads_somewhere(page: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    assert path.exists(), target
    if anchor:
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in [anchor_of(each) for each in headings]


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in PAGES[1:]} - {"index.md"} <= listed


def test_the_readme_and_the_architecture_page_are_short() -> None:
    for path, most in ((ROOT / "README.md", 200), (ROOT / "docs" / "architecture.md", 250)):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= most, path
