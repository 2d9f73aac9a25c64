"""The page of the C++ names has each public name of the headers, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from cpp_headers import public_names
from support import ROOT

from tr_mmap.errors import Fault
from tr_mmap.wire import header, waits

PAGE = (ROOT / "docs" / "reference" / "cpp.md").read_text(encoding="utf-8")
NAMES = public_names(ROOT / "tr_mmap" / "cpp" / "include" / "tr_mmap")
OF_THE_LIBRARY = {"storage"}  # its comment in the header says so


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)(?:<T>)?(?:\([^`]*\))?`", text))


def first_cells(text: str) -> str:
    return "\n".join(re.findall(r"^\| (.*?) \|", text, re.MULTILINE))


def test_each_public_name_is_on_the_page() -> None:
    assert len(NAMES[""]) > 55
    assert NAMES[""] - names_in(PAGE) - {"Tensor", "Shape", "PythonSession", "SessionOptions", "PoolStats"} == set()
    assert all(f"## `{each}`" in PAGE for each in ("Tensor", "Shape", "PythonSession", "SessionOptions", "PoolStats"))


def test_each_public_member_is_in_the_section_of_its_type_and_no_other_is() -> None:
    for name in ("Tensor", "Shape", "PythonSession", "SessionOptions", "PoolStats"):
        listed = names_in(first_cells(section(f"`{name}`"))) - {"member", "field"}
        assert listed == NAMES[name] - OF_THE_LIBRARY, name
    assert NAMES["DType"] | NAMES["LowFloat"] <= names_in(section("Dtypes"))
    assert NAMES["Header"] <= names_in(section("Files"))


def test_each_error_has_its_fields_and_no_other() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|$", section("Errors"), re.MULTILINE)
    fields = {
        name: names_in(re.sub(r"\(.*?\)", "", cells)) - {"what", "errno"}
        for names, cells in rows
        for name in names_in(re.sub(r" \(.*?\)$", "", names))
    }
    errors = {each for each in NAMES[""] if each in fields or re.search(r"(Error|Exception)$", each)}
    assert fields.keys() == errors
    for name, found in fields.items():
        assert found == NAMES.get(name, set()), name


def test_faults_have_the_names_of_python() -> None:
    assert NAMES["Fault"] == {fault.name for fault in Fault}


def test_constants_have_these_values() -> None:
    shown = section("Constants")
    values = (header.V0_HEADER_NBYTES, header.V1_HEADER_NBYTES, header.V2_HEADER_NBYTES, header.MAX_HEADER_NBYTES)
    assert ", ".join(map(str, values)) in shown
    assert f"`MAX_NDIM` | {header.MAX_NDIM}," in shown
    assert waits.DEFAULT_TIMEOUT_MS == waits.EXIT_TIMEOUT_MS == 10_000


def test_a_name_that_is_new_in_a_header_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "x.hpp").write_text(
        """namespace tr {
        namespace detail { struct Own { int hidden; }; inline void own() {} }
        /// class Commented {
        class New : public Other {
        public:
            explicit New(int x = {}) : value(x), other_(std::move(x)) { if (x) { y(); } }
            template <class T> T fresh() const { return T{}; }
            static int made(const std::vector<int>& all = {});
            int value = 3;
        private:
            int other_;
        };
        enum class Kind { FIRST = 1, SECOND };
        inline constexpr int limit = 5;
        template <class F> decltype(auto) call(F&& f) { return f(); }
        }"""
    )
    assert public_names(tmp_path) == {
        "": {"New", "Kind", "limit", "call"},
        "New": {"fresh", "made", "value"},
        "Kind": {"FIRST", "SECOND"},
    }
