"""The guide to C++ is true: its programs compile as they stand, without RTTI, and run; so does the how-to in C.

The programs make one program, because the headers take longer to compile than they do: each is a namespace, and its
``main`` another name.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from cpp_programs import INCLUDE, WARNINGS, run
from support import ROOT, leftovers

import tr_mmap

pytestmark = pytest.mark.timeout(400)  # the first test compiles the programs

PAGE = (ROOT / "docs" / "cpp.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```cpp\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SAID = [  # by each program of the page, in their order
    ["512x256: 3072"],
    ["12.5", "1 5", "2"],
    ["2x3 24 bytes, 4 bytes", "1", "another type"],
    ["0 0", "2.0736e+06 0", "4.1472e+06 0", "0 bytes copied"],
    ["matmul: ValueError", "Hello Again"],
    ["4950000 Hello Many", "dance"],
    ["1", "scale: the request was cancelled before its handler was called", "1", "2.5"],
    ["2 1", "1 a test", "there is no value 'slope'; there are: coefficients, degree, label"],
    ["0 10 20 30 "],
    ["9"],
    ["512x256 1"],
]


def one_program() -> str:
    """The source of a program that runs the program of the page whose number is its argument."""
    includes: dict[str, None] = {}
    parts, calls = [], []
    for number, text in enumerate(PROGRAMS):
        includes.update(dict.fromkeys(re.findall(r"^#include .*$", text, re.MULTILINE)))
        body = re.sub(r"^#include .*$", "", text, flags=re.MULTILINE)
        body = re.sub(r"\}\s*\Z", "return 0; }", body)  # only main may end without it
        parts.append(f"namespace program_{number} {{\n#define main run\n{body}\n#undef main\n}}\n")
        calls.append(f"    if (number == {number}) return program_{number}::run();\n")
    main = (
        "int main(int, char** argv) {\n    const int number = std::atoi(argv[1]);\n"
        + "".join(calls)
        + "    return 99;\n}\n"
    )
    return "\n".join(["#include <cstdlib>", *includes, *parts, main])


@pytest.fixture(scope="module")
def program(quick_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of the page, beside the worker that the page has."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "programs.cpp").write_text(one_program(), encoding="utf-8")
    (worker,) = re.findall(r"^```python\n# fragment: worker.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "worker.py").write_text(worker, encoding="utf-8")
    flags = [*WARNINGS, "-fno-rtti", "-O0", f"-I{INCLUDE}"]
    run([quick_compiler, *flags, folder / "programs.cpp", "-o", folder / "programs", "-pthread"])
    return folder / "programs"


@pytest.mark.parametrize("number", range(len(SAID)))
def test_a_program_of_the_guide_compiles_without_rtti_and_says_what_it_should(
    program: Path, workspace: Path, number: int
) -> None:
    output = run(["env", "-C", program.parent, program, str(number)])
    assert output.splitlines() == SAID[number]
    assert leftovers(workspace) == []


def test_every_program_of_the_guide_is_run() -> None:
    assert len(PROGRAMS) == len(SAID)


def test_a_program_in_c_reads_a_file_without_a_library(compiler: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```c\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "read.c").write_text(text, encoding="utf-8")
    run([compiler, "-x", "c", "-std=c99", "-Wall", "-Wextra", "-Werror", tmp_path / "read.c", "-o", tmp_path / "read"])
    tr_mmap.save(tmp_path / "x.tsr", np.full((2, 3), 1.5, "float32"), version=1)
    assert run([tmp_path / "read", tmp_path / "x.tsr"]) == "2 dimensions, 6 elements, sum 9\n"
