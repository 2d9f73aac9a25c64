"""Programs as the original framework's documents have them, in our own words: each compiles as it stands, and runs.

All of them make one program (``cpp_together.py``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cpp_programs import EXAMPLES, INCLUDE, SANITIZERS, STRICT, compiled, run, run_both
from cpp_together import DOCUMENTS, PLAIN_DOCUMENT, document_programs, one_program
from support import ROOT, leftovers

pytestmark = pytest.mark.timeout(400)  # the first test that needs a program compiles it

SANITIZED = "clang++" if shutil.which("clang++") else "g++"  # with sanitizers g++ takes twice as long
# By default g++ compiles the programs, and those of clang++ are run; --full runs those of g++ too.
COMPILERS = [pytest.param("g++", marks=[] if SANITIZED == "g++" else pytest.mark.full_only), "clang++"]

EXPECTED = {
    "async": ["(2,2) 6", "4", "16"],
    "batch": ["batch_document: 10011", "(2,2): 7", "Hello One", "Hi Two"],
    "by_hand": [f"Hello Own{i}, Hello Hand{i}, Hi Hand{i}, 6" for i in range(5)],
    "calculate": [*["(8,4) on CPU: YES"] * 3, "0.0", "with Python sessions", "with PyTorch sessions"],
    "endings": ["1: Hello World!", "2: Hi World!", "alive: 1"],
    "hello": ["Hello Bob", "Hi Eve", "Hello Json"],
    "links": ["0", "1", "1", "1", "0"],
    "matmul": [
        "CpuBackend",
        "shape: (4,5)",
        "result: (4,5) FP32",
        *["[[9.0, 9.0, 9.0, 9.0, 9.0],", *[" [9.0, 9.0, 9.0, 9.0, 9.0],"] * 2, " [9.0, 9.0, 9.0, 9.0, 9.0]]"],
        "random: (2,3)",
    ],
    "mixed": ["(2,3) (2,3) 9"],
    "receive": [
        *["SessionNotStarted", "BadTag", "ResponseTimeout", "10", "UnexpectedResponse Hello Text", "UnknownCommand"],
        *["no response", "TSRFormatError truncated", "7 0", "9", "10", "16", "10", "WorkerDied"],
    ],
    "recovery": ["no tensor", "alive: 0", "(2,2): 6", "not a tensor: 1", "Hi Again"],
    "scoped": [
        "Hello World, Hi There",
        r"[<time>] [ERROR] [TR] session error: the worker knows no command 'no_such_command'",
        "[<time>] [ERROR] [TR] started: 1 2.5",
        "[<time>] [WARN] [TR] warned",
        "[<time>] [WARN] [TR] warned twice",
    ],
    "styles": ["shape_a: (4,3)", "first row: 9 9", "sum: (2,3,4,5) of 7"],
    "tensor_files": [
        "bytes: 88",
        "(2,3) 1 7",
        "(5)",
        "CpuBackend CPU 1",
        "the original framework reads FP32, INT8 and INT32, not FP64; convert the tensor, or write it with save_tsr()",
    ],
    "tensor_square": [
        "(1,1,2,2) 1",
        "(1,1,2,2) 9",
        "(1,1,2,2) 25",
        "10",
        "nothing: no tensor 'nothing' came in 1 ms: ",
    ],
}


@pytest.fixture(scope="session", params=COMPILERS)
def documents(request: pytest.FixtureRequest) -> Path:
    """The program of each compiler, of one with sanitizers."""
    compiler = shutil.which(request.param)
    if compiler is None:
        notice = f"NOT TESTED: the documents' programs with {request.param}, which is not there"
        if request.param == "g++" and os.environ.get("CI"):
            pytest.fail(notice)
        pytest.skip(notice)
    flags = [*STRICT, *(SANITIZERS if request.param == SANITIZED else [])]
    if request.param == "g++" and not request.config.getoption("--full"):
        flags.append("-fno-sanitize=undefined")  # it takes as long as all else; the suite has it
    name = f"documents-{request.param}"
    return compiled(compiler, request, name, one_program(document_programs()), flags, [PLAIN_DOCUMENT])


@pytest.mark.skipif(SANITIZED == "g++", reason="their programs are run")
def test_the_programs_of_the_documents_compile_without_a_warning_by_gcc_too(tmp_path: Path, is_full: bool) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("NOT TESTED: the documents' programs with g++, which is not there")
    unit = tmp_path / "documents.cpp"
    unit.write_text(one_program(document_programs()))
    units = (
        (unit, PLAIN_DOCUMENT) if is_full else (unit,)
    )  # the second is one of the headers alone, as in test_cpp_programs.py
    run_both([[compiler, *STRICT, f"-I{INCLUDE}", "-fsyntax-only", each] for each in units])


@pytest.mark.parametrize("name", list(EXPECTED))
def test_a_program_of_the_documents_compiles_as_it_stands_and_runs(
    documents: Path, name: str, workspace: Path, tmp_path: Path
) -> None:
    # The scripts are named relative to the directory, as in the documents.
    output = run(["env", "-C", DOCUMENTS, documents, "program", name], TR_TEST_FOLDER=str(tmp_path))
    lines = [re.sub(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\]", "[<time>]", each) for each in output.splitlines()]
    assert lines == EXPECTED[name]
    assert leftovers(workspace) == []


def test_every_document_is_run() -> None:
    assert {each.stem for each in DOCUMENTS.glob("*.cpp")} - {PLAIN_DOCUMENT.stem} == set(EXPECTED)


def test_every_header_of_the_original_leads_to_the_one(tmp_path: Path) -> None:
    folder = INCLUDE / "tech_renaissance"
    for path in folder.rglob("*.h"):
        (included,) = re.findall(r'^#include "(.*)"$', path.read_text(), re.MULTILINE)
        assert (path.parent / included).resolve() == INCLUDE / "tech_renaissance.h"
    names = {str(each.relative_to(INCLUDE)) for each in folder.rglob("*.h")}
    assert {f"tech_renaissance/utils/{each}_session.h" for each in ("python", "pytorch")} <= names


CLASSES = {"PYTHON": "PythonSession", "PYTORCH": "PyTorchSession"}
MACROS = ("DEBUG", "INFO", "WARN", "ERROR", "OK", "CPU", "Status")  # as other headers define them


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("g++", "PYTHON"),
        ("clang++", "PYTORCH"),
        pytest.param("g++", "PYTORCH", marks=pytest.mark.full_only),
        pytest.param("clang++", "PYTHON", marks=pytest.mark.full_only),
    ],
)
def test_a_session_that_is_left_out_is_a_compile_error_that_says_so(name: str, which: str, tmp_path: Path) -> None:
    """In a file that other macros are defined in; the other session is there."""
    if shutil.which(name) is None:
        pytest.skip(f"NOT TESTED: {name}, which is not there")
    (other,) = set(CLASSES) - {which}
    source = tmp_path / "x.cpp"
    flags = [f"-DTR_WITHOUT_{which}_SESSION", "-std=c++17", "-fsyntax-only", f"-I{INCLUDE}"]

    def errors(text: str, *more: str) -> list[str]:
        source.write_text(text)
        result = subprocess.run([name, *flags, *more, source], capture_output=True, text=True, check=False)
        return [each for each in result.stderr.splitlines() if " error: " in each]

    header = f'#include "tech_renaissance/utils/{which.lower()}_session.h"\nint main() {{}}\n'
    assert f"TR_BUILD_{which}_SESSION=OFF" in errors(header, "-Wfatal-errors")[0]
    lines = [
        *(f"#define {each} +-+" for each in MACROS),
        '#include "tech_renaissance.h"',
        *(f"#ifndef {each}\n#error gone\n#endif\n#undef {each}" for each in MACROS),
        f"#if defined(TR_BUILD_{which}_SESSION) || !defined(TR_BUILD_{other}_SESSION)\n#error macros\n#endif",
        f"bool here(const tr::{CLASSES[other]}& s) {{ return s.is_alive(); }}",
        "static_assert(tr::LogLevel::ERROR > tr::LogLevel::WARN);",
        f"bool left_out(const tr::{CLASSES[which]}& s) {{ return s.is_alive(); }}",
    ]
    found = errors("\n".join(lines) + "\n")
    assert found
    last = "\n".join(lines).count("\n") + 1
    assert {int(re.findall(r":(\d+):\d+: ", each)[0]) for each in found} == {last}


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"TR_BUILD_PYTHON_SESSION", "TR_BUILD_PYTORCH_SESSION"}),
        (["TR_BUILD_PYTHON_SESSION"], {"TR_WITHOUT_PYTHON_SESSION", "TR_BUILD_PYTORCH_SESSION"}),
        (["TR_BUILD_PYTORCH_SESSION"], {"TR_BUILD_PYTHON_SESSION", "TR_WITHOUT_PYTORCH_SESSION"}),
    ],
    ids=["both", "without PythonSession", "without PyTorchSession"],
)
def test_the_cmake_options_say_which_sessions_there_are(options: list[str], expected: set[str], tmp_path: Path) -> None:
    off = [f"-D{each}=OFF" for each in options]
    where = f"-Dtr_mmap_DIR={ROOT / 'tr_mmap' / 'cpp' / 'cmake'}"
    run(["cmake", "-S", EXAMPLES, "-B", tmp_path / "build", where, *off])
    found = [each.read_text() for each in (tmp_path / "build").rglob("flags.make")]
    assert found
    assert all(set(re.findall(r"-D(TR_\w+)=1", each)) == expected for each in found)


def test_links_of_killed_programs_go_with_the_next_program(documents: Path, workspace: Path, tmp_path: Path) -> None:
    """A program that asks for WORKSPACE_PATH links its sessions; those links that it leaves, the next one removes."""
    (workspace / "pytorch_session").mkdir(mode=0o700)
    (workspace / "pytorch_session" / "tr_session_killed").symlink_to("../python_session/tr_session_killed")
    run(["env", "-C", DOCUMENTS, documents, "program", "links"], TR_TEST_FOLDER=str(tmp_path))
    assert leftovers(workspace) == []
