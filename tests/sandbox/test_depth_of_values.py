"""How deep JSON is, is seen without a parser that calls itself: as deep as a parser would come, and no less."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tr_mmap.sandbox.values import check_depth, parse_values

TEXTS = st.text('[]{}"\\a\n', max_size=8)
VALUES = st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=40)


def depth_of(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


@given(VALUES)
def test_the_depth_is_that_of_what_a_parser_makes_of_it(value: Any) -> None:
    text, depth = json.dumps(value).encode(), depth_of(value)
    check_depth(text, depth)
    if depth:
        with pytest.raises(ValueError, match=f"deeper than {depth - 1}"):
            check_depth(text, depth - 1)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 300,
        b'{"a":' * 300,
        b'["\\""' + b",[" * 300,
        b'["\\\\"' + b",[" * 300,
        b"[" * 200 + b"]" * 199 + b"[" * 200,
        b'["\xff"' + b",[" * 300,
    ],
)
def test_what_no_parser_would_end_is_as_deep_as_it_would_come(text: bytes) -> None:
    with pytest.raises(ValueError, match="nested deeper than 100"):
        check_depth(text, 100)


@pytest.mark.parametrize("text", [b"", b"[", b'{"a":1', b"[]", b'{"a":1}]', b"\\", b'"'])
def test_values_that_are_none_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|[Ii]nput data|object"):
        parse_values(text)
