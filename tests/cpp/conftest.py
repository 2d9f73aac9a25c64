"""The C++ suite.

It is compiled once, with AddressSanitizer and UndefinedBehaviorSanitizer, and asked for its parts. What is compiled is
kept in pytest's cache until a source changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cpp_programs import INCLUDE, SANITIZERS, SOURCES, VECTORS, WARNINGS, run
from support import locked


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
APART = ["forks.cpp", "main.cpp"]  # without AddressSanitizer, and without the tools
assert {*SUITE, *APART} == {path.name for path in SOURCES.glob("*.cpp")}


def compile_suite(
    compiler: str, names: Sequence[str], flags: Sequence[str], sanitizers: Sequence[str], program: Path
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"unit-{names[0]}")
        source.write_text("".join(f'#include "{SOURCES / name}"\n' for name in names))
        temporary = program.with_suffix(".new")
        run([compiler, *flags, *sanitizers, source, "-o", temporary, "-pthread"])
        temporary.rename(program)


def compiled(
    compiler: str, request: pytest.FixtureRequest, name: str, names: Sequence[str], sanitizers: Sequence[str]
) -> Path:
    """A program of some of the sources, from pytest's cache if nothing has changed."""
    sources = [*INCLUDE.rglob("*.h*"), *SOURCES.glob("*.?pp")]
    flags = [*WARNINGS, "-O0", f"-I{INCLUDE}"]
    if "tools.cpp" not in names:
        flags.append("-DWITHOUT_TOOLS")
    state = hashlib.sha256(" ".join([compiler, *names, *flags, *sanitizers]).encode())
    for path in sorted(sources):
        state.update(path.name.encode() + path.read_bytes())
    cache = request.config.cache
    assert cache is not None
    program = cache.mkdir("cpp") / f"{name}-{state.hexdigest()[:16]}"
    with locked(program.parent / f"{name}-lock"):
        if not program.exists():
            for older in program.parent.glob(f"{name}-*"):
                if older.name != f"{name}-lock":
                    older.unlink()
            compile_suite(compiler, names, flags, sanitizers, program)
    return program


@pytest.fixture(scope="session")
def suite(quick_compiler: str, request: pytest.FixtureRequest) -> Path:
    """The program made of tests/cpp."""
    return compiled(quick_compiler, request, "suite", SUITE, SANITIZERS)


@pytest.fixture(scope="session")
def forks(quick_compiler: str, request: pytest.FixtureRequest) -> Path:
    """The program of the tests that fork beside threads, with sanitizers only if all is to be as long as it can be."""
    sanitizers = [*SANITIZERS[1:], "-fsanitize=undefined"] if request.config.getoption("--full") else []
    return compiled(quick_compiler, request, "forks", APART, sanitizers)


@pytest.fixture(scope="session")
def at_once(quick_compiler: str, request: pytest.FixtureRequest) -> Path:
    """The program of the tests of many requests at once, with ThreadSanitizer."""
    return compiled(quick_compiler, request, "at_once", AT_ONCE, ["-fsanitize=thread"])


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
