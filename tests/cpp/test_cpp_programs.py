"""The C++ headers and examples, built in the ways that users have."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpp_programs import EXAMPLES, INCLUDE, WARNINGS, run, run_both
from cpp_together import TOGETHER
from support import ROOT, leftovers, made_once

pytestmark = pytest.mark.timeout(400)  # the first test that needs the suite compiles it


@pytest.mark.full_only  # C++17: also by both compilers for the documents' programs; C++20: for the library of two parts
@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_the_header_compiles_without_a_warning(compiler: str, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    for standard in ("17", "20", "23"):
        more = ["-Wshadow", "-Wconversion", f"-std=c++{standard if name == 'g++' or standard != '23' else '2b'}"]
        run([name, *WARNINGS, *more, f"-I{INCLUDE}", "-fsyntax-only", EXAMPLES / "matmul.cpp"])


def test_headers_stand_alone(compiler: str, tmp_path: Path, is_full: bool) -> None:
    names = sorted(each.name for each in (INCLUDE / "tr_mmap").glob("*.hpp") if "macros" not in each.name)
    for name in names if is_full else ("print.hpp",):
        source = tmp_path / "x.cpp"
        source.write_text(f"#include <tr_mmap/{name}>\n#include <tr_mmap/{name}>\nint main() {{}}\n")
        run([compiler, *WARNINGS, f"-I{INCLUDE}", "-fsyntax-only", source])
    run([compiler, *WARNINGS, "-x", "c++", "-fsyntax-only", INCLUDE / "tr_mmap" / "tr_mmap.hpp"])  # by itself


def test_other_libraries_macros_are_set_aside_for_every_name_that_they_may_have() -> None:
    names = {each: re.findall(rf'pragma {each}_macro\("(\w+)"\)', text) for each, text in _macro_lists().items()}
    names = {each: [name for name in found if not name.startswith("TR_MMAP_")] for each, found in names.items()}
    undefined = [
        each for each in re.findall(r"#undef (\w+)", _macro_lists()["push"]) if not each.startswith("TR_MMAP_")
    ]
    assert names["push"] == names["pop"] == undefined
    assert own_names() - set(undefined) == set()
    for path in (INCLUDE / "tr_mmap").glob("*.hpp"):
        if path.name not in ("macros_off.hpp", "macros_on.hpp", "wire.hpp"):  # those of wire.hpp are in lower case
            text = path.read_text()
            assert '#include "macros_off.hpp"' in text, path.name
            assert '#include "macros_on.hpp"' in text, path.name


KEYWORDS = """alignas alignof and asm auto bitand bitor bool break case catch char class compl const constexpr continue
decltype default delete do double else enum explicit export extern false final float for friend goto if inline int long
mutable namespace new noexcept not nullptr operator or override private protected public register return short signed
sizeof static struct switch template this throw true try typedef typeid typename union unsigned using virtual void
volatile while xor defined pragma include ifndef endif define undef elif ifdef"""
NEEDED_MACROS = {"errno"}  # our headers use the system's


def own_names() -> set[str]:
    """The names in our headers that a macro is likely to have: types, enumerators, constants, words."""
    names: set[str] = set()
    for path in (INCLUDE / "tr_mmap").glob("*.hpp"):
        if "macros" in path.name:
            continue
        text = re.sub(r'"(?:\\.|[^"\\\n])*"', '""', re.sub(r"//.*", "", path.read_text()))
        for body in re.findall(r"\benum (?:class |struct )?\w+[^{;]*\{(.*?)\}", text, re.DOTALL):
            names |= set(re.findall(r"(?:^|,)\s*(\w+)", body))
        names |= set(re.findall(r"\b(?:class|struct|union|enum|typename) (?:\.\.\. ?)?([A-Z]\w*)", text))
        names |= set(re.findall(r"\busing ([A-Z]\w*) *=", text))
        names |= set(re.findall(r"\b(?:constexpr|const) [\w:<> ]+?\b([A-Z][A-Z0-9_]+)\b *[={]", text))
        bare = re.sub(r"'(?:\\.|[^'\\])'", "''", re.sub(r"#include.*", "", text))
        names |= set(re.findall(r"\b[a-z]+\b", bare)) - set(KEYWORDS.split()) - NEEDED_MACROS
    assert names >= {
        "BOOL",
        "CPU",
        "BAD_MAGIC",
        "DEFAULT_TIMEOUT_MS",
        "Mirror",
        "Head",
        "Role",
        "T",
        "local",
        "lock",
        "expect",
    }
    return names


def _macro_lists() -> dict[str, str]:
    files = {"push": "macros_off.hpp", "pop": "macros_on.hpp"}
    return {each: (INCLUDE / "tr_mmap" / name).read_text() for each, name in files.items()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["-std=c++17", "-fno-exceptions"], "without -fno-exceptions"), (["-std=c++14"], "compile with -std=c++17")],
)
def test_options_without_which_it_cannot_work_are_named(
    compiler: str, tmp_path: Path, flags: list[str], message: str
) -> None:
    source = tmp_path / "x.cpp"
    source.write_text("#include <tr_mmap/errors.hpp>\n")
    result = subprocess.run(
        [compiler, *flags, f"-I{INCLUDE}", "-fsyntax-only", source], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert message in result.stderr


# What Qt, X11, syslog, curses, Windows, macOS, R and many a program define; with a value that no declaration survives.
MACROS = """OK ERROR BUSY EXIT READY BOOL INT8 INT16 INT32 UINT8 UINT32 CPU SEALED TORN Status Data Object Device Header
Fault Lock Clock Tensor Shape check min max move count erase clear TRUE FALSE IN OUT far near interface small DELETE
slots signals emit foreach forever verify require ensure nil Bool None Always Success refresh timeout unix linux word
bit complex imaginary isnan isinf isfinite noreturn length error install index clamp current all each in out until
print log info unused I E"""

STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]

GUEST = """
extern "C" int open_it(const char* id) {
    static tr::PythonSession session("default", id, true);  // ends with the library, or the process
    session.start();
    if (!session.wait_until_ready(60'000)) return 1;
    tr::Tensor loan = session.empty<float>(tr::Shape(2, 2));
    loan.fill(3);
    return session.calculate("square", loan).data<float>()[3] == 9 ? other_part() : 2;
}
"""


def test_headers_in_a_program_of_another_kind(
    compiler: str, quick_compiler: str, is_full: bool, tmp_path: Path, workspace: Path
) -> None:
    """A shared library, without RTTI, of C++20, of two parts, beside other libraries' macros, in a foreign process.

    By default each part is of another compiler, because g++ takes twice as long; with --full both are of g++.
    """
    macros = sorted({*MACROS.split(), *own_names()})
    calls = {
        name for name in macros if name.islower() and len(name) % 2
    }  # those like lock(): a call has too many words
    defines = "".join(f"#define {name}{'()' if name in calls else ''} +-+ no {name}\n" for name in macros)
    undefines = "".join(f"#ifndef {name}\n#error gone\n#endif\n#undef {name}\n" for name in macros)
    first, second, library = tmp_path / "first.cpp", tmp_path / "second.cpp", tmp_path / "guest.so"
    first.write_text(f"{defines}#include <tr_mmap/tr_mmap.hpp>\n{undefines}int other_part();\n{GUEST}")
    names = [each.name for each in (INCLUDE / "tr_mmap").glob("*.hpp") if "macros" not in each.name]
    second.write_text(
        "".join(f"#include <tr_mmap/{name}>\n" for name in sorted(names, reverse=True))
        + "int other_part();\nint other_part() { return tr::Tensor::ones(tr::Shape(3)).numel() == 3 ? 0 : 3; }\n"
    )
    flags = [*STRICT, f"-I{INCLUDE}", "-fPIC", "-c"]
    compilers = (compiler, compiler) if is_full else (quick_compiler, compiler)
    standard = "-std=c++17" if is_full else "-std=c++20"  # by default g++ compiles the headers as C++20 here alone
    run_both(
        [
            [compilers[0], "-std=c++20", "-fno-rtti", *flags, first, "-o", first.with_suffix(".o")],
            [compilers[1], standard, "-O1", *flags, second, "-o", second.with_suffix(".o")],
        ]
    )
    run([compiler, "-shared", first.with_suffix(".o"), second.with_suffix(".o"), "-o", library, "-pthread"])
    code = f"import ctypes; raise SystemExit(ctypes.CDLL({str(library)!r}).open_it(b'guest'))"
    run([sys.executable, "-c", code])
    assert leftovers(workspace) == []


EXPECTED = {
    "hello": ["Hello World"],
    "matmul": ["(4,5)", "result: (4,5) FP32", "[[9.0, 9.0, 9.0, 9.0, 9.0],"],
    "many": ["100 sums: 4950000", "Hello Many", "unknown: dance"],
    "loan": ["sent 64 MiB, copied 0 bytes", "can still be written: no", "theirs 0.0625, mine -1"],
}


@pytest.fixture(scope="session")
def examples(compiler: str, quick_compiler: str, pytestconfig: pytest.Config) -> Path:
    """The examples, built once a run; by default without those that are in the program of the fixture ``plain``."""
    is_full = bool(pytestconfig.getoption("--full"))

    def make(folder: Path) -> None:
        shutil.copytree(EXAMPLES, folder)
        build_examples(compiler, quick_compiler, folder, is_full)

    return made_once("cpp-examples", make)


def build_examples(compiler: str, quick_compiler: str, folder: Path, is_full: bool) -> None:
    """Each in another of the ways that users have. CMake builds the recipe's project too, also by default."""
    include = run([sys.executable, "-m", "tr_mmap.cli", "include"]).strip()
    make = ["make", "-s", "-C", folder, f"CXX={quick_compiler}", f"INCLUDE={include}", "CXXFLAGS=-Wall -Wextra -Werror"]
    # The original program takes no flag but the threads library.
    plain = [compiler, f"-I{include}", folder / "matmul.cpp", "-o", folder / "matmul", "-pthread"]
    if not is_full:
        run_both([[*make, "loan"], plain])
    elif shutil.which("cmake") is None:
        run_both([[*make, "hello", "loan", "many"], plain])
    else:
        where = f"-Dtr_mmap_DIR={ROOT / 'tr_mmap' / 'cpp' / 'cmake'}"
        run(["cmake", "-S", folder, "-B", folder / "build", where, f"-DCMAKE_CXX_COMPILER={quick_compiler}"])
        run_both([["cmake", "--build", folder / "build", "--target", "hello"], plain, [*make, "loan", "many"]])
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
def test_example_runs(request: pytest.FixtureRequest, name: str, is_full: bool) -> None:
    if name in TOGETHER and not is_full:
        lines = run([request.getfixturevalue("plain"), "program", name]).splitlines()
    else:
        lines = run([request.getfixturevalue("examples") / name]).splitlines()
    assert [each for each in EXPECTED[name] if each not in lines] == [], lines
    if name == "matmul":
        assert lines[0] == "(4,5)"
        assert " ".join(lines).count("9.0") == 20


def test_every_example_is_run() -> None:
    assert {each.stem for each in EXAMPLES.glob("*.cpp")} == set(EXPECTED)
    assert "foreach(name hello matmul loan many)" in (EXAMPLES / "CMakeLists.txt").read_text()
