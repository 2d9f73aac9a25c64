"""The ring's steps in every interleaving of both sides, store buffers included; and each of them broken, to be found.

The steps are those of the real code: ``native/reference/ring.py`` runs here over a memory that switches sides at each
access. ``native/ring.c`` does the same in the same order, in the functions that the variants name; where it differs,
the variant *as in C* has its steps. A ring has one or two slots here, and a slot has room for 16 bytes of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
from interleavings import Machine, Program
from ring_model import (
    BELL,
    BLANK,
    DONE,
    FIFO,
    LOCK,
    POSTS,
    Bytes,
    Kind,
    Model,
    finds,
    line_of,
    store,
    taken_lines,
)

from tr_mmap.native.reference import ring as module
from tr_mmap.native.reference.ring import Ring

# -- a slot's number, and what was seen of it: store() and peek(); ring_store() and ring_next() in ring.c -------------


class WithStores(Ring):
    """Does some of the stores of :meth:`Ring.store` only, in this order: blank, rest, number, and this side's own."""

    order = (0, 1, 2, 3, 4, 5)

    @classmethod
    def _finish(cls, stores: list[Any], turn: Iterable[bool]) -> bool:  # type: ignore[override] # of this class
        return Ring._finish([stores[place] for place in cls.order] if len(stores) == 6 else stores, turn)


class NumberFirst(WithStores):
    order = (0, 2, 1, 3, 4, 5)


class NoBlank(WithStores):
    order = (1, 2, 3, 4, 5)


class BlankAfterRest(WithStores):
    order = (1, 0, 2, 3, 4, 5)


class NoSecondLook(Ring):
    """Does not compare the number again after the copy."""

    def peek(self) -> bytes | None:
        return self._line_in(self._slot_of(self.taken))[0] if self._number_at(self.taken) else None


class SeesOneSlot(Ring):
    """Compares with the number that was taken last, from whatever slot."""

    def _number_at(self, position: int) -> int:
        number = self._number_in(self._slot_of(position))
        last = self._seen[(position - 1) % len(self._seen)]
        return 0 if number in (last, BLANK) else number


BACKWARDS = pytest.mark.parametrize("is_backwards", [False, True], ids=["forwards", "backwards"])


@BACKWARDS
@pytest.mark.parametrize(
    ("writes", "reads"),
    [(Ring, Ring), (NumberFirst, Ring), (Ring, SeesOneSlot)],
    ids=["right", "number first", "one seen number"],
)
def test_each_message_is_taken_once_whole_and_in_order(
    monkeypatch: pytest.MonkeyPatch, writes: Kind, reads: Kind, is_backwards: bool
) -> None:
    model = Model(monkeypatch, text=partial(Bytes, is_backwards=is_backwards))

    def writer(machine: Machine, log: list[Any]) -> None:
        ring = model.ring(writes)
        for number in (1, 2):
            store(ring, number)
            log.append(number)
        if machine.load(DONE):  # there is room for one more
            store(ring, 3)
            log.append(3)

    def reader(machine: Machine, log: list[Any]) -> None:
        ring = model.ring(reads)
        for _ in range(2):
            log.extend(taken_lines(ring))
        machine.join(0)
        for _ in range(4):
            log.extend(taken_lines(ring))

    def check(logs: list[list[Any]]) -> None:
        assert logs[1] == [line_of(number) for number in logs[0]]

    finds(lambda: model.explore([writer, reader], check), is_broken=(writes, reads) != (Ring, Ring))


@BACKWARDS
@pytest.mark.parametrize(
    ("writes", "reads"),
    [(Ring, Ring), (NumberFirst, Ring), (NoBlank, Ring), (BlankAfterRest, Ring), (Ring, NoSecondLook)],
    ids=["right", "number first", "no blank", "blank after the rest", "no second look"],
)
def test_no_message_is_torn_even_if_the_writer_comes_to_a_slot_too_early(
    monkeypatch: pytest.MonkeyPatch, writes: Kind, reads: Kind, is_backwards: bool
) -> None:
    model = Model(monkeypatch, slots=1, text=partial(Bytes, is_backwards=is_backwards))

    def writer(_: Machine, __: list[Any]) -> None:
        ring = model.ring(writes)
        for number in (1, 2):
            store(ring, number)

    def reader(_: Machine, log: list[Any]) -> None:
        ring = model.ring(reads)
        for _ in range(2):
            log.extend(taken_lines(ring))

    def check(logs: list[list[Any]]) -> None:
        assert logs[1] in ([], [line_of(1)], [line_of(2)], [line_of(1), line_of(2)])

    finds(lambda: model.explore([writer, reader], check), is_broken=(writes, reads) != (Ring, Ring))


