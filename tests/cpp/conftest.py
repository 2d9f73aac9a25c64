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
from cpp_programs import INCLUDE, SANITIZERS, SOURCES, VECTORS, WARNINGS, locked, run, run_both


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


# What is compiled together: the library's headers take longer than all that is in here, and two are enough to find what
# is defined twice.
UNITS = [
    ("sessions.cpp", "session_lives.cpp", "session_threads.cpp"),
    ("session_places.cpp", "endings.cpp", "formats.cpp", "values.cpp", "tools.cpp", "main.cpp"),
]


def compile_suite(compiler: str, flags: Sequence[str], program: Path) -> None:
    assert {name for unit in UNITS for name in unit} == {path.name for path in SOURCES.glob("*.cpp")}
    with tempfile.TemporaryDirectory() as folder:
        commands, objects = [], []
        for unit in UNITS:
            source = Path(folder, f"unit-{unit[0]}")
            source.write_text("".join(f'#include "{SOURCES / name}"\n' for name in unit))
            objects.append(source.with_suffix(".o"))
            commands.append([compiler, *flags, "-c", source, "-o", objects[-1]])
        run_both(commands)
        temporary = program.with_suffix(".new")
        run([compiler, *SANITIZERS, *objects, "-o", temporary, "-pthread"])
        temporary.rename(program)


@pytest.fixture(scope="session")
def suite(compiler: str, request: pytest.FixtureRequest) -> Path:
    """The program made of tests/cpp."""
    sources = [*INCLUDE.rglob("*.h*"), *SOURCES.glob("*.?pp")]
    flags = [*WARNINGS, "-O0", *SANITIZERS, f"-I{INCLUDE}"]
    state = hashlib.sha256(" ".join([compiler, *flags]).encode())
    for path in sorted(sources):
        state.update(path.name.encode() + path.read_bytes())
    cache = request.config.cache
    assert cache is not None
    program = cache.mkdir("cpp") / f"suite-{state.hexdigest()[:16]}"
    with locked(program.parent / "lock"):
        if not program.exists():
            for older in program.parent.glob("suite-*"):
                older.unlink()
            compile_suite(compiler, flags, program)
    return program


@pytest.fixture
def ask(suite: Path, tmp_path: Path) -> Any:
    """Run the suite with some arguments."""

    def asked(*arguments: str | Path, within_s: float = 300, **environment: str) -> str:
        environment |= {"TR_TEST_WORKER": str(SOURCES / "worker.py"), "TR_TEST_FOLDER": str(tmp_path)}
        return run([suite, *arguments], within_s, **environment)

    return asked


@pytest.fixture
def vectors(tmp_path: Path) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """A copy of the vectors (loading a segment marks it), and their index."""
    folder = tmp_path / "vectors"
    shutil.copytree(VECTORS, folder)
    return folder, json.loads((folder / "index.json").read_text())
