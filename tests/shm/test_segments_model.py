"""Segments against a model: tags, loans and views of both frameworks in any order."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from segment_sides import PAGE, Sides, ref_of
from strategies import bits

from tr_mmap.errors import OutOfSpace, StaleTensor
from tr_mmap.protocol.messages import TensorRef
from tr_mmap.shm.segment import Segment
from tr_mmap.wire.header import LEASE_FREE, LEASE_WORD


class SegmentsMachine(RuleBasedStateMachine):
    """Tags, loans and views of both frameworks, in any order. The model: each shows what it showed at first."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm", prefix=f"tr_test_{os.getpid()}_"))
        self.held: dict[str, tuple[Segment, bytes]] = {}
        self.old: list[tuple[TensorRef, bytes]] = []
        self.views: list[tuple[Any, bytes]] = []
        self.loans: list[tuple[Any, bytes, bool]] = []  # and whether it has been published
        self.counter = 0
        self.budget: int | None = None
        self.sides = Sides(self.directory)

    @initialize(budget=st.sampled_from([None, 12 * PAGE]))
    def begin(self, budget: int | None) -> None:
        self.budget = budget
        self.sides = Sides(self.directory, budget_nbytes=budget)

    def content(self, count: int) -> np.ndarray[Any, Any]:
        self.counter += 1
        return np.full(count, self.counter, np.int32)

    def hold(self, tag: str, tensor: Any) -> None:
        wanted = bits(tensor)
        before = self.sides.pool.stats()
        try:
            segment = self.sides.pool.publish(tensor)
        except OutOfSpace as error:
            # Not the error itself: with its traceback it would be a cycle that keeps the tensor.
            sizes = (error.needed_nbytes, error.free_nbytes)
        else:
            sizes = None
        if sizes is not None:
            assert self.budget is not None
            assert sizes[0] > sizes[1]
            assert self.sides.pool.stats().published == before.published
            return
        previous = self.held.pop(tag, None)
        if previous is not None:
            self.old.append((ref_of(previous[0]), previous[1]))
            previous[0].release()
        self.held[tag] = (segment, wanted)

    @rule(tag=st.sampled_from("abc"), count=st.sampled_from([0, 1, 1000, 1024, 1025, 3000]))
    def send(self, tag: str, count: int) -> None:
        self.hold(tag, self.content(count))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop_tag(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(sorted(self.held)))
        segment, content = self.held.pop(tag)
        self.old.append((ref_of(segment), content))
        segment.release()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), framework=st.sampled_from(["numpy", "torch"]))
    def look(self, data: st.DataObject, framework: str) -> None:
        segment, content = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        view = self.sides.look(segment, framework)
        assert bits(view) == content
        self.views.append((view, content))

    @precondition(lambda self: self.old)
    @rule(data=st.data(), framework=st.sampled_from(["numpy", "torch"]))
    def look_for_what_was_dropped(self, data: st.DataObject, framework: str) -> None:
        ref, content = data.draw(st.sampled_from(self.old))
        try:
            view = self.sides.receiver.receive(ref.segment, ref.seq, framework, ref.tag)
        except StaleTensor:
            return
        assert bits(view) == content  # not filled again yet
        self.views.append((view, content))

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def drop_view(self, data: st.DataObject) -> None:
        del self.views[data.draw(st.integers(0, len(self.views) - 1))]

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def cut_view(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.views) - 1))
        part = self.views[index][0][1:]
        self.views[index] = (part, bits(part))

    @precondition(lambda self: any(isinstance(view, torch.Tensor) for view, _ in self.views))
    @rule(data=st.data())
    def write_into_view(self, data: st.DataObject) -> None:
        mine = [index for index, (view, _) in enumerate(self.views) if isinstance(view, torch.Tensor)]
        index = data.draw(st.sampled_from(mine))
        view = self.views[index][0]
        view += 1_000_000
        self.views[index] = (view, bits(view))

    @rule(count=st.sampled_from([1, 1000, 2000]), framework=st.sampled_from(["numpy", "torch"]))
    def borrow(self, count: int, framework: str) -> None:
        try:
            loan = self.sides.pool.empty(count, "int32", framework)
        except OutOfSpace:
            assert self.budget is not None
            return
        content = self.content(count)
        loan[:] = torch.from_numpy(content) if framework == "torch" else content
        self.loans.append((loan, bits(content), False))

    @precondition(lambda self: self.loans)
    @rule(data=st.data(), tag=st.sampled_from("abc"), cut=st.sampled_from([None, slice(64, None), slice(1, None)]))
    def send_loan(self, data: st.DataObject, tag: str, cut: slice | None) -> None:
        index = data.draw(st.integers(0, len(self.loans) - 1))
        loan, content, is_sent = self.loans[index]
        copied = self.sides.pool.stats().copied_nbytes
        self.hold(tag, loan if cut is None else loan[cut])
        is_sent |= self.sides.pool.stats().copied_nbytes == copied
        self.loans[index] = (loan, content, is_sent)

    @precondition(lambda self: self.loans)
    @rule(data=st.data())
    def write_into_loan(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.loans) - 1))
        loan, _, is_sent = self.loans[index]
        try:
            loan += 1_000_000
        except ValueError:
            assert is_sent
            assert isinstance(loan, np.ndarray)
        self.loans[index] = (loan, bits(loan), is_sent)

    @precondition(lambda self: self.loans)
    @rule(data=st.data())
    def drop_loan(self, data: st.DataObject) -> None:
        del self.loans[data.draw(st.integers(0, len(self.loans) - 1))]

    @rule()
    def settle(self) -> None:
        self.sides.settle()

    @invariant()
    def everything_shows_what_it_should(self) -> None:
        for shown, content in self.views:
            assert bits(shown) == content
        for shown, content, _ in self.loans:
            assert bits(shown) == content

    @invariant()
    def the_books_are_right(self) -> None:
        stats = self.sides.pool.stats()
        names = {segment.name for segment in self.sides.pool._segments.values()}
        assert names == set(os.listdir(self.directory))
        assert stats.segments == len(names)
        assert stats.nbytes == sum(segment.capacity for segment in self.sides.pool._segments.values())
        assert self.budget is None or stats.nbytes <= self.budget

    def teardown(self) -> None:
        try:
            for segment, content in self.held.values():
                assert bits(self.sides.look(segment)) == content
                segment.release()
            self.views.clear()
            self.loans.clear()
            self.sides.settle()
            stats = self.sides.pool.stats()
            assert stats.free_nbytes == stats.nbytes
            for segment in self.sides.pool._segments.values():
                assert segment.words[LEASE_WORD] == LEASE_FREE
            self.sides.close()
            assert os.listdir(self.directory) == []
        finally:
            shutil.rmtree(self.directory)


TestSegmentsAgainstAModel = SegmentsMachine.TestCase
TestSegmentsAgainstAModel.settings = settings(deadline=None, max_examples=120, stateful_step_count=40)