# -- the bell: arm() and Futures.process() on one side; store() and ring_bell() on the other --------------------------


class AsInC(Ring):
    """``ring_bell`` in ring.c takes the word in one step."""

    def ring_bell(self) -> None:
        module._fence()
        machine: Machine = self._words.machine  # type: ignore[attr-defined] # see Model.ring
        if machine.load(BELL) and machine.exchange(BELL, lambda _: 0):
            module.os.write(0, b"!")


class LooksThenArms(Ring):
    def arm(self) -> bool:
        is_there = self._is_next_there()
        self._words[BELL] = 1
        module._fence()
        return is_there


class ClearsLast(Ring):
    """Writes the byte, and then takes the word back: that of a later arm()."""

    def ring_bell(self) -> None:
        module._fence()
        if self._words[BELL]:
            module.os.write(0, b"!")
            self._words[BELL] = 0


class RingsThenStores(Ring):
    """Looks whether the peer sleeps before the message is there."""

    def store(self, seq: int, text: bytes) -> bool:
        super().ring_bell()
        return super().store(seq, text)

    def ring_bell(self) -> None:
        pass


def sleeper(model: Model, kind: Kind, count: int, *, drains_late: bool = False) -> Program:
    """A loop that sleeps on the bell until it has taken some messages, as ``Futures.process`` and ``_step`` do."""

    def run(machine: Machine, log: list[Any]) -> None:
        ring = model.ring(kind)
        while len(log) < count:
            if not drains_late:
                model.drain_fifo()
            while True:
                while found := list(taken_lines(ring)):
                    log.extend(found)
                if not ring.arm():
                    break
            if drains_late:
                model.drain_fifo()
            if len(log) < count:
                machine.wait_for(FIFO, bool)

    return run


def all_taken(count: int) -> Callable[[list[list[Any]]], None]:
    """Wherever nobody can go on, the last program has them all: else it sleeps, and nobody will wake it."""

    def check(logs: list[list[Any]]) -> None:
        assert logs[-1] == [line_of(number) for number in range(1, count + 1)]

    return check


@pytest.mark.parametrize(
    ("rings", "arms", "unfenced", "drains_late"),
    [
        (Ring, Ring, (), False),
        (AsInC, Ring, (), False),
        (Ring, Ring, (0,), False),
        (AsInC, Ring, (0,), False),
        (Ring, Ring, (1,), False),
        (Ring, LooksThenArms, (), False),
        (RingsThenStores, Ring, (), False),
        (ClearsLast, Ring, (), False),
        (Ring, Ring, (), True),
    ],
    ids=[
        "right",
        "right, as in C",
        "no fence in ring_bell",
        "no fence in ring_bell, as in C",
        "no fence in arm",
        "arm looks first",
        "ring_bell looks first",
        "the word is cleared last",
        "the FIFO is drained late",
    ],
)
def test_no_ring_of_the_bell_is_lost(
    monkeypatch: pytest.MonkeyPatch, rings: Kind, arms: Kind, unfenced: tuple[int, ...], drains_late: bool
) -> None:
    model = Model(monkeypatch, unfenced=unfenced)

    def writer(_: Machine, __: list[Any]) -> None:
        ring = model.ring(rings)
        for number in (1, 2):
            store(ring, number)
            ring.ring_bell()

    programs = [writer, sleeper(model, arms, 2, drains_late=drains_late)]
    is_broken = bool(unfenced) or drains_late or (rings, arms) not in ((Ring, Ring), (AsInC, Ring))
    finds(lambda: model.explore(programs, all_taken(2)), is_broken=is_broken)


@pytest.mark.parametrize("rings", [Ring, AsInC], ids=["reference", "as in C"])
def test_no_ring_is_lost_of_two_threads_that_answer_at_once(monkeypatch: pytest.MonkeyPatch, rings: Kind) -> None:
    """``MappedChannel.send`` stores under a lock, and rings when it has given that back."""
    model = Model(monkeypatch)

    def first(machine: Machine, _: list[Any]) -> None:
        ring = model.ring(rings)
        store(ring, 1)
        machine.exchange(LOCK, lambda _: 1)
        ring.ring_bell()

    def second(machine: Machine, _: list[Any]) -> None:
        ring = model.ring(rings)
        ring.stored = 1
        machine.wait_for(LOCK, bool)
        store(ring, 2)
        ring.ring_bell()

    model.explore([first, second, sleeper(model, Ring, 2)], all_taken(2))


