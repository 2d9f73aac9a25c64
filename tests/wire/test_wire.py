"""One source of wire constants: Python states them, C and C++ have what is generated, and the formats use them."""

from __future__ import annotations

import ast
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from tr_mmap.base.identifiers import is_doorbell_name, is_plain_tag, is_segment_name, is_session_id
from tr_mmap.tsr.dtypes import by_name
from tr_mmap.tsr.header import encode_v0, encode_v1, encode_v2
from tr_mmap.wire import header, messages, names, segments

GENERATOR = ROOT / "tools" / "generate_wire.py"
NATIVE = ROOT / "tr_mmap" / "native"
INCLUDE = ROOT / "tr_mmap" / "cpp" / "include" / "tr_mmap"


def test_c_and_cpp_have_the_constants_that_python_states() -> None:
    checked = subprocess.run([sys.executable, str(GENERATOR), "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_generated_file_that_somebody_edits_is_noticed(tmp_path: Path) -> None:
    """On a copy of the tree's parts that the generator reads and writes."""
    for part in (
        "tools/generate_wire.py",
        "tr_mmap/native/wire.h",
        *(f"tr_mmap/cpp/include/tr_mmap/{each}" for each in ("wire.hpp", "dtype_table.hpp")),
    ):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).write_text((ROOT / part).read_text())
    (tmp_path / "tr_mmap" / "__init__.py").write_text("")
    (tmp_path / "tr_mmap" / "wire").mkdir()
    for path in (ROOT / "tr_mmap" / "wire").glob("*.py"):
        (tmp_path / "tr_mmap" / "wire" / path.name).write_text(path.read_text())
    check = [sys.executable, str(tmp_path / "tools" / "generate_wire.py"), "--check"]
    assert subprocess.run(check, check=False).returncode == 0
    edited = tmp_path / "tr_mmap" / "native" / "wire.h"
    edited.write_text(edited.read_text().replace("WIRE_LEASE_OFFSET 80", "WIRE_LEASE_OFFSET 88"))
    found = subprocess.run(check, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "wire.h is out of date: run python tools/generate_wire.py" in found.stdout


FIELDS = {  # of a v2 header: how each is packed
    "MAGIC_OFFSET": "4s",
    "VERSION_OFFSET": "<i",
    "HEADER_SIZE_OFFSET": "<i",
    "FLAGS_OFFSET": "<I",
    "DTYPE_OFFSET": "<i",
    "NDIM_OFFSET": "<i",
    "PAYLOAD_SIZE_OFFSET": "<Q",
    "COUNT_OFFSET": "<Q",
    "CREATED_OFFSET": "<Q",
    "PAYLOAD_CHECKSUM_OFFSET": "<Q",
    "PAYLOAD_START_OFFSET": "<I",
    "SEQ_OFFSET": "<Q",
    "LAYOUT_SEQ_OFFSET": "<Q",
    "LEASE_OFFSET": "<Q",
    "GUEST_OFFSET": "<Q",
    "SEQ_COPY_OFFSET": "<Q",
    "DIMS_OFFSET": "<2q",
}


def test_every_field_of_a_header_is_at_its_offset() -> None:
    raw = encode_v2(
        by_name("float64"), (3, 5), seq=7, payload_offset=512, created_ns=123, payload_checksum=9, is_segment=True
    )
    found = {name: struct.unpack_from(form, raw, getattr(header, name)) for name, form in FIELDS.items()}
    flags = header.FLAG_CHECKSUM | header.FLAG_SEGMENT
    wanted = (header.MAGIC, 2, header.V2_HEADER_NBYTES, flags, 6, 2, 120, 15, 123, 9, 512, 7, 7, 0, 0, 7, (3, 5))
    assert [each[0] if len(each) == 1 else each for each in found.values()] == list(wanted)
    named = {name for name in vars(header) if name.endswith("_OFFSET") and not name.startswith(("V0_", "V1_"))}
    assert named - set(FIELDS) == {"LIVE_OFFSET", "LINES_OFFSET", "RESERVED_OFFSET", "HEADER_CHECKSUM_OFFSET"}


def test_every_field_of_an_older_header_is_at_its_offset() -> None:
    v0, v1 = encode_v0(by_name("int32"), (2, 3)), encode_v1(by_name("int32"), (2, 3))
    assert struct.unpack_from("<i", v0, header.V0_DTYPE_OFFSET) == (3,)
    assert struct.unpack_from("<4i", v0, header.V0_DIMS_OFFSET) == (1, 1, 2, 3)
    assert struct.unpack_from("<4i", v1, header.V1_DIMS_OFFSET) == (1, 1, 2, 3)
    assert struct.unpack_from("<q", v1, header.V1_COUNT_OFFSET) == (6,)


def test_the_words_of_the_live_line_are_its_offsets_in_words_of_eight_bytes() -> None:
    for word, offset in (
        ("SEQ", "SEQ"),
        ("LAYOUT", "LAYOUT_SEQ"),
        ("LEASE", "LEASE"),
        ("GUEST", "GUEST"),
        ("SEQ_COPY", "SEQ_COPY"),
    ):
        assert getattr(header, f"{word}_WORD") * 8 == getattr(header, f"{offset}_OFFSET")


def test_the_lease_lines_are_behind_the_header_and_end_with_its_page() -> None:
    assert header.V2_HEADER_NBYTES <= header.LINES_OFFSET == header.LINES_WORD * 8
    assert header.LINE_NBYTES == header.LINE_WORDS * 8 == 64
    assert header.LINES_OFFSET + header.MAX_READERS * header.LINE_NBYTES == segments.HEAD_NBYTES


def test_dtype_codes_are_counted_from_one_and_never_given_twice() -> None:
    assert [code for code, _, _ in header.DTYPES] == list(range(1, len(header.DTYPES) + 1))
    assert len({name for _, name, _ in header.DTYPES}) == len(header.DTYPES)


def test_an_empty_slot_says_that_there_is_no_message() -> None:
    start = messages.EMPTY_SLOT[: messages.MESSAGE_REST_OFFSET]
    assert start[messages.MESSAGE_NUMBER_OFFSET :] == messages.BLANK_NUMBER
    assert len(messages.BLANK_NUMBER) == messages.NUMBER_DIGITS == len(str(messages.MAX_MESSAGE_SEQ))


@pytest.mark.parametrize("check", [is_plain_tag, is_session_id, is_segment_name, is_doorbell_name])
def test_each_rule_of_names_has_the_limit_that_is_stated(check: object) -> None:
    limit, before, after = {
        is_plain_tag: (names.MAX_TAG_LENGTH, "", ""),
        is_session_id: (names.MAX_SESSION_ID_LENGTH, "", ""),
        is_segment_name: (names.MAX_SEGMENT_NAME_LENGTH, "", names.TENSOR_SUFFIX),
        is_doorbell_name: (names.MAX_DOORBELL_LENGTH, names.DOORBELL_PREFIX, ""),
    }[check]  # type: ignore[index]
    assert callable(check)
    assert check(before + "a" * limit + after)
    assert not check(before + "a" * (limit + 1) + after)
    assert not check(before + after)
    assert not check(before + "a/b" + after)


def statements_of(path: Path) -> set[str]:
    """Names of module-wide constants of a Python source that are numbers or texts."""
    return {
        target.id
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Constant)
        for target in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
        if isinstance(target, ast.Name)
    }


def test_no_module_states_a_wire_constant_a_second_time() -> None:
    stated = {name for path in (ROOT / "tr_mmap" / "wire").glob("*.py") for name in statements_of(path)}
    assert len(stated) > 80
    for path in (ROOT / "tr_mmap").rglob("*.py"):
        if path.parent.name != "wire":
            again = {name for name in statements_of(path) if name.lstrip("_") in stated}
            assert not again, f"{path.name} states {again}; import it from tr_mmap.wire"


@pytest.mark.parametrize("suffix", ["[ch]", "hpp"])
def test_no_source_of_c_or_cpp_defines_a_wire_constant_of_its_own(suffix: str) -> None:
    folder = NATIVE if suffix == "[ch]" else INCLUDE
    generated = {"wire.h", "wire.hpp", "dtype_table.hpp"}
    used = 0
    for path in folder.glob(f"*.{suffix}"):
        text = path.read_text()
        used += len(re.findall(r"\bWIRE_[A-Z0-9_]+|\bwire::\w+", text))
        if path.name not in generated:
            assert not re.findall(r"#define WIRE_\w+|namespace wire", text), path.name
    assert used > 60
