"""Rings of messages: one suite for both implementations, and each as the other's peer."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from interrupts import Stop, handled_at, interrupted_at
from rings import EMPTY_RING, ring_memory, slot_at

from tr_mmap.native import reference as plain
from tr_mmap.wire.messages import (
    EMPTY_SLOT,
    MAX_MESSAGE_SEQ,
    MESSAGE_NUMBER_OFFSET,
    MESSAGE_REST_OFFSET,
    RING_DONE_OFFSET,
    RING_SLOT_NBYTES,
    RING_SLOTS,
    RING_WORDS_NBYTES,
)

IMPLEMENTATIONS = [plain]
if importlib.util.find_spec("tr_mmap.native._native") is not None:
    from tr_mmap.native import _native

    IMPLEMENTATIONS.append(_native)

MOST_REST_NBYTES = RING_SLOT_NBYTES - MESSAGE_REST_OFFSET - 1  # a newline follows
BLANK = b"       0"


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda module: module.__name__.rpartition(".")[2])
def native(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture(params=list(itertools.product(IMPLEMENTATIONS, repeat=2)), ids=lambda pair: "-".join(
    module.__name__.rpartition(".")[2] for module in pair))  # fmt: skip
def ends(request: pytest.FixtureRequest) -> tuple[memoryview, Any, Any]:
    """The memory of a ring, and both sides of it: who stores, and who takes."""
    writer, reader = request.param
    buffer = ring_memory()
    return buffer, writer.Ring(buffer), reader.Ring(buffer)


def line_of(seq: int, rest: bytes = b"}") -> bytes:
    """What the reader takes."""
    return b'{"seq":%9d' % seq + rest


def text_of(seq: int, rest: bytes = b"}") -> bytes:
    """What the encoder makes of it."""
    return b'{"seq":%d' % seq + rest


def take(ring: Any) -> bytes | None:
    """As a channel does it."""
    position = ring.taken
    line: bytes | None
    try:
        line = ring.peek()
    except ValueError:
        ring.advance(position, True)
        raise
    return line if line is not None and ring.advance(position, True) else None


def drained(ring: Any) -> list[bytes]:
    return list(iter(lambda: take(ring), None))


# -- order and numbers -------------------------------------------------------------------------------------------------


def test_as_many_messages_as_there_are_slots_wait_and_arrive_in_order(ends: tuple[memoryview, Any, Any]) -> None:
    _, ours, theirs = ends
    seq = itertools.count(1)
    for _ in range(3):
        sent = [next(seq) for _ in range(RING_SLOTS)]
        assert not theirs.has_message()
        assert all(ours.store(each, text_of(each)) for each in sent)
        assert theirs.has_message()
        assert theirs.newest() == line_of(sent[-1])
        assert theirs.newest_seq() == sent[-1]
        assert drained(theirs) == [line_of(each) for each in sent]
    assert ours.stored == theirs.taken == 3 * RING_SLOTS
    assert ours.stored_seq == 3 * RING_SLOTS


def test_numbers_go_on_with_one_after_the_greatest(ends: tuple[memoryview, Any, Any]) -> None:
    _, ours, theirs = ends
    ours.is_ordered = True
    first = MAX_MESSAGE_SEQ - RING_SLOTS
    numbers = [(first + index) % MAX_MESSAGE_SEQ + 1 for index in range(3 * RING_SLOTS)]
    assert {1, MAX_MESSAGE_SEQ} < set(numbers)
    for seq in numbers:
        assert ours.store(seq, text_of(seq))
        assert take(theirs) == line_of(seq)
    assert not ours.store(MAX_MESSAGE_SEQ, b"{}")  # which was earlier
    assert take(theirs) is None


def test_what_is_stored_out_of_order_is_refused_only_where_order_is_kept(native: ModuleType) -> None:
    buffer = ring_memory()
    ring = native.Ring(buffer)
    assert [ring.store(seq, b"{}") for seq in (5, 4, 5)] == [True, True, True]
    ring.is_ordered = True
    before = bytes(buffer)
    assert not ring.store(4, b"{}")
    assert (bytes(buffer), ring.stored, ring.stored_seq) == (before, 3, 5)
    assert [ring.store(seq, b"{}") for seq in (5, 6)] == [True, True]


# -- the bytes of a slot -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1, 2, 1000, MOST_REST_NBYTES - 1, MOST_REST_NBYTES])
def test_a_message_fills_its_slot_at_most_and_touches_no_other(native: ModuleType, nbytes: int) -> None:
    buffer = ring_memory()
    ring = native.Ring(buffer)
    rest = b",".ljust(nbytes - 1, b"x") + b"}" if nbytes > 1 else b"}"
    assert ring.store(1, text_of(1, rest))
    start, end = slot_at(0), slot_at(1)
    assert bytes(buffer[start:end]).partition(b"\n")[0] == line_of(1, rest)
    assert bytes(buffer[:start]) + bytes(buffer[end:]) == EMPTY_RING[:start] + EMPTY_RING[end:]
    assert native.Ring(buffer).peek() == line_of(1, rest)


@pytest.mark.parametrize(
    ("seq", "text"),
    [
        (0, b"{}"),
        (-1, b"{}"),
        (MAX_MESSAGE_SEQ + 1, b"{}"),
        (1, b",".ljust(MOST_REST_NBYTES + 1, b"x")),
        (1, b"," * 65536),
    ],
)
def test_a_message_that_no_slot_can_hold_changes_nothing(native: ModuleType, seq: int, text: bytes) -> None:
    buffer = ring_memory()
    ring = native.Ring(buffer)
    with pytest.raises(ValueError, match="longer than a slot"):
        ring.store(seq, text)
    assert (bytes(buffer), ring.stored, ring.stored_seq) == (EMPTY_RING, 0, 0)


def test_a_shorter_message_after_a_longer_one_in_the_same_slot_is_whole(ends: tuple[memoryview, Any, Any]) -> None:
    _, ours, theirs = ends
    for seq in range(1, 2 * RING_SLOTS + 1):
        rest = b',"x":"' + b"x" * (3000 if seq <= RING_SLOTS else 3) + b'"}'
        ours.store(seq, text_of(seq, rest))
        assert take(theirs) == theirs.newest() == line_of(seq, rest)


def test_a_buffer_that_is_no_whole_ring_is_refused(native: ModuleType) -> None:
    with pytest.raises(ValueError, match="buffer"):
        native.Ring(ring_memory()[:-8])


# -- what is no message ------------------------------------------------------------------------------------------------


def poke(buffer: memoryview, position: int, offset: int, data: bytes) -> None:
    start = slot_at(position) + offset
    buffer[start : start + len(data)] = data


def test_a_message_that_is_being_stored_holds_up_those_behind_it(ends: tuple[memoryview, Any, Any]) -> None:
    buffer, ours, theirs = ends
    for seq in (1, 2, 3):
        ours.store(seq, text_of(seq))
    poke(buffer, 1, MESSAGE_NUMBER_OFFSET, BLANK)
    assert drained(theirs) == [line_of(1)]
    assert not theirs.has_message()
    assert theirs.newest() == line_of(1)
    poke(buffer, 1, MESSAGE_NUMBER_OFFSET, b"%8d" % 2)
    assert drained(theirs) == [line_of(2), line_of(3)]


def test_a_writer_that_stops_at_any_byte_leaves_no_message(ends: tuple[memoryview, Any, Any]) -> None:
    buffer, ours, theirs = ends
    rest = b',"command":"x"}'
    for length in range(len(rest) + 2):
        poke(buffer, 0, MESSAGE_NUMBER_OFFSET, BLANK + (rest + b"\n")[:length])
        assert not theirs.has_message()
        assert take(theirs) is None
    assert ours.store(7, text_of(7, rest))
    assert take(theirs) == line_of(7, rest)


def test_a_message_without_end_is_an_error_once_and_the_next_one_comes(ends: tuple[memoryview, Any, Any]) -> None:
    buffer, ours, theirs = ends
    for seq in (1, 2):
        ours.store(seq, text_of(seq))
    poke(buffer, 0, MESSAGE_REST_OFFSET, b"x" * (RING_SLOT_NBYTES - MESSAGE_REST_OFFSET))
    assert len(theirs.newest()) < RING_SLOT_NBYTES  # the newest is the second
    with pytest.raises(ValueError, match="no end"):
        theirs.peek()
    assert theirs.advance(0, True)
    assert drained(theirs) == [line_of(2)]


def test_a_message_without_end_can_be_refused(ends: tuple[memoryview, Any, Any]) -> None:
    buffer, ours, theirs = ends
    poke(buffer, 0, MESSAGE_NUMBER_OFFSET, b"%8d" % 1 + b"x" * (RING_SLOT_NBYTES - MESSAGE_REST_OFFSET))
    for _ in range(2):
        with pytest.raises(ValueError, match="no end"):
            theirs.peek()
    theirs.reject()
    assert theirs.peek() is None
    ours.store(1, text_of(1))
    assert drained(theirs) == [line_of(1)]


@pytest.mark.parametrize("digits", [b"        ", b"0       ", b"   -1   ", b"1e5     ", b"\0" * 8, b"\xff" * 8])
def test_a_number_that_is_none_is_no_newest_number(native: ModuleType, digits: bytes) -> None:
    buffer = ring_memory()
    poke(buffer, 0, MESSAGE_NUMBER_OFFSET, digits + b"}\n")
    assert native.Ring(buffer).newest_seq() == 0


def test_a_line_that_was_refused_gives_way_to_the_peers_own(ends: tuple[memoryview, Any, Any]) -> None:
    buffer, ours, theirs = ends
    poke(buffer, 0, MESSAGE_NUMBER_OFFSET, b"%8d" % 3 + b',"a":1}\n')  # a third process
    assert theirs.peek() == line_of(3, b',"a":1}')
    theirs.reject()
    assert theirs.peek() is None
    ours.store(3, text_of(3, b',"a":2}'))  # of the same number
    assert drained(theirs) == [line_of(3, b',"a":2}')]


def test_a_line_is_given_until_it_is_taken_and_is_taken_once(ends: tuple[memoryview, Any, Any]) -> None:
    _, ours, theirs = ends
    for seq in (1, 2, 3):
        ours.store(seq, text_of(seq))
    assert theirs.peek() == theirs.peek() == line_of(1)
    assert theirs.advance(0, False)
    assert ours.done_by_peer == 0  # the reader may still use it
    assert not theirs.advance(0, True)  # it was taken already
    assert ours.done_by_peer == 1
    assert theirs.newest_seq() == 3
    assert drained(theirs) == [line_of(2), line_of(3)]
    assert ours.done_by_peer == theirs.taken == 3


@given(st.binary(max_size=200), st.integers(0, RING_SLOT_NBYTES - 200))
def test_whatever_bytes_are_in_a_slot_nothing_beyond_it_is_taken(data: bytes, offset: int) -> None:
    outcomes = []
    for implementation in IMPLEMENTATIONS:
        buffer = ring_memory()
        poke(buffer, 0, offset, data)
        poke(buffer, 1, 0, line_of(2) + b"\n")
        ring = implementation.Ring(buffer)
        try:
            outcomes.append((take(ring), ring.newest(), ring.newest_seq()))
        except ValueError:
            outcomes.append("no end")
        assert ring.taken <= 1
    assert all(each == outcomes[0] for each in outcomes)


# -- forks -------------------------------------------------------------------------------------------------------------


def outcome_of_child(action: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # it must not outlive the test
        code = 2
        try:
            code = 0 if action() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_stores_nothing_in_its_parents_ring(native: ModuleType) -> None:
    buffer = ring_memory()
    ring = native.Ring(buffer)
    ring.store(1, text_of(1))
    before = bytes(buffer)
    assert outcome_of_child(lambda: ring.store(2, text_of(2)) is False)
    assert bytes(buffer) == before
    assert ring.store(2, text_of(2)) is True


def test_a_ring_that_a_forked_child_makes_is_its_own(native: ModuleType) -> None:
    buffer = ring_memory()
    assert outcome_of_child(lambda: native.Ring(buffer).store(2, text_of(2)) is True)
    assert native.Ring(buffer).peek() == line_of(2)


# -- signal handlers in the middle of plain Python ---------------------------------------------------------------------


def steps_of(operation: Callable[[int], bool]) -> int:
    """Run an operation with something at its first step, then at its second, and so on; how many it has."""
    return next(step for step in itertools.count(1) if not operation(step)) - 1


class Handled:
    """A ring of plain Python, and what was stored in it."""

    def __init__(self) -> None:
        buffer = ring_memory()
        self.ours, self.theirs = plain.Ring(buffer), plain.Ring(buffer)
        self.sent: list[int] = []
        self.taken: list[bytes | None] = []

    def store(self, seq: int) -> None:
        if self.ours.store(seq, text_of(seq, b',"x":"' + b"%d" % seq * seq + b'"}')):
            self.sent.append(seq)

    def take(self) -> None:
        self.taken.append(take(self.theirs))

    def check(self) -> None:
        """All that was stored was taken whole, once."""
        self.taken += drained(self.theirs)
        wanted = [line_of(seq, b',"x":"' + b"%d" % seq * seq + b'"}') for seq in self.sent]
        assert sorted(each for each in self.taken if each is not None) == sorted(wanted)


@pytest.mark.parametrize("is_ordered", [False, True])
def test_a_handler_that_stores_in_the_middle_of_a_store_stores_a_whole_message_of_its_own(is_ordered: bool) -> None:
    def operation(step: int) -> bool:
        handled = Handled()
        handled.ours.is_ordered = is_ordered
        handled.store(1)
        had = handled_at(step, lambda: handled.store(2), lambda: [handled.store(seq) for seq in (3, 4)])
        assert {3, 4} <= set(handled.sent) or not had
        assert is_ordered or not had or set(handled.sent) == {1, 2, 3, 4}
        assert not is_ordered or handled.sent == sorted(handled.sent)
        assert handled.ours.stored == len(handled.sent)
        handled.check()
        return had

    assert steps_of(operation) > 5


def test_a_store_that_a_handler_ends_leaves_a_whole_message_or_none() -> None:
    def operation(step: int) -> bool:
        handled = Handled()
        had = interrupted_at(step, lambda: handled.store(2))
        if handled.ours.stored and not handled.sent:
            handled.sent.append(2)  # the handler raised when all was done
        handled.store(3)
        assert handled.ours.stored_seq == 3
        handled.check()
        return had

    assert steps_of(operation) > 5


def test_a_child_that_a_handler_forks_in_the_middle_of_a_store_stores_nothing() -> None:
    def operation(step: int) -> bool:
        handled = Handled()
        children: list[int] = []
        stored = 0

        def fork() -> None:
            nonlocal stored
            stored = handled.ours.stored  # 1 if all is done already
            children.append(os.fork())
            if children[0]:
                assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0, step

        try:
            had = handled_at(step, lambda: handled.store(2), fork)
        finally:
            if children == [0]:  # the child, which has gone on in the parent's store
                os._exit(0 if (handled.ours.stored, len(handled.sent)) == (stored, stored) else 1)
        assert handled.sent == [2]
        handled.check()
        return had

    assert steps_of(operation) > 5


@pytest.mark.parametrize("action", ["take", "take two", "store", "raise"])
def test_a_handler_in_the_middle_of_a_take_loses_and_doubles_no_message(action: str) -> None:
    def operation(step: int) -> bool:
        handled = Handled()
        for seq in (1, 2, 3):
            handled.store(seq)
        handled.take()

        def handle() -> None:
            if action == "store":
                handled.store(4)
            elif action == "raise":
                raise Stop
            else:
                for _ in range(2 if action == "take two" else 1):
                    handled.take()

        had, taken = False, handled.theirs.taken
        try:
            had = handled_at(step, handled.take, handle)
        except Stop:
            had = True
            if handled.theirs.taken > taken and len(handled.taken) == 1:
                handled.taken.append(line_of(2, b',"x":"22"}'))  # the handler raised when all was done
        handled.check()
        return had

    assert steps_of(operation) > 3


# -- a model -----------------------------------------------------------------------------------------------------------


class RingMachine(RuleBasedStateMachine):
    """Both sides of a ring in any order. The model is a list of the lines that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = ring_memory()
        self.seq = self.forgeries = itertools.count(1)
        self.waiting: list[bytes] = []
        self.shown = EMPTY_SLOT.encode().rstrip(b"\n")  # the newest line when none waits
        self.is_refused = False  # the line at the front is not the peer's
        self.is_torn = False  # the next slot has the beginning of a message
        self.stored = self.taken = 0

    @initialize(
        writer=st.sampled_from(IMPLEMENTATIONS),
        reader=st.sampled_from(IMPLEMENTATIONS),
        first=st.integers(1, MAX_MESSAGE_SEQ) | st.just(MAX_MESSAGE_SEQ - 5),
    )
    def begin(self, writer: ModuleType, reader: ModuleType, first: int) -> None:
        self.ours, self.theirs = writer.Ring(self.buffer), reader.Ring(self.buffer)
        self.seq = (number % MAX_MESSAGE_SEQ + 1 for number in itertools.count(first))

    def has_room(self) -> bool:
        return len(self.waiting) < RING_SLOTS or self.is_refused

    @precondition(has_room)
    @rule(text=st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=1000))
    def store(self, text: str) -> None:
        seq, rest = next(self.seq), b',"t":"%s"}' % text.encode()[:4000]
        assert self.ours.store(seq, text_of(seq, rest))
        if self.is_refused:
            self.waiting.clear()
        self.is_refused = self.is_torn = False
        self.waiting.append(line_of(seq, rest))
        self.stored += 1

    @precondition(lambda self: not self.waiting and not self.is_torn)
    @rule(count=st.integers(2, RING_SLOTS))
    def store_many(self, count: int) -> None:
        for _ in range(count):
            self.store("x")

    @precondition(lambda self: not self.waiting and self.stored)
    @rule(length=st.integers(0, 20))
    def tear(self, length: int) -> None:
        """The writer is in the middle of a store."""
        poke(self.buffer, self.stored, MESSAGE_NUMBER_OFFSET, BLANK + b',"t":"0123456789"}\n'[:length])
        self.is_torn = True

    @precondition(lambda self: not self.waiting and self.stored == self.taken)
    @rule(number=st.integers(1, 99_999_999))
    def forge_and_reject(self, number: int) -> None:
        """A third process writes where the next message is looked for, and the channel finds it unsigned."""
        rest = b',"forged":%d}' % next(self.forgeries)
        poke(self.buffer, self.taken, MESSAGE_NUMBER_OFFSET, b"%8d" % number + rest + b"\n")
        line = self.theirs.peek()
        if line is None:
            return  # it has the number of the message that was there before
        assert line == line_of(number, rest)
        self.theirs.reject()
        self.waiting, self.is_refused, self.is_torn = [line], True, False
        self.shown = line

    @rule()
    def take(self) -> None:
        line = take(self.theirs)
        if not self.waiting or self.is_refused:
            assert line is None
            return
        assert line == self.waiting.pop(0)
        self.shown = line
        self.taken += 1

    @rule()
    def take_all(self) -> None:
        while self.waiting and not self.is_refused:
            self.take()
        self.take()

    @rule()
    def look(self) -> None:
        line = self.theirs.peek()
        assert line == (self.waiting[0] if self.waiting and not self.is_refused else None)

    @invariant()
    def is_as_the_model_says(self) -> None:
        if not hasattr(self, "ours"):
            return
        assert (self.ours.stored, self.theirs.taken) == (self.stored, self.taken)
        if not self.is_refused:
            assert self.theirs.has_message() == bool(self.waiting)
        newest = self.waiting[-1] if self.waiting else self.shown
        assert self.theirs.newest() == newest
        assert self.theirs.newest_seq() == int(newest[8:16])
        words = bytearray(self.buffer[:RING_WORDS_NBYTES])
        words[RING_DONE_OFFSET : RING_DONE_OFFSET + 8] = bytes(8)
        assert words == bytes(RING_WORDS_NBYTES)


