"""Compiling C++ programs and running them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import support
from support import ROOT, locked

INCLUDE = ROOT / "tr_mmap" / "cpp" / "include"
SOURCES = ROOT / "tests" / "cpp"
EXAMPLES = ROOT / "examples" / "cpp"
VECTORS = ROOT / "tests" / "vectors"
WARNINGS = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
STRICT = [*WARNINGS, "-Wshadow", "-Wconversion"]
# Without vptr: its check needs a descriptor, and a test leaves none.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]


def run(arguments: Sequence[str | Path], within_s: float = 300, **environment: str) -> str:
    """What it prints; fails the test if it fails."""
    result = subprocess.run(
        [str(each) for each in arguments],
        env={**support.environment(), "TR_PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    assert result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def outcome(*arguments: str | Path, cwd: Path | None = None) -> tuple[int, str]:
    """The exit code of a program, and what it prints."""
    ended = subprocess.run(
        [str(each) for each in arguments],
        cwd=cwd,
        env={**support.environment(), "TR_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    return ended.returncode, ended.stdout


def run_both(commands: Sequence[Sequence[str | Path]]) -> None:
    """Run commands, two at a time."""
    running: list[tuple[Sequence[str | Path], subprocess.Popen[str]]] = []
    waiting = list(commands)
    while waiting or running:
        while waiting and len(running) < 2:
            command = waiting.pop(0)
            process = subprocess.Popen(
                [str(each) for each in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            running.append((command, process))
        command, process = running.pop(0)
        errors = process.communicate()[1]
        if process.returncode != 0:
            for _, other in running:
                other.communicate()
        assert process.returncode == 0, f"{' '.join(map(str, command))}\n{errors}"


def compiled(
    compiler: str,
    request: pytest.FixtureRequest,
    name: str,
    text: str,
    flags: Sequence[str],
    others: Sequence[Path] = (),
) -> Path:
    """The program of a source, from pytest's cache if nothing has changed.

    Args:
        compiler: of it.
        request: of the fixture.
        name: of the program.
        text: its source.
        flags: of the compiler, and of the linker.
        others: files that are linked to it. They are compiled without sanitizers.
    """
    sources = [*INCLUDE.rglob("*.h*"), *SOURCES.glob("*.?pp"), *others]
    flags = [*flags, "-O0", f"-I{INCLUDE}"]
    state = hashlib.sha256(" ".join([compiler, *flags, text]).encode())
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
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder, f"{name}.cpp")
                source.write_text(text, encoding="utf-8")
                objects = [Path(folder, f"{each.name}.o") for each in (source, *others)]
                commands = [[compiler, *flags, "-c", source, "-o", objects[0]]]
                for path, made in zip(others, objects[1:], strict=True):
                    commands.append([compiler, *STRICT, "-O0", f"-I{INCLUDE}", "-c", path, "-o", made])
                run_both(commands)
                temporary = program.with_suffix(".new")
                run([compiler, *flags, *objects, "-o", temporary, "-pthread"])
                temporary.rename(program)
    return program


def included(names: Sequence[str]) -> str:
    return "".join(f'#include "{SOURCES / each}"\n' for each in names)
