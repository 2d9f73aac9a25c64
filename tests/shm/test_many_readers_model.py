"""Segments with many readers against a model: they join, look, leave, fork and die in any order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from reader_processes import ReaderProcess, ReaderProcesses

from tr_mmap.native import drain
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.segment import Segment
from tr_mmap.wire.header import LEASE_FREE, LINE_WORDS, LINES_WORD, MAX_READERS


@pytest.fixture(scope="module")
def processes() -> Iterator[ReaderProcesses]:
    made = ReaderProcesses()
    yield made
    made.close()


class ManyReaders(RuleBasedStateMachine):
    """The model: every view shows what it showed at first, in every process that has it."""

    processes: ReaderProcesses

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm", prefix=f"tr_test_{os.getpid()}_"))
        self.pool = SegmentPool(str(self.directory), "segment", has_lines=True)
        self.held: dict[str, tuple[Segment, int]] = {}
        self.old: list[tuple[str, int, int]] = []
        self.readers: list[ReaderProcess] = []  # children of readers too
        self.children: list[ReaderProcess] = []
        self.counter = 0

    @rule(tag=st.sampled_from("abc"), count=st.sampled_from([1, 1000, 1025, 100_000]))
    def publish(self, tag: str, count: int) -> None:
        self.counter += 1
        segment = self.pool.publish(np.full(count, self.counter, np.int32))
        self.drop(tag)
        self.held[tag] = segment, self.counter

    @rule(tag=st.sampled_from("abc"))
    def drop(self, tag: str) -> None:
        segment, number = self.held.pop(tag, (None, 0))
        if segment is not None:
            self.old.append((segment.name, segment.seq, number))
            segment.release()

    @precondition(lambda self: len(self.readers) < 5)
    @rule()
    def join(self) -> None:
        self.readers.append(self.processes.start(self.directory))

    @precondition(lambda self: self.readers and self.held)
    @rule(data=st.data(), key=st.integers(0, 3))
    def look(self, data: st.DataObject, key: int) -> None:
        segment, number = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        reader = data.draw(st.sampled_from(self.readers))
        assert reader.do("look", key, segment.name, segment.seq, number)

    @precondition(lambda self: self.readers and self.old)
    @rule(data=st.data())
    def look_for_what_was_dropped(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.readers)).do("look", 9, *data.draw(st.sampled_from(self.old)))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), key=st.integers(0, 3))
    def drop_view(self, data: st.DataObject, key: int) -> None:
        data.draw(st.sampled_from(self.readers)).do("drop", key)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def close_and_keep_views(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.readers)).do("close")

    @precondition(lambda self: self.readers and len(self.children) < 4)
    @rule(data=st.data(), closes=st.booleans())
    def fork(self, data: st.DataObject, closes: bool) -> None:
        self.children.append(data.draw(st.sampled_from(self.readers)).fork(closes=closes))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), is_noticed=st.booleans())
    def die(self, data: st.DataObject, is_noticed: bool) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        self.readers.remove(reader)
        reader.kill()
        if is_noticed:
            self.pool.reader_died()

    @precondition(lambda self: self.children)
    @rule(data=st.data())
    def child_dies(self, data: st.DataObject) -> None:
        child = data.draw(st.sampled_from(self.children))
        self.children.remove(child)
        child.kill()

    @invariant()
    def every_view_shows_what_it_should(self) -> None:
        for each in (*self.readers, *self.children):
            each.send("look at what you have")
        for each in (*self.readers, *self.children):
            each.answer()

    @invariant()
    def the_books_are_right(self) -> None:
        names = {segment.name for segment in self.pool._segments.values()}
        assert names == set(os.listdir(self.directory)) - {"segment.readers"}
        assert self.pool.stats().segments == len(names)

    def teardown(self) -> None:
        try:
            for each in (*self.readers, *self.children):
                each.kill()
            self.pool.reader_died()
            for tag in list(self.held):
                self.drop(tag)
            drain()
            self.pool.collect()
            if self.counter:
                page = (self.directory / "segment.readers").read_bytes()
                assert not any(page[:MAX_READERS])
            for segment in self.pool._segments.values():
                assert all(segment.words[LINES_WORD + line * LINE_WORDS] == LEASE_FREE for line in range(MAX_READERS))
            self.pool.close()
            assert os.listdir(self.directory) == []
        finally:
            shutil.rmtree(self.directory)


@pytest.mark.timeout(300)
def test_many_readers_against_a_model(processes: ReaderProcesses) -> None:
    class Machine(ManyReaders):
        pass

    Machine.processes = processes
    run_state_machine_as_test(Machine, settings=settings(deadline=None, max_examples=60, stateful_step_count=40))
