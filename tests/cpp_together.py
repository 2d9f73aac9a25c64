"""Programs that are compiled together, because the headers take longer to compile than they do.

Each is in a namespace of its own, and its ``main`` has another name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from cpp_programs import EXAMPLES, SOURCES, WARNINGS, compiled
from support import ROOT

DOCUMENTS = SOURCES / "documents"
PLAIN_DOCUMENT = DOCUMENTS / "mixed_plain.cpp"  # a file beside them, which does not include tech_renaissance.h
_PAGE = (ROOT / "docs" / "cpp.md").read_text(encoding="utf-8")
GUIDE_PROGRAMS = re.findall(r"^```cpp\n(.*?)^```", _PAGE, re.MULTILINE | re.DOTALL)
(GUIDE_WORKER,) = re.findall(r"^```python\n# fragment: worker.py\n(.*?)^```", _PAGE, re.MULTILINE | re.DOTALL)
VERIFY = ROOT / "examples" / "recipes" / "verify-algorithm" / "verify.cpp"
LINES = ROOT / "tests" / "in_flight" / "session_by_lines.cpp"
APART = ["forks.cpp", "main.cpp"]  # of tests/cpp: without AddressSanitizer, and without the tools
TOGETHER = ("hello", "many")  # the examples that are compiled by themselves only with --full


def document_programs() -> dict[str, str]:
    """The programs of the original framework's documents, by their names."""
    return {
        path.stem: f'#line 1 "{path}"\n{path.read_text()}'
        for path in sorted(DOCUMENTS.glob("*.cpp"))
        if path != PLAIN_DOCUMENT
    }


def plain_program(compiler: str, request: pytest.FixtureRequest) -> Path:
    """The program of what needs no sanitizers, without RTTI.

    It has the guide's programs, by their numbers, a recipe's, examples, that of tests/in_flight, the tests that fork.
    """
    programs = {str(number): text for number, text in enumerate(GUIDE_PROGRAMS)}
    files = {"verify": VERIFY, "lines": LINES, **{each: EXAMPLES / f"{each}.cpp" for each in TOGETHER}}
    programs |= {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    flags = [*WARNINGS, "-fno-rtti", "-DWITHOUT_TOOLS"]
    return compiled(compiler, request, "plain", one_program(programs, APART), flags)


def one_program(programs: Mapping[str, str], suite: Sequence[str] = ()) -> str:
    """The source of a program that runs the one of a name: ``program NAME``.

    Args:
        programs: their sources, by these names.
        suite: names of sources of tests/cpp, whose ``main`` gets all other arguments.
    """
    includes: dict[str, None] = {}
    parts, calls = [], []
    for name, text in programs.items():
        includes.update(dict.fromkeys(re.findall(r"^#include .*$", text, re.MULTILINE)))
        body = re.sub(r"^#include .*$", "", text, flags=re.MULTILINE)
        has_arguments = re.search(r"\bmain\(int \w+", body)
        body = re.sub(r"\}\s*\Z", "return 0; }", body)  # only main may end without it
        parts.append(f"namespace {space_of(name)} {{\n#define main run\n{body}\n#undef main\n}}\n")
        call = f"{space_of(name)}::run({'argc - 2, argv + 2' if has_arguments else ''})"
        calls.append(f'    if (name == "{name}") return {call};\n')
    rest = "    return 99;\n"
    if suite:
        parts.append("#define main suite_main\n" + "".join(f'#include "{SOURCES / each}"\n' for each in suite))
        parts.append("#undef main\n")
        rest = "    return suite_main(argc, argv);\n"
    main = (
        "int main(int argc, char** argv) {\n"
        '    const std::string name = argc > 2 && std::string(argv[1]) == "program" ? argv[2] : "";\n'
        + "".join(calls)
        + rest
        + "}\n"
    )
    return "\n".join([*includes, "#include <string>", *parts, main])


def space_of(name: str) -> str:
    return f"{name}_document" if not name.isdigit() else f"program_{name}"
