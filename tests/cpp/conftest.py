"""The C++ suite.

It is compiled once, with AddressSanitizer and UndefinedBehaviorSanitizer, and asked for its parts. What is compiled is
kept in pytest's cache until a source changes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cpp_programs import SANITIZERS, SOURCES, VECTORS, WARNINGS, compiled, included, run
from cpp_together import APART, plain_program


@pytest.fixture(scope="session")
def compiler() -> str:
    """g++, or whatever CXX says."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        notice = "NOT TESTED: the C++ side, for there is no g++. Install g++, or name a compiler in CXX"
        if os.environ.get("CI"):
            pytest.fail(notice)
        pytest.skip(notice)
    return found


@pytest.fixture(scope="session")
def quick_compiler(compiler: str) -> str:
    """clang++, which compiles in half of the time, where it is and CXX says nothing."""
    return compiler if "CXX" in os.environ else shutil.which("clang++") or compiler


# What is compiled together: the library's headers take longer than all that is in here. The test of a library of two
# parts finds what they define twice.
SUITE = ["sessions.cpp", "session_lives.cpp", "session_threads.cpp", "session_many.cpp", "session_places.cpp"]
SUITE += ["session_values.cpp", "endings.cpp", "formats.cpp", "values.cpp", "tools.cpp", "main.cpp"]
AT_ONCE = ["session_many.cpp", "main.cpp"]  # by ThreadSanitizer
assert {*SUITE, *APART} == {path.name for path in SOURCES.glob("*.cpp")}


@pytest.fixture(scope="session")
def suite(quick_compiler: str, request: pytest.FixtureRequest) -> Path:
    """The program made of tests/cpp."""
    return compiled(quick_compiler, request, "suite", included(SUITE), [*WARNINGS, *SANITIZERS])


@pytest.fixture(scope="session")
def plain(quick_compiler: str, request: pytest.FixtureRequest) -> Path:
    """What needs no sanitizers; see there."""
    return plain_program(quick_compiler, request)


@pytest.fixture(scope="session")
def forks(quick_compiler: str, request: pytest.FixtureRequest) -> Path:
    """The program of the tests that fork beside threads, with sanitizers only if all is to be as long as it can be."""
    if not request.config.getoption("--full"):
        made: Path = request.getfixturevalue("plain")
        return made
    flags = [*WARNINGS, "-DWITHOUT_TOOLS", *SANITIZERS[1:], "-fsanitize=undefined"]
    return compiled(quick_compiler, request, "forks", included(APART), flags)


@pytest.fixture(scope="session")
def at_once(quick_compiler: str, request: pytest.FixtureRequest) -> Path:
    """The program of the tests of many requests at once, with ThreadSanitizer."""
    flags = [*WARNINGS, "-DWITHOUT_TOOLS", "-fsanitize=thread"]
    return compiled(quick_compiler, request, "at_once", included(AT_ONCE), flags)


def asking(program: Path, folder: Path) -> Any:
    """A function that runs a program of ours with some arguments."""

    def asked(*arguments: str | Path, within_s: float = 300, **environment: str) -> str:
        environment |= {"TR_TEST_WORKER": str(SOURCES / "worker.py"), "TR_TEST_FOLDER": str(folder)}
        return run([program, *arguments], within_s, **environment)

    return asked


@pytest.fixture
def ask(suite: Path, tmp_path: Path) -> Any:
    """Run the suite with some arguments."""
    return asking(suite, tmp_path)


@pytest.fixture
def ask_forks(forks: Path, tmp_path: Path) -> Any:
    """The same for the tests that fork beside threads."""
    return asking(forks, tmp_path)


@pytest.fixture
def ask_at_once(at_once: Path, tmp_path: Path) -> Any:
    """The same for the tests of many requests at once, with ThreadSanitizer."""
    return asking(at_once, tmp_path)


@pytest.fixture
def vectors(tmp_path: Path) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """A copy of the vectors (loading a segment marks it), and their index."""
    folder = tmp_path / "vectors"
    shutil.copytree(VECTORS, folder)
    return folder, json.loads((folder / "index.json").read_text())