# -- the semaphore: store() and a post on one side, wait() or sleep() on the other ------------------------------------


class ModelSemaphore:
    """Returns when it was posted; takes one post, or all that there are, as ``Semaphore.sleep`` may."""

    def __init__(self, machine: Machine, *, takes_all: bool) -> None:
        self.machine = machine
        self.takes_all = takes_all

    def sleep(self, _timeout_s: float) -> bool:
        self.machine.exchange(POSTS, lambda count: 0 if self.takes_all else count - 1, bool)
        return True


@pytest.mark.parametrize("takes_all", [False, True], ids=["takes one post", "takes all posts"])
@pytest.mark.parametrize("broken", [None, "posts first", "posts without a fence", "looks after each post"])
def test_no_post_of_the_semaphore_is_lost(monkeypatch: pytest.MonkeyPatch, takes_all: bool, broken: str | None) -> None:
    model = Model(monkeypatch)

    def writer(machine: Machine, _: list[Any]) -> None:
        ring = model.ring()
        for number in (1, 2):
            if broken == "posts first":
                model.post()
            store(ring, number)
            if broken == "posts without a fence":  # and so, perhaps, before the message
                machine.join(2)
            elif broken != "posts first":
                model.post()

    def reader(machine: Machine, log: list[Any]) -> None:
        ring, semaphore = model.ring(), ModelSemaphore(machine, takes_all=takes_all)
        while len(log) < 2:
            if broken == "looks after each post":
                semaphore.sleep(1e9)
            else:
                ring.sleep(semaphore, 1e9, 1e9, lambda: False)  # type: ignore[arg-type] # a model of one
            log.extend(taken_lines(ring))

    def poster(_: Machine, __: list[Any]) -> None:
        if broken == "posts without a fence":
            model.post()
            model.post()

    def check(logs: list[list[Any]]) -> None:
        all_taken(2)(logs[:2])

    # As many posts as messages: to look once for each is enough, unless one look takes several posts.
    is_broken = broken is not None and (takes_all or broken != "looks after each post")
    finds(lambda: model.explore([writer, reader, poster], check), is_broken=is_broken)


# -- who consumes when nobody waits: Flow.in_turn, calls_when_free, Futures.process and Turn.wake ---------------------

OWNER, ON_FREE, ANSWERS, WOKEN = "owner", "on_free", "answers", "woken"


@pytest.mark.parametrize(
    "broken", [None, "wakes before it leaves", "looks at the owner once", "sleeps on a message of others"]
)
def test_an_answer_is_consumed_when_the_thread_that_consumes_leaves(broken: str | None) -> None:
    """The interpreter's lock is between these steps, so each is an exchange."""

    def load(machine: Machine, address: str) -> Any:
        return machine.exchange(address, lambda value: value)

    def put(machine: Machine, address: str, value: Any) -> None:
        machine.exchange(address, lambda _: value)

    def caller(machine: Machine, _: list[Any]) -> None:
        """Has the turn until its own answer is there, and leaves another one that has come."""
        machine.wait_for(ANSWERS, bool)
        if broken == "wakes before it leaves":
            is_asked = load(machine, ON_FREE)
            put(machine, OWNER, 0)
        else:
            put(machine, OWNER, 0)
            is_asked = load(machine, ON_FREE)
        if is_asked:
            put(machine, ON_FREE, 0)
            put(machine, WOKEN, 1)

    def looper(machine: Machine, log: list[Any]) -> None:
        while True:
            put(machine, WOKEN, 0)
            if not load(machine, OWNER):  # Flow.poll
                put(machine, ANSWERS, 0)
                log.append("consumed")
                return
            if broken == "sleeps on a message of others":
                machine.wait_for(WOKEN, bool)
                continue
            if not load(machine, OWNER):  # calls_when_free
                continue
            put(machine, ON_FREE, 1)
            if broken == "looks at the owner once" or load(machine, OWNER):
                machine.wait_for(WOKEN, bool)

    def check(logs: list[list[Any]]) -> None:
        assert logs[1] == ["consumed"]

    machine = Machine({OWNER: 1, ANSWERS: 1})
    finds(lambda: machine.explore([caller, looper], check), is_broken=broken is not None)
