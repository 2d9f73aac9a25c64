"""docs/tutorial.md is true: whoever writes its files and types its commands, in their order, sees what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import BLOCKS, commands_of
from support import environment

pytestmark = pytest.mark.timeout(400)  # it runs a dozen programs, one after the other
INSTALLING = ("python3 -m venv", ". .venv", "pip install")  # has happened: the tests run in an installation


def with_python(folder: Path) -> dict[str, str]:
    """An environment whose ``python`` is this one."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    found = {**environment(), "TR_WORKSPACE": str(folder / "workspace")}
    return {**found, "PATH": f"{folder / 'bin'}{os.pathsep}{found['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}


def matches(said: list[str], printed: str) -> bool:
    """Whether a text is what the page says; ``…`` stands for any text."""
    return re.fullmatch("\n".join(".*".join(map(re.escape, line.split("…"))) for line in said), printed) is not None


def test_the_commands_of_the_tutorial_print_what_it_says(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    place = tmp_path / "tutorial"
    place.mkdir()
    variables = with_python(tmp_path)
    ran = 0
    for block in (each for each in BLOCKS if each.page == "tutorial"):
        if block.title:
            (place / block.title).write_text(block.text, encoding="utf-8")
            continue
        assert block.language == "sh", block
        for command, said in commands_of(block.text):
            if command.startswith(INSTALLING):
                continue
            ended = subprocess.run(
                ["sh", "-c", command],
                cwd=place,
                env=variables,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
            assert not said or matches(said, ended.stdout.rstrip()), f"{command} prints\n{ended.stdout}\nnot\n{said}"
            ran += 1
    assert ran > 5
    workspace = tmp_path / "workspace"
    assert not [path for path in workspace.rglob("*") if path.is_file()]


def test_every_program_of_the_tutorial_is_started_by_a_command() -> None:
    blocks = [each for each in BLOCKS if each.page == "tutorial"]
    commands = "\n".join(each.text for each in blocks if each.language == "sh")
    programs = "\n".join(each.text for each in blocks if each.title)
    for block in blocks:
        if block.title:
            assert f"python {block.title}" in commands or f'PythonSession("{block.title}"' in programs, block.title
