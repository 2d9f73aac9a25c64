"""The C++ suite.

It is compiled once, with AddressSanitizer and UndefinedBehaviorSanitizer, and asked for its parts. What is compiled is
kept in pytest's cache until a source changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cpp_programs import INCLUDE, SANITIZERS, SOURCES, VECTORS, WARNINGS, run, run_both


class Notice:
    """Says something at the end of the run, where it is seen."""

    def __init__(self, text: str) -> None:
        self._text = text

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.write_sep("*", self._text, red=True, bold=True)


@pytest.fixture(scope="session")
def compiler(request: pytest.FixtureRequest) -> str:
    """g++, or whatever CXX says."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        notice = "there is no g++: THE C++ SIDE IS NOT TESTED. Install g++, or name a compiler in CXX"
        if os.environ.get("CI"):
            pytest.fail(notice)
        request.config.pluginmanager.register(Notice(notice))
        pytest.skip(notice)
    return found


@pytest.fixture(scope="session")
def suite(compiler: str, request: pytest.FixtureRequest) -> Path:
    """The program made of tests/cpp."""
    names = ("sessions.cpp", "session_lives.cpp", "tools.cpp", "formats.cpp", "main.cpp")  # slow ones first
    sources = [SOURCES / name for name in names]
    headers = [*INCLUDE.rglob("*.h*"), *SOURCES.glob("*.hpp")]
    flags = [*WARNINGS, "-O0", *SANITIZERS, f"-I{INCLUDE}"]
    state = hashlib.sha256(" ".join([compiler, *flags]).encode())
    for path in sorted([*sources, *headers]):
        state.update(path.name.encode() + path.read_bytes())
    cache = request.config.cache
    assert cache is not None
    program = cache.mkdir("cpp") / f"suite-{state.hexdigest()[:16]}"
    if not program.exists():
        for older in program.parent.glob("suite-*"):
            older.unlink()
        objects = [program.parent / f"{each.stem}-{os.getpid()}.o" for each in sources]
        try:
            run_both(
                [
                    [compiler, *flags, "-c", source, "-o", target]
                    for source, target in zip(sources, objects, strict=True)
                ]
            )
            temporary = program.with_suffix(".new")
            run([compiler, *SANITIZERS, *objects, "-o", temporary, "-pthread"])
            temporary.rename(program)
        finally:
            for each in objects:
                each.unlink(missing_ok=True)
    return program


@pytest.fixture
def ask(suite: Path, tmp_path: Path) -> Any:
    """Run the suite with some arguments."""

    def asked(*arguments: str | Path, within_s: float = 200) -> str:
        worker = str(SOURCES / "worker.py")
        return run([suite, *arguments], within_s, TR_TEST_WORKER=worker, TR_TEST_FOLDER=str(tmp_path))

    return asked


@pytest.fixture
def vectors(tmp_path: Path) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """A copy of the vectors (loading a segment marks it), and their index."""
    folder = tmp_path / "vectors"
    shutil.copytree(VECTORS, folder)
    return folder, json.loads((folder / "index.json").read_text())
