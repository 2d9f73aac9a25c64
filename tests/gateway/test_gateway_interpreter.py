"""``[python] python_path`` and ``version``: which interpreter the algorithms' processes have."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
from gateways import configure, running, tr_mmap
from support import ROOT

from tr_mmap.sandbox import Sandbox, SandboxBroken

MARKED = "import sys\noutput = sorted(sys._xoptions)"


def interpreter(folder: Path, *options: str) -> Path:
    """A program that starts this Python, with options by which one knows it."""
    path = folder / "python"
    words = " ".join(options)
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" {words} "$@"\n')
    path.chmod(0o755)
    return path


def test_each_sandbox_has_the_interpreter_that_it_was_given(tmp_path: Path) -> None:
    with Sandbox(python=interpreter(tmp_path, "-X", "marked")) as given, Sandbox() as usual:
        assert given.execute(MARKED).outputs == {"output": ["marked"]}
        assert usual.execute(MARKED).outputs == {"output": []}
        given.set_limits(wall_ms=4000)
        assert given.execute(MARKED).outputs == {"output": ["marked"]}


def test_an_interpreter_that_is_not_there_is_told_by_the_sandbox(tmp_path: Path) -> None:
    with pytest.raises(SandboxBroken, match="nowhere"):
        Sandbox(python=tmp_path / "nowhere")


def test_the_interpreter_of_the_configuration_runs_the_algorithms(folder: Path) -> None:
    interpreter(folder, "-X", "marked")
    version = platform.python_version().rpartition(".")[0]
    with running(folder, f'[python]\npython_path = "./python"\nversion = "{version}"\n') as gateway:
        assert gateway.execute(code=MARKED) == ["marked"]
        gateway.register("marked", MARKED)
        assert gateway.execute(algorithm="marked") == ["marked"]


@pytest.mark.parametrize(
    ("options", "version", "said"),
    [
        (("-X", "marked"), "3.9", "python.version"),
        (("-I", "-S"), "", "has no tr_mmap"),
        (None, "", "is no program that can be run"),
    ],
)
def test_an_interpreter_that_cannot_serve_is_told_at_the_start(
    folder: Path, options: tuple[str, ...] | None, version: str, said: str
) -> None:
    if options is not None:
        interpreter(folder, *options)
    path = configure(folder, f'[python]\npython_path = "./python"\nversion = "{version}"\n')
    tr_mmap("token", "--config", path)
    ended = tr_mmap("serve", "--config", path)
    assert ended.returncode == 5
    assert said in ended.stderr
    assert "Traceback (most" not in ended.stderr


def test_another_version_than_this_one_is_refused_by_the_configuration(folder: Path) -> None:
    ended = tr_mmap("serve", "--config", configure(folder, '[python]\nversion = "3.9"\n'))
    assert ended.returncode == 2
    assert "python.version" in ended.stderr
