"""Values by name: what one side packs, the other unpacks; anything else is refused in one line."""

from __future__ import annotations

import enum
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tr_mmap.errors import BadMessage
from tr_mmap.protocol.messages import Request, Response, decode_request, decode_response, encode
from tr_mmap.protocol.named_values import FORM_NAMED, pack, unpack

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
ARRAYS = st.lists(st.integers(0, 9), max_size=3).map(np.array)
PLAIN = TEXTS | st.booleans() | st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats()
VALUES = st.recursive(PLAIN | ARRAYS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one is other
    is_nan = isinstance(one, float) and math.isnan(one)
    return (
        type(one) is type(other)
        and (is_nan == (isinstance(other, float) and math.isnan(other)))
        and (is_nan or one == other)
    )


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_packed_comes_back_with_the_same_types_and_the_same_tensors(values: dict[str, Any]) -> None:
    text, tensors = pack(values)
    found = unpack(text, tensors)
    assert list(found) == list(values)
    assert all(same(values[name], found[name]) for name in values)


@given(TEXTS, TEXTS)
def test_messages_carry_the_form_and_plain_texts_have_none(text: str, name: str) -> None:
    packed, _ = pack({name: text})
    request = Request(seq=1, command="x", parameters=packed, form=FORM_NAMED)
    response = Response(seq=1, command="x", result=packed, form=FORM_NAMED)
    assert decode_request(encode(request)) == request
    assert decode_response(encode(response)) == response
    assert b"form" not in encode(Response(seq=1, command="x", result='{"tensor": 0}'))


def test_a_numpy_scalar_is_a_tensor_and_an_enums_member_is_its_value() -> None:
    class Mode(enum.StrEnum):
        FAST = "fast"

    class Level(enum.IntEnum):
        HIGH = 3

    text, tensors = pack({"a": np.float64(1.5), "b": Mode.FAST, "c": Level.HIGH, "d": (1, 2)})
    assert tensors == [1.5]
    assert unpack(text, ["the tensor"]) == {"a": "the tensor", "b": "fast", "c": 3, "d": [1, 2]}


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({3: 1}, "names are texts"),
        ({"x": {"y": 1}}, "'x'.*a dict in a dict"),
        ({"x": [{"y": 1}]}, "'x'.*a dict in a dict"),
        ({"x": 1 << 64}, "'x'.*64 bits"),
        ({"x": -(1 << 63) - 1}, "'x'.*64 bits"),
        ({"x": ENDLESS}, "'x'.*without an end"),
        ({"x": "\ud800"}, "cannot be written"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_its_name(values: dict[Any, Any], why: str) -> None:
    with pytest.raises(BadMessage, match=why):
        pack(values)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", "{", '{"x": {}}', '{"x": {"tensor": 1}}', '{"x": {"tensor": -1}}', '{"x": {"tensor": true}}'),
        *('{"x": {"tensor": "0"}}', '{"x": {"tensor": 0, "y": 1}}', '{"x": {"float": "1.5"}}', '{"x": {"float": 1}}'),
        '{"x": ' + "[" * 100_000,
    ],
)
def test_a_forged_text_is_refused(text: str) -> None:
    with pytest.raises(BadMessage, match="no values by name"):
        unpack(text, ["a tensor"])
