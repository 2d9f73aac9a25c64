"""The lease protocol in every interleaving of an owner and three readers, store buffers included; and each step broken.

The steps are those of the real code: ``native/reference/lease_words.py`` and ``shm/readers.py`` run here over a memory
that switches sides at each access. ``native/lease_words.h`` does the same in the same order.

There is one segment, whose tensor has the number 1 at first. The payload is one word, which holds the number of the
tensor that it belongs to. So whoever has a view of tensor 1 must read 1, however often and however late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from interleavings import Machine, Program

from tr_mmap.native.reference import lease_words
from tr_mmap.native.reference.lease_words import LeaseWords
from tr_mmap.shm import readers
from tr_mmap.shm.readers import LeaseLine, ReadersPage
from tr_mmap.wire.header import (
    GUEST_WORD,
    LAYOUT_WORD,
    LEASE_FREE,
    LEASE_HELD,
    LEASE_WORD,
    LINE_WORDS,
    LINES_WORD,
    SEQ_COPY_WORD,
    SEQ_WORD,
)
from tr_mmap.wire.segments import HEAD_NBYTES

PAYLOAD, GONE = "the payload", "its pages are gone"
BUFFER = bytearray(HEAD_NBYTES)
MEMBER, LOCK = "byte of line", "lock of line"
OUT, JOINED, LOOKING = "out", "joined", "looking"
LEAVES, STAYS, DIES, LEAVES_EARLY = "leaves", "stays", "dies", "leaves early"


class Memory:
    """Words or bytes in a machine's memory.

    Args:
        kind: the addresses are (kind, index); only the index where it is empty.
    """

    def __init__(self, machine: Machine, kind: str = "") -> None:
        self.machine = machine
        self.kind = kind

    def _address(self, index: int) -> Any:
        return (self.kind, index) if self.kind else index

    def __getitem__(self, index: int) -> Any:
        return self.machine.load(self._address(index))

    def __setitem__(self, index: int, value: Any) -> None:
        self.machine.store(self._address(index), value)


class Line(LeaseLine):
    """Leaves when it is told to: else it would at the end of each run, wherever that is."""

    def __del__(self) -> None:
        pass


# -- each step broken ------------------------------------------------------------------------------------------------


class ComparesFirst(LeaseWords):
    def acquire(self, seq: int) -> int:
        words = self._words
        if words[SEQ_WORD] != seq or words[SEQ_COPY_WORD] != seq:
            return 0
        words[self._lease_word] = LEASE_HELD
        lease_words._fence()
        return words[LAYOUT_WORD]


class LooksFirst(LeaseWords):
    """The owner reads the leases before it clears the number."""

    def claim(self) -> int:
        lease = self.lease()
        self._words[SEQ_WORD] = 0
        lease_words._fence()
        return lease


class AsksNoMember(LeaseWords):
    """The owner reads the lease of the session's own reader only."""

    def lease(self) -> int:
        return self._words[LEASE_WORD]


class AsksLinesOnly(LeaseWords):
    def lease(self) -> int:
        words, members = self._words, self._members
        assert members is not None
        return max(
            words[LINES_WORD + line * LINE_WORDS] if members[line] else 0 for line in range(lease_words.MAX_READERS)
        )


class JoinsDeadLine(Line):
    """Takes a line whose last reader has died before the owner has looked at it."""

    @classmethod
    def join(cls, directory: str, stem: str) -> LeaseLine | None:  # noqa: ARG003 - as in the real one
        page = readers.system.map_write(0, HEAD_NBYTES)
        for line in range(readers.MAX_READERS):
            if readers.system.try_lock_open_byte(0, line):
                page[line] = 1
                return cls(page, line)
        return None


class JoinsLate(Line):
    """Sets the byte when it has its lease already."""

    @classmethod
    def join(cls, directory: str, stem: str) -> LeaseLine | None:  # noqa: ARG003 - as in the real one
        page = readers.system.map_write(0, HEAD_NBYTES)
        for line in range(readers.MAX_READERS):
            if readers.system.try_lock_open_byte(0, line):
                return cls(page, line)
        return None


class ForgetsFirst(ReadersPage):
    """Lets others have the line of a dead reader before it has looked at what that one held."""

    def reap(self, taint: Callable[[int], None]) -> None:
        for line in range(readers.MAX_READERS):
            if self.members[line] and readers.system.try_lock_open_byte(0, line):
                self.members[line] = 0
                readers.system.unlock_open_byte(0, line)
                taint(line)


class AsksNoLock(ReadersPage):
    """Takes every reader for a dead one, and marks nothing."""

    def reap(self, taint: Callable[[int], None]) -> None:  # noqa: ARG002 - as in the real one
        for line in range(readers.MAX_READERS):
            if self.members[line]:
                self.members[line] = 0


# -- the model -------------------------------------------------------------------------------------------------------


