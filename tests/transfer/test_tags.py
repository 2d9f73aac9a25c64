"""Tags: a tag is one segment's other name, and the worker knows every one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_sides import Sides, lend, python

import tr_mmap
from tr_mmap.base import system
from tr_mmap.errors import MissingTag
from tr_mmap.protocol.messages import Request
from tr_mmap.shm.segment import Segment
from tr_mmap.shm.size_classes import class_nbytes
from tr_mmap.transfer.tags import Tags
from tr_mmap.tsr import read_header
from tr_mmap.tsr.dtypes import by_name


@pytest.fixture
def tags(sides: Sides) -> Iterator[Tags]:
    made = Tags(str(sides.directory), Segment.release)
    yield made
    for tag in list(made.by_tag):
        made.drop(tag)


# --- tags -------------------------------------------------------------------------------------------------------


def test_a_tags_file_can_be_loaded_by_anyone(sides: Sides, tags: Tags) -> None:
    content = np.arange(60.0).reshape(3, 4, 5)
    tags.put("a", sides.pool.publish(content))
    path = sides.directory / "a.tsr"
    assert np.array_equal(tr_mmap.load(path), content)
    header = read_header(path)
    assert (header.shape, header.dtype, header.is_segment) == ((3, 4, 5), by_name("float64"), True)
    (segment,) = sides.pool._segments.values()
    assert os.path.samefile(path, segment.path)
    tags.drop("a")
    assert not path.exists()


def test_a_tag_that_is_sent_again_lets_go_of_its_segment(sides: Sides, tags: Tags) -> None:
    for number in range(20):
        tags.put("a", sides.pool.publish(np.full(10, number)))
        assert tr_mmap.read_header(sides.directory / "a.tsr").seq == number + 1
    assert sides.pool.stats().created == 2
    assert sorted(os.listdir(sides.directory)) == ["a.tsr", "segment_0.tsr", "segment_1.tsr"]


def test_one_loan_may_have_many_tags(sides: Sides, tags: Tags) -> None:
    loan = lend(sides, 10)
    for tag in ("a", "b", "a", "a"):
        tags.put(tag, sides.pool.publish(loan))
    assert sides.pool.stats().segments == 1
    assert sorted(os.listdir(sides.directory)) == ["a.tsr", "b.tsr", "segment_0.tsr"]
    del loan
    tags.drop("a")
    assert tr_mmap.load(sides.directory / "b.tsr").tolist() == list(range(10))
    tags.drop("b")
    sides.settle()
    stats = sides.pool.stats()
    assert stats.free_nbytes == stats.nbytes


def test_a_tag_that_cannot_be_put_keeps_what_it_had(sides: Sides, tags: Tags, monkeypatch: pytest.MonkeyPatch) -> None:
    tags.put("a", sides.pool.publish(np.arange(10)))
    tags.announced(Request(1, "x", "", 0, *tags.announcements()))
    for call in ("link", "rename"):
        with monkeypatch.context() as patch:

            def fail(*_: Any, **__: Any) -> None:
                raise OSError(28, "full")

            patch.setattr(system, call, fail)
            with pytest.raises(OSError, match="full"):
                tags.put("a", sides.pool.publish(np.zeros(10)))
    assert tr_mmap.load(sides.directory / "a.tsr").tolist() == list(range(10))
    assert tags.announcements() == ([], [])
    assert sides.pool.stats().segments == 2
    assert sides.pool.stats().free_nbytes == class_nbytes(80)
    assert sorted(os.listdir(sides.directory)) == ["a.tsr", "segment_0.tsr", "segment_1.tsr"]


def test_a_tag_that_was_never_sent_cannot_be_dropped(sides: Sides, tags: Tags) -> None:
    tags.put("a", sides.pool.publish(np.zeros(1)))
    with pytest.raises(MissingTag) as caught:
        tags.drop("b")
    assert caught.value.tag == "b"
    assert "there are a" in str(caught.value)
    assert tags.announcements()[1] == []


class Told:
    """What the worker knows, from the requests that it has taken."""

    def __init__(self, tags: Tags) -> None:
        self.tags = tags
        self.known: dict[str, int] = {}

    def ask(self) -> Request:
        request = Request(1, "x", "", 0, *self.tags.announcements())
        self.tags.announced(request)
        return request

    def answer(self, request: Request) -> None:
        for ref in request.tensors:
            self.known[ref.tag] = ref.seq
        for tag in request.drops:
            self.known.pop(tag, None)


def test_what_was_told_is_not_told_again(sides: Sides, tags: Tags) -> None:
    told = Told(tags)
    for tag in ("a", "b"):
        tags.put(tag, sides.pool.publish(np.zeros(1)))
    tags.drop("b")
    request = told.ask()
    assert [ref.tag for ref in request.tensors] == ["a"]
    assert request.drops == ["b"]
    assert tags.announcements() == ([], [])
    tags.announce_all_again()
    assert [ref.tag for ref in told.ask().tensors] == ["a"]


@given(
    st.lists(st.tuples(st.sampled_from(["put", "drop", "ask", "answer", "die"]), st.sampled_from("ab")), max_size=20)
)
@settings(deadline=None, max_examples=150)
def test_the_worker_knows_every_tag_whatever_changes_while_it_answers(
    module_sides: Sides, steps: list[tuple[str, str]]
) -> None:
    tags = Tags(str(module_sides.directory), Segment.release)
    told = Told(tags)
    pending: Request | None = None
    for step, tag in steps:
        if step == "put":
            tags.put(tag, module_sides.pool.publish(np.zeros(1)))
        elif step == "drop" and tag in tags.by_tag:
            tags.drop(tag)
        elif step == "ask" and pending is None:
            pending = told.ask()
        elif step == "answer" and pending is not None:
            told.answer(pending)
            pending = None
        elif step == "die":
            pending = None
            told.known.clear()
            tags.announce_all_again()
    if pending is not None:
        told.answer(pending)
    told.answer(told.ask())
    assert told.known == {tag: segment.seq for tag, segment in tags.by_tag.items()}
    assert tags.announcements() == ([], [])
    for tag in list(tags.by_tag):
        tags.drop(tag)


LOADER = """
import sys
import numpy as np
import tr_mmap
found = 0
while found < 100:
    try:
        array = tr_mmap.load(sys.argv[1])
    except tr_mmap.TSRFormatError as error:  # a tag that changes without pause may be missed again and again
        assert error.fault in ("unpublished", "torn", "header_checksum"), error.fault
        continue
    assert array.shape == (5000,) and array.min() == array.max(), array
    found += 1
"""


def test_a_stranger_finds_a_tag_whole_while_it_is_sent_again_and_again(sides: Sides, tags: Tags) -> None:
    tags.put("a", sides.pool.publish(np.zeros(5000)))
    with python(LOADER, sides.directory / "a.tsr") as loader:
        number = 0
        while loader.poll() is None:
            number += 1
            tags.put("a", sides.pool.publish(np.full(5000, number)))
            assert "a.tsr" in os.listdir(sides.directory)
    assert loader.returncode == 0