TestRingMachine = RingMachine.TestCase


def test_what_is_cancelled_and_what_is_taken_back_are_told_apart(ends: tuple[memoryview, Any, Any]) -> None:
    _, out, own = ends
    for seq in range(1, 4):
        out.store(seq, b"}")
    assert (out.cancel(0), out.withdraw(1)) == (True, True)
    for position in range(3):
        assert own.peek() is not None
        own.advance(position, True)
        told = own.is_cancelled(position), own.is_withdrawn(position)
        assert told == (position == 0, position == 1)
    assert [out.withdraw(position) for position in range(3)] == [False] * 3  # all have begun
    assert (own.is_cancelled(0), own.is_withdrawn(0)) == (True, False)  # what was cancelled stays so
    assert (own.is_cancelled(2), own.is_withdrawn(2)) == (False, True)
    assert [out.cancel(position) for position in (1, 2)] == [False, False]
    assert [(own.is_cancelled(position), own.is_withdrawn(position)) for position in (1, 2)] == [(True, False)] * 2


def test_a_later_message_in_the_same_slot_keeps_what_was_said_of_it(ends: tuple[memoryview, Any, Any]) -> None:
    _, out, own = ends
    for seq in range(1, RING_SLOTS + 1):
        out.store(seq, b"}")
        own.peek()
        own.advance(seq - 1, True)
    out.store(RING_SLOTS + 1, b"}")
    assert out.withdraw(RING_SLOTS)
    assert not out.cancel(0)
    assert not out.withdraw(0)
    assert own.is_withdrawn(RING_SLOTS)
    assert not own.is_withdrawn(0)