class Model:
    """An owner and readers over one segment.

    Args:
        lines: how many there are.
        owner, reader, line, page: what they use.
        unfenced: the programs whose fences are left out.
        taints: whether the owner remembers what a dead reader held.
        reader_ends: how readers end that leave.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        lines: int = 3,
        owner: type[LeaseWords] = LeaseWords,
        reader: type[LeaseWords] = LeaseWords,
        line: type[Line] = Line,
        page: type[ReadersPage] = ReadersPage,
        unfenced: Iterable[int] = (),
        taints: bool = True,
        reader_ends: str = LEAVES,
    ) -> None:
        initial = {SEQ_WORD: 1, SEQ_COPY_WORD: 1, LAYOUT_WORD: 1, PAYLOAD: 1}
        of_owner = dict.fromkeys((SEQ_WORD, SEQ_COPY_WORD, PAYLOAD), 0)
        self.machine = Machine(initial, frozenset({LAYOUT_WORD, GUEST_WORD}), of_owner)
        self.owner_kind, self.reader_kind, self.line_kind, self.page_kind = owner, reader, line, page
        self.unfenced = set(unfenced)
        self.taints, self.reader_ends = taints, reader_ends
        patch.setattr(lease_words, "MAX_READERS", lines)
        patch.setattr(lease_words, "_fence", self.fence)
        patch.setattr(lease_words, "KEEPS_STORES_IN_ORDER", True)
        patch.setattr(readers, "MAX_READERS", lines)
        patch.setattr(readers, "set_member", lease_words.set_member)
        patch.setattr(
            readers,
            "system",
            SimpleNamespace(
                open_private_file=lambda *_, **__: 0,
                open_file=lambda *_, **__: 0,
                file_nbytes=lambda _: HEAD_NBYTES,
                map_write=lambda *_: Memory(self.machine, MEMBER),
                close=lambda _: None,
                try_lock_open_byte=lambda _, line: self.machine.exchange((LOCK, line), lambda _: 1) == 0,
                unlock_open_byte=lambda _, line: self.unlock(line),
            ),
        )
        patch.setattr(readers, "os", SimpleNamespace(path=readers.os.path, fstat=lambda _: SimpleNamespace(st_ino=1)))

    def fence(self) -> None:
        if self.machine.running not in self.unfenced:
            self.machine.fence()

    def unlock(self, line: int) -> None:
        """The kernel does, and the stores before it reach memory first."""
        self.machine.exchange((LOCK, line), lambda _: 0)

    def owner_segment(self) -> LeaseWords:
        made = self.owner_kind(BUFFER)
        made._words = Memory(self.machine)  # type: ignore[assignment] # of the machine
        made._members = Memory(self.machine, MEMBER)  # type: ignore[assignment]
        return made

    def reader_segment(self, line: int) -> LeaseWords:
        made = self.reader_kind(BUFFER, None, line)
        made._words = Memory(self.machine)  # type: ignore[assignment]
        return made

    def readers_page(self) -> ReadersPage:
        made = object.__new__(self.page_kind)
        made.members = Memory(self.machine, MEMBER)  # type: ignore[assignment]
        made._path, made._inode = "", 1
        return made

    def owner(self, tries: int = 2, *, retires: bool = False) -> Program:
        """Fills the segment again as soon as it may, or gives its pages back."""

        def run(machine: Machine, log: list[Any]) -> None:
            segment, page = self.owner_segment(), self.readers_page()
            tainted: list[int] = []

            def taint(line: int) -> None:
                if machine.load(LINES_WORD + line * LINE_WORDS) != LEASE_FREE and self.taints:
                    tainted.append(line)
                    machine.store(LINES_WORD + line * LINE_WORDS, LEASE_FREE)

            for number in range(2, 2 + tries):
                lease = segment.retire() if retires else segment.claim()
                machine.milestone("claimed", number, lease, tuple(tainted))
                if lease == LEASE_FREE and not tainted:
                    machine.store(PAYLOAD, GONE if retires else number)
                    if retires:
                        return
                    segment.stamp(number)
                    log.append(number)
                else:
                    page.reap(taint)
                    machine.milestone("reaped", number, tuple(tainted))

        return run

    def reader(self, seq: int = 1, *, starts: str = OUT, ends: str = LEAVES, line: int = 0) -> Program:
        """Looks at a tensor twice.

        Args:
            seq: of the tensor.
            starts: whether it has joined, or has a lease too.
            ends: whether it leaves, stays, or dies; then a child of it looks for the second time.
            line: its number, if it has joined.
        """
        if starts != OUT:
            self.machine.initial |= {(MEMBER, line): 1, (LOCK, line): 1}
        if starts == LOOKING:
            self.machine.initial[LINES_WORD + line * LINE_WORDS] = LEASE_HELD

        ends = self.reader_ends if ends == LEAVES else ends

        def run(machine: Machine, log: list[Any]) -> None:
            page = Memory(self.machine, MEMBER)
            mine = self.line_kind.join("", "") if starts == OUT else self.line_kind(page, line)  # type: ignore[arg-type]
            machine.milestone("joined", None if mine is None else mine.number)
            if mine is None:
                return
            segment = self.reader_segment(mine.number)
            is_there = starts == LOOKING or bool(segment.acquire(seq))
            machine.milestone("acquired", mine.number, is_there)
            if isinstance(mine, JoinsLate):
                page[mine.number] = 1
            if is_there and ends not in (DIES, LEAVES_EARLY):
                log.append((seq, machine.load(PAYLOAD)))
            if ends == DIES:
                self.unlock(mine.number)
            if ends == LEAVES_EARLY:
                mine.leave()
            if is_there:
                log.append((seq, machine.load(PAYLOAD)))
            if ends != DIES:
                segment._words[segment._lease_word] = LEASE_FREE  # as ReaderSegment does after its last view
            if ends in (LEAVES, LEAVES_EARLY):
                mine.leave()
                self.unlock(mine.number)

        return run

    def own_reader(self, seq: int = 1) -> Program:
        """The session's own reader, which has no line."""

        def run(machine: Machine, log: list[Any]) -> None:
            segment = self.reader_segment(0)
            segment._lease_word = LEASE_WORD
            if segment.acquire(seq):
                log.append((seq, machine.load(PAYLOAD)))
            segment._words[LEASE_WORD] = LEASE_FREE

        return run

    def explore(self, programs: list[Program]) -> None:
        def check(logs: list[list[Any]]) -> None:
            for log in logs[1:]:
                for wanted, seen in log:
                    assert seen == wanted

        self.machine.explore(programs, check)
        assert self.machine.states > 100


