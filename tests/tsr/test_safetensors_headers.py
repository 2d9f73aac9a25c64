"""Headers of safetensors files: what is right is read, and each fault of one that is hostile is named."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import NAMES, header_of, safetensors_of

from tr_mmap.tsr.safetensors import SafetensorsError, SafetensorsFault, parse_header, parse_size

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(**changes: Any) -> bytes:
    """A header with one tensor that is right but for these."""
    return json.dumps({"a": {**GOOD, **changes}}).encode()


def two(first: list[int], second: list[int]) -> bytes:
    """A header with two tensors of bytes."""
    offsets = {"a": first, "b": second}
    return json.dumps({n: {"dtype": "U8", "shape": [e - s], "data_offsets": [s, e]} for n, (s, e) in offsets.items()})


def test_a_file_says_what_it_was_written_with() -> None:
    arrays = {"w": np.ones((2, 3), np.float32), "empty": np.ones((0, 4), np.float64), "n": np.array(7, np.int64)}
    raw = safetensors_of(**arrays)
    size = parse_size(raw[:8], len(raw))
    header = parse_header(raw[8 : 8 + size], len(raw) - 8 - size)
    assert [(each.name, each.dtype.name, each.shape) for each in header.entries] == [
        ("w", "float32", (2, 3)),
        ("empty", "float64", (0, 4)),
        ("n", "int64", ()),
    ]
    assert [(each.start, each.end) for each in header.entries] == [(0, 24), (24, 24), (24, 32)]


def test_metadata_are_texts_and_spaces_may_follow() -> None:
    header = parse_header(json.dumps({"__metadata__": {"format": "pt"}, "a": GOOD}).encode() + b"   ", 8)
    assert header.metadata == {"format": "pt"}
    assert [each.name for each in header.entries] == ["a"]
    assert parse_header(b"{}", 0).entries == ()


SIZES = {
    "nothing": (b"", 0, "short"),
    "seven bytes": (bytes(7), 7, "short"),
    "no header": (bytes(8), 8, "size"),
    "one byte": ((1).to_bytes(8, "little"), 100, "size"),
    "larger than the file": ((93).to_bytes(8, "little"), 100, "short"),
    "larger than any": ((100_000_001).to_bytes(8, "little"), 1 << 40, "size"),
    "a sum that overflows": (b"\xff" * 8, 100, "size"),
    "negative": ((1 << 63).to_bytes(8, "little"), 1 << 62, "size"),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_no_header_has_is_refused(name: str) -> None:
    raw, nbytes, fault = SIZES[name]
    with pytest.raises(SafetensorsError) as caught:
        parse_size(raw, nbytes)
    assert caught.value.fault == fault
    assert parse_size((92).to_bytes(8, "little"), 100) == 92  # the control


HOSTILE = {
    "empty": (b"", 0, "json"),
    "no object": (b"[]", 0, "json"),
    "a space first": (b" {}", 0, "json"),
    "cut": (b'{"a"', 0, "json"),
    "no UTF-8": (b'{"\xff": 1}', 0, "json"),
    "two objects": (b"{}{}", 0, "json"),
    "deep": (b'{"a":' * 100_000, 0, "json"),
    "NaN": (b'{"a": NaN}', 0, "json"),
    "a number of many digits": (b'{"a": ' + b"9" * 5000 + b"}", 0, "json"),
    "a name twice": (b'{"a": %s, "a": %s}' % ((json.dumps(GOOD).encode(),) * 2), 8, "json"),
    "a field twice": (b'{"a": {"dtype": "F32", "dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}', 8, "json"),
    "metadata of numbers": (b'{"__metadata__": {"a": 1}}', 0, "metadata"),
    "metadata that are a list": (b'{"__metadata__": []}', 0, "metadata"),
    "an entry that is a list": (b'{"a": []}', 0, "entry"),
    "an entry without a shape": (b'{"a": {"dtype": "F32", "data_offsets": [0, 8]}}', 8, "entry"),
    "an entry with more": (entry(strides=[4]), 8, "entry"),
    "a dtype of nobody": (entry(dtype="F33"), 8, "dtype"),
    "a dtype of ours": (entry(dtype="float32"), 8, "dtype"),
    "a dtype that is a list": (entry(dtype=["F32"]), 8, "dtype"),
    "a shape that is a number": (entry(shape=2), 8, "shape"),
    "a negative size": (entry(shape=[-2]), 8, "shape"),
    "two negative sizes": (entry(shape=[-1, -2]), 8, "shape"),
    "a size that is true": (entry(shape=[True, 2]), 8, "shape"),
    "a size with a fraction": (entry(shape=[2.0]), 8, "shape"),
    "a size that is null": (entry(shape=[None]), 8, "shape"),
    "a size above all": (entry(shape=[1 << 63, 0]), 8, "shape"),
    "too many dimensions": (entry(shape=[1] * 17), 8, "shape"),
    "a product that overflows to eight": (entry(shape=[1 << 62, 4, 2]), 8, "offsets"),
    "offsets that are one": (entry(data_offsets=[0]), 8, "offsets"),
    "offsets that are three": (entry(data_offsets=[0, 8, 8]), 8, "offsets"),
    "a negative offset": (entry(data_offsets=[-8, 0]), 8, "offsets"),
    "an end before the start": (entry(data_offsets=[8, 0]), 8, "offsets"),
    "an offset that is a text": (entry(data_offsets=["0", 8]), 8, "offsets"),
    "more bytes than its shape": (entry(data_offsets=[0, 12]), 12, "offsets"),
    "fewer bytes than its shape": (entry(data_offsets=[0, 4]), 4, "offsets"),
    "behind the file": (entry(), 7, "short"),
    "one beside the other": (two([0, 8], [4, 12]), 12, "overlap"),
    "one in the other": (two([0, 12], [4, 8]), 12, "overlap"),
    "one as the other": (two([0, 8], [0, 8]), 8, "overlap"),
    "a gap between": (two([0, 4], [8, 12]), 12, "gap"),
    "a gap at the start": (entry(data_offsets=[8, 16]), 16, "gap"),
    "bytes of nobody at the end": (entry(), 9, "gap"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_each_fault_of_a_header_is_named(name: str) -> None:
    text, nbytes, fault = HOSTILE[name]
    with pytest.raises(SafetensorsError) as caught:
        parse_header(text if isinstance(text, bytes) else text.encode(), nbytes)
    assert caught.value.fault == fault
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_every_fault_has_a_header_that_has_it() -> None:
    assert {each[2] for each in (*HOSTILE.values(), *SIZES.values())} == set(SafetensorsFault)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*NAMES.values(), "F33"]) | _JSON,
        "shape": st.lists(st.integers(-2, 1 << 65), max_size=3) | _JSON,
        "data_offsets": st.lists(st.integers(-2, 100), max_size=3) | _JSON,
    }
)


@given(st.dictionaries(st.text(max_size=12), _ENTRY | _JSON, max_size=4), st.integers(0, 200))
@settings(max_examples=300)
def test_whatever_a_header_says_its_tensors_fill_the_file_or_it_is_refused(header: Any, nbytes: int) -> None:
    check(json.dumps(header).encode(), nbytes)


@given(st.lists(st.sampled_from([*NAMES]), max_size=4), st.data())
@settings(max_examples=300)
def test_a_header_in_which_a_byte_was_changed_is_right_or_refused(names: list[str], data: st.DataObject) -> None:
    arrays = {f"t{number}": np.ones(number + 1, name) for number, name in enumerate(names)}
    text = bytearray(json.dumps(header_of(arrays)).encode())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(text), sum(each.nbytes for each in arrays.values()))


def check(text: bytes, nbytes: int) -> None:
    """No byte belongs to two tensors or to none, and each has as many as its shape says; or there is a fault."""
    try:
        header = parse_header(text, nbytes)
    except SafetensorsError:
        return
    end = 0
    for each in header.entries:
        assert each.start == end
        end = each.start + int(np.prod(each.shape, dtype=object)) * each.dtype.itemsize
        assert each.end == end
    assert end == nbytes
