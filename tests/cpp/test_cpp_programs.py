"""The C++ headers and examples, built in the ways that users have."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from cpp_programs import EXAMPLES, INCLUDE, WARNINGS, locked, run, run_both
from support import ROOT

pytestmark = pytest.mark.timeout(400)  # the first test that needs the suite compiles it


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_the_header_compiles_without_a_warning(compiler: str, name: str, is_full: bool) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    for standard in ("17", "20", "23") if is_full else ("17",):
        more = ["-Wshadow", "-Wconversion", f"-std=c++{standard if name == 'g++' or standard != '23' else '2b'}"]
        run([name, *WARNINGS, *more, f"-I{INCLUDE}", "-fsyntax-only", EXAMPLES / "matmul.cpp"])


def test_headers_stand_alone(compiler: str, tmp_path: Path, is_full: bool) -> None:
    names = sorted(each.name for each in (INCLUDE / "tr_mmap").glob("*.hpp"))
    for name in names if is_full else ("print.hpp",):
        source = tmp_path / "x.cpp"
        source.write_text(f"#include <tr_mmap/{name}>\n#include <tr_mmap/{name}>\nint main() {{}}\n")
        run([compiler, *WARNINGS, f"-I{INCLUDE}", "-fsyntax-only", source])
    run([compiler, *WARNINGS, "-x", "c++", "-fsyntax-only", INCLUDE / "tr_mmap" / "tr_mmap.hpp"])  # by itself


EXPECTED = {
    "hello": ["Hello World"],
    "matmul": ["4x5", "result: 4x5 FP32", "[[9.0, 9.0, 9.0, 9.0, 9.0],"],
    "loan": ["sent 64 MiB, copied 0 bytes", "can still be written: no", "theirs 0.0625, mine -1"],
}


@pytest.fixture(scope="session")
def examples(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples and the program of docs/cpp.md, built once a run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # then it is that of one of several processes
        shared = shared.parent
    folder = shared / "cpp-examples"
    with locked(shared / "cpp-examples.lock"):
        if not (folder / "built").exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(EXAMPLES, folder)
            build_examples(compiler, folder)
            (folder / "built").touch()
    return folder


def build_examples(compiler: str, folder: Path) -> None:
    """Each in another of the ways that users have."""
    include = run([sys.executable, "-m", "tr_mmap.cli", "include"]).strip()
    make = ["make", "-s", "-C", folder, f"CXX={compiler}", f"INCLUDE={include}", "CXXFLAGS=-Wall -Wextra -Werror"]
    # The original program takes no flag but the threads library.
    plain = [compiler, f"-I{include}", folder / "matmul.cpp", "-o", folder / "matmul", "-pthread"]
    (folder / "page.cpp").write_text((ROOT / "docs" / "cpp.md").read_text().split("```cpp\n", 1)[1].split("```", 1)[0])
    page = [compiler, "-std=c++17", f"-I{include}", folder / "page.cpp", "-o", folder / "page", "-pthread"]
    if shutil.which("cmake") is None:
        run_both([[*make, "hello", "loan"], plain, page])
    else:
        where = f"-Dtr_mmap_DIR={ROOT / 'tr_mmap' / 'cpp' / 'cmake'}"
        run(["cmake", "-S", folder, "-B", folder / "build", where, f"-DCMAKE_CXX_COMPILER={compiler}"])
        run_both([["cmake", "--build", folder / "build", "--target", "hello"], plain, page, [*make, "loan"]])
        (folder / "build" / "hello").rename(folder / "hello")


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake")
def test_cmake_finds_the_package_in_an_environment(compiler: str, tmp_path: Path) -> None:
    """Where pip puts it: the configuration file in share, the headers in the package."""
    places = {"cmake": "share/cmake/tr_mmap", "include": "lib/python3.11/site-packages/tr_mmap/cpp/include"}
    for source, target in places.items():
        shutil.copytree(ROOT / "tr_mmap" / "cpp" / source, tmp_path / "env" / target)
    named = [f"-DCMAKE_PREFIX_PATH={tmp_path / 'env'}", f"-DCMAKE_CXX_COMPILER={compiler}"]
    run(["cmake", "-S", EXAMPLES, "-B", tmp_path / "build", *named])
    found = [each.read_text() for each in (tmp_path / "build").rglob("flags.make")]
    assert found
    assert all(f"{tmp_path / 'env' / places['include']}" in each for each in found)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_example_runs(examples: Path, name: str) -> None:
    lines = run([examples / name]).splitlines()
    assert [each for each in EXPECTED[name] if each not in lines] == [], lines
    if name == "matmul":
        assert lines[0] == "4x5"
        assert " ".join(lines).count("9.0") == 20


def test_the_program_of_the_page_runs_as_it_stands(examples: Path) -> None:
    assert run([examples / "page"]) == "512x256: 3072\n"


def test_every_example_is_run() -> None:
    assert {each.stem for each in EXAMPLES.glob("*.cpp")} == set(EXPECTED)
    assert "foreach(name hello matmul loan)" in (EXAMPLES / "CMakeLists.txt").read_text()