# -- the scenarios: an owner, and three readers ----------------------------------------------------------------------


def three_look(model: Model) -> list[Program]:
    return [
        model.owner(1),
        model.reader(starts=JOINED, ends=STAYS),
        model.reader(starts=JOINED, line=1, ends=STAYS),
        model.reader(starts=LOOKING, line=2, ends=STAYS),
    ]


def one_joins_two_leave(model: Model) -> list[Program]:
    return [
        model.owner(1),
        model.reader(ends=STAYS),
        model.reader(2, starts=JOINED, line=2),
        model.reader(starts=LOOKING, line=1),
    ]


def one_dies_one_joins(model: Model) -> list[Program]:
    return [
        model.owner(2),
        model.reader(starts=LOOKING, ends=DIES),
        model.reader(),
        model.reader(2, starts=JOINED, line=1, ends=STAYS),
    ]


def retires_while_one_dies_and_one_joins(model: Model) -> list[Program]:
    return [
        model.owner(1, retires=True),
        model.reader(starts=LOOKING, ends=DIES),
        model.reader(),
        model.reader(starts=JOINED, line=1, ends=STAYS),
    ]


def own_reader_and_two(model: Model) -> list[Program]:
    return [
        model.owner(1),
        model.own_reader(),
        model.reader(starts=JOINED, ends=STAYS),
        model.reader(starts=LOOKING, line=1),
    ]


def three_whole_lives(model: Model) -> list[Program]:
    return [model.owner(1), model.reader(), model.reader(), model.reader()]


def a_whole_life_and_death(model: Model) -> list[Program]:
    return [
        model.owner(2),
        model.reader(ends=DIES),
        model.reader(),
        model.reader(2, starts=JOINED, line=1),
    ]


LINES = {three_look: 3, one_joins_two_leave: 3, one_dies_one_joins: 2, retires_while_one_dies_and_one_joins: 2}


@pytest.mark.parametrize("scenario", [*LINES, own_reader_and_two, three_whole_lives, a_whole_life_and_death])
def test_no_view_ever_shows_what_was_filled_or_freed_after_it(
    monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Model], list[Program]]
) -> None:
    model = Model(monkeypatch, LINES.get(scenario, 2))
    model.explore(scenario(model))


@pytest.mark.parametrize(
    ("scenario", "broken"),
    [
        (three_look, {"reader": ComparesFirst}),
        (three_look, {"owner": LooksFirst}),
        (three_look, {"owner": AsksNoMember}),
        (three_look, {"unfenced": (0,)}),
        (three_look, {"unfenced": (1,)}),
        (one_joins_two_leave, {"unfenced": (1, 2, 3)}),
        (one_joins_two_leave, {"line": JoinsLate}),
        (one_joins_two_leave, {"reader_ends": LEAVES_EARLY}),
        (one_dies_one_joins, {"line": JoinsDeadLine}),
        (one_dies_one_joins, {"page": ForgetsFirst}),
        (one_dies_one_joins, {"page": AsksNoLock}),
        (one_dies_one_joins, {"taints": False}),
        (retires_while_one_dies_and_one_joins, {"owner": AsksNoMember}),
        (retires_while_one_dies_and_one_joins, {"line": JoinsDeadLine}),
        (own_reader_and_two, {"owner": AsksLinesOnly}),
    ],
    ids=lambda value: (
        "" if callable(value) else " ".join(f"{key} {getattr(each, '__name__', each)}" for key, each in value.items())
    ),
)
def test_each_step_is_needed(
    monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Model], list[Program]], broken: dict[str, Any]
) -> None:
    model = Model(monkeypatch, LINES.get(scenario, 2), **broken)
    with pytest.raises(AssertionError):
        model.explore(scenario(model))
