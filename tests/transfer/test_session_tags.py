"""A session's tags: each keeps its tensor until it is sent again or dropped, and can replace nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import bits

from tr_mmap import BadTag, MissingTag, PythonSession, RemoteError

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(6, 12, dtype=np.float32).reshape(2, 3)


def test_a_tag_keeps_its_tensor_until_it_is_sent_again(session: PythonSession) -> None:
    session.send_tensor(A, "a")
    assert bits(session.fetch_tensor("echo a")) == bits(A)
    assert bits(session.fetch_tensor("echo a a")[1]) == bits(A)
    session.send_tensor(B, "a")
    assert bits(session.fetch_tensor("echo a")) == bits(B)


def test_a_tensor_sent_twice_before_anybody_asks_is_the_second(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    mapped.send_tensor(B, "a")
    assert bits(mapped.fetch_tensor("echo a")) == bits(B)


def test_changing_an_array_after_it_was_sent_changes_nothing(mapped: PythonSession) -> None:
    array = A.copy()
    mapped.send_tensor(array, "a")
    array[...] = 0
    assert bits(mapped.fetch_tensor("echo a")) == bits(A)


def test_a_dropped_tag_is_gone_and_can_be_sent_again(session: PythonSession) -> None:
    session.send_tensor(A, "gone")
    session.fetch_tensor("echo gone")
    assert (Path(session.session_dir()) / "gone.tsr").exists()
    session.drop_tensor("gone")
    assert not (Path(session.session_dir()) / "gone.tsr").exists()
    with pytest.raises(RemoteError) as caught:
        session.fetch_tensor("echo gone")
    assert caught.value.error_type == "MissingTag"
    with pytest.raises(MissingTag):
        session.drop_tensor("gone")
    session.send_tensor(B, "gone")
    assert bits(session.fetch_tensor("echo gone")) == bits(B)


def test_a_tag_dropped_before_anybody_asked_is_missing(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "fleeting")
    mapped.drop_tensor("fleeting")
    with pytest.raises(RemoteError) as caught:
        mapped.fetch_tensor("echo fleeting")
    assert caught.value.error_type == "MissingTag"


def test_dropping_gives_the_memory_back(mapped: PythonSession) -> None:
    before = mapped.stats()
    mapped.send_tensor(np.zeros(1 << 20, np.uint8), "large")
    mapped.drop_tensor("large")
    after = mapped.stats()
    assert after.nbytes - after.free_nbytes == before.nbytes - before.free_nbytes


def test_a_missing_tag_is_an_error_that_names_it(session: PythonSession) -> None:
    with pytest.raises(RemoteError, match="nowhere") as caught:
        session.fetch_tensor("echo nowhere")
    assert caught.value.error_type == "MissingTag"
    assert caught.value.command == "echo"


BAD_TAGS = ["../x", "", "a b", "x" * 129, ".hidden", "..", ".", "a/b", "/etc/passwd", "a\0b", "ä", "a,b", "a\n", "$0"]


@pytest.mark.parametrize("tag", BAD_TAGS, ids=repr)
def test_a_bad_tag_is_refused(mapped: PythonSession, tag: str) -> None:
    before = sorted(Path(mapped.session_dir()).iterdir())
    with pytest.raises(BadTag) as caught:
        mapped.send_tensor(A, tag)
    assert caught.value.tag in tag or caught.value.tag == tag
    assert sorted(Path(mapped.session_dir()).iterdir()) == before
    with pytest.raises((BadTag, MissingTag)):
        mapped.drop_tensor(tag)


@pytest.mark.parametrize("tag", [None, 3, b"a", ["a"]], ids=repr)
def test_a_tag_that_is_no_text_is_refused(mapped: PythonSession, tag: Any) -> None:
    with pytest.raises(BadTag):
        mapped.send_tensor(A, tag)


@pytest.mark.parametrize("tag", ["x" * 128, "a.b", "A-1_z", "-", "_", "request", "0"])
def test_every_good_tag_works(mapped: PythonSession, tag: str) -> None:
    mapped.send_tensor(A, tag)
    assert bits(mapped.fetch_tensor(f"echo {tag}")) == bits(A)
    mapped.drop_tensor(tag)


@pytest.mark.parametrize("tag", ["result_0", "segment_0", "request.json", "session"])
def test_no_tag_can_replace_a_file_of_the_session(mapped: PythonSession, tag: str) -> None:
    mapped.send_tensor(B, "b")
    held = mapped.fetch_tensor("echo b")
    try:
        mapped.send_tensor(A, tag)
    except BadTag:
        pass
    else:
        assert bits(mapped.fetch_tensor(f"echo {tag}")) == bits(A)
        mapped.drop_tensor(tag)
    assert bits(held) == bits(B)
    assert bits(mapped.fetch_tensor("echo b")) == bits(B)
