"""Tags and session ids: which are good, and what a bad one is told."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from tr_mmap.base.identifiers import check_session_id, check_tag
from tr_mmap.errors import BadTag


@pytest.mark.parametrize(
    "tag", ["a", "A-1_b.c", "x" * 128, "result_", "result_1a", "my_result_1", "segment", "1", "-", "a."]
)
def test_good_tags_pass(tag: str) -> None:
    check_tag(tag)


@pytest.mark.parametrize("tag", ["", ".", "..", ".a", "a/b", "a b", "x" * 129, "ä", "a\n", "\0", "٣", 3, b"a", None])
def test_bad_tags_are_refused(tag: Any) -> None:
    with pytest.raises(BadTag) as caught:
        check_tag(tag)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("tag", ["result_0", "result_123", "segment_7", "given-3_12", "given-file_0"])
def test_the_librarys_own_names_are_refused_as_tags(tag: str) -> None:
    with pytest.raises(BadTag, match="own names"):
        check_tag(tag)


@pytest.mark.parametrize("session_id", ["a", "default", "x" * 64, "A.b-c_1"])
def test_good_session_ids_pass(session_id: str) -> None:
    check_session_id(session_id)
