"""The recipes in C++: built as their pages say, and run."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from cpp_programs import outcome
from recipes import EXAMPLES

from tr_mmap import __version__
from tr_mmap.cpp import cmake_dir, include_dir

# What pip installs beside this interpreter counts too.
SEARCHED = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def tool(name: str) -> str:
    found = shutil.which(name, path=SEARCHED)
    if found is None:
        pytest.skip(f"NOT TESTED: the recipes in C++, for there is no {name}")
    return found


@pytest.fixture
def compiler(is_full: bool) -> str:
    """clang++, which compiles in half of the time, where it is; with --full g++."""
    return (None if is_full else shutil.which("clang++", path=SEARCHED)) or tool("g++")


def check(*arguments: str | Path, cwd: Path | None = None) -> str:
    code, printed = outcome(*arguments, cwd=cwd)
    assert code == 0, f"{shlex.join(map(str, arguments))}\n{printed}"
    return printed


@pytest.mark.full_only  # by default tests/cpp/test_cpp_guide.py runs it, compiled together with other programs
def test_a_wrong_algorithm_is_found_and_a_right_one_is_not(compiler: str, tmp_path: Path) -> None:
    folder = EXAMPLES / "verify-algorithm"
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    program = tmp_path / "verify"
    check(compiler, "-std=c++17", *warnings, f"-I{include_dir()}", folder / "verify.cpp", "-o", program, "-pthread")
    code, printed = outcome(program, "reference.py", cwd=folder)
    assert code == 1, printed
    said = [line.partition(" of ")[0] for line in printed.splitlines()]
    assert said[:2] == ["naive, scale 1: ok: 0", "stable, scale 1: ok: 0"]
    assert said[2].startswith("naive, scale 50: WRONG: ")
    assert said[3] == "stable, scale 50: ok: 0"
    assert "nan, expected" in printed.splitlines()[2]


def configure(compiler: str, source: Path, build: Path, *options: str) -> tuple[int, str]:
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DCMAKE_CXX_COMPILER={compiler}"]
    return outcome(tool("cmake"), "-S", source, "-B", build, f"-Dtr_mmap_DIR={cmake_dir()}", *generator, *options)


def test_a_cmake_project_finds_the_headers_and_its_program_finds_its_worker(compiler: str, tmp_path: Path) -> None:
    code, printed = configure(compiler, EXAMPLES / "cmake", tmp_path)
    assert code == 0, printed
    check(tool("cmake"), "--build", tmp_path)
    assert check(tmp_path / "app", cwd=tmp_path) == "largest singular value: 3\n"
    assert "100% tests passed" in check(tool("ctest"), "--test-dir", tmp_path, "--output-on-failure")


def test_cmake_accepts_the_versions_of_one_series_only(tmp_path: Path) -> None:
    """As find_package asks: it sets what is wanted, and reads what the version file answers."""
    script = tmp_path / "ask.cmake"
    script.write_text(
        "foreach(wanted 0 0.1 0.1.0 0.0.9 0.1.1 0.2 0.10 1)\n"
        "  set(PACKAGE_FIND_VERSION ${wanted})\n"
        '  string(REGEX MATCHALL "[0-9]+" numbers ${wanted})\n'
        "  list(LENGTH numbers PACKAGE_FIND_VERSION_COUNT)\n"
        f'  include("{cmake_dir() / "tr_mmapConfigVersion.cmake"}")\n'
        '  message("${wanted} ${PACKAGE_VERSION} ${PACKAGE_VERSION_COMPATIBLE} ${PACKAGE_VERSION_EXACT}")\n'
        "endforeach()\n"
    )
    said = [line.split() for line in check(tool("cmake"), "-P", script).splitlines()]
    assert {version for _, version, _, _ in said} == {__version__}
    assert [wanted for wanted, _, is_accepted, _ in said if is_accepted == "TRUE"] == ["0", "0.1", "0.1.0"]
    assert [wanted for wanted, _, _, is_exact in said if is_exact == "TRUE"] == ["0.1", "0.1.0"]
