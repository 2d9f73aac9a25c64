"""A cancel and the taking of its request agree, whichever step of either comes first."""

from __future__ import annotations

from typing import Any

import pytest
from interleavings import Machine
from ring_model import (
    BLANK,
    CANCEL,
    DONE,
    FIRST_NUMBER,
    Kind,
    Model,
    finds,
    store,
)

from tr_mmap.native.reference import ring as module
from tr_mmap.native.reference.ring import Ring

# -- cancel() against advance(): ring_cancel, ring_take, ring_begin, ring_is_cancelled in ring.c ---------------------


class LooksThenCancels(Ring):
    def cancel(self, position: int) -> bool:
        was_done = self.done_by_peer > position
        super().cancel(position)
        return not was_done


class Withdraws(Ring):
    """Takes the request back, so that another worker may have it."""

    def cancel(self, position: int) -> bool:
        return self.withdraw(position)


class SaysItLate(Ring):
    """Looks whether a request is cancelled, and then says that it was taken."""

    def all_done(self) -> None:
        pass

    def is_cancelled(self, position: int) -> bool:
        is_cancelled = super().is_cancelled(position)
        super().all_done()
        return is_cancelled


class CancelsAny(Ring):
    """Lets the word of an older request replace that of a newer one, which has the same slot."""

    def cancel(self, position: int) -> bool:
        self._words[CANCEL + position % module.RING_SLOTS] = position + 1
        module._fence()
        return self.done_by_peer <= position


def begin(ring: Ring) -> None:
    """Say that the next request is one that a handler is to have, before it is taken: ``ring_begin``."""
    if not isinstance(ring, SaysItLate):
        ring._words[DONE] = ring.taken + 1


def serve(ring: Ring, log: list[Any]) -> None:
    """Take the next request if there is one, and answer it; the order of ``receive`` and of ``_answer``."""
    position = ring.taken
    if ring.peek() is not None:
        ring.advance(position, True)
        is_cancelled = ring.is_withdrawn(position) or ring.is_cancelled(position)
        log.append((position, "cancelled" if is_cancelled else "called"))


@pytest.mark.parametrize("is_left", [False, True], ids=["one way", "fast path and slow path"])
@pytest.mark.parametrize(
    ("cancels", "takes", "unfenced"),
    [
        (Ring, Ring, ()),
        (Withdraws, Ring, ()),
        (Ring, Ring, (0,)),
        (Withdraws, Ring, (0,)),
        (Ring, Ring, (1,)),
        (Withdraws, Ring, (1,)),
        (LooksThenCancels, Ring, ()),
        (Ring, SaysItLate, ()),
    ],
    ids=[
        *("right", "right withdrawal", "no fence in cancel", "no fence in withdraw", "no fence in is_cancelled"),
        *("no fence in is_withdrawn", "cancel looks first", "done is said late"),
    ],
)
def test_a_request_whose_cancel_succeeds_is_not_handled_and_has_one_answer(
    monkeypatch: pytest.MonkeyPatch, cancels: Kind, takes: Kind, unfenced: tuple[int, ...], is_left: bool
) -> None:
    model = Model(monkeypatch, unfenced=unfenced)

    def controller(_: Machine, log: list[Any]) -> None:
        ring = model.ring(cancels)
        store(ring, 1)
        store(ring, 2)
        log.append(ring.cancel(1))

    def worker(machine: Machine, log: list[Any]) -> None:
        ring = model.ring(takes)
        serve(ring, log)
        if not is_left:
            serve(ring, log)
        elif ring.peek() is not None:  # the fast path leaves what is cancelled to the slow path
            position = ring.taken
            begin(ring)
            if not ring.is_cancelled(position) and not ring.is_withdrawn(position):
                ring.advance(position, True)
                log.append((position, "called"))
        machine.join(0)
        serve(ring, log)
        serve(ring, log)

    def check(logs: list[list[Any]]) -> None:
        assert [position for position, _ in logs[1]] == [0, 1]
        assert logs[1][0] == (0, "called")
        assert logs[1][1] == (1, "cancelled") or not logs[0][0]

    is_broken = bool(unfenced) or cancels is LooksThenCancels or takes is not Ring
    finds(lambda: model.explore([controller, worker], check), is_broken=is_broken)


class Cancels(Ring):
    """Lets a handler learn that its request was to be taken back."""

    def withdraw(self, position: int) -> bool:
        return self.cancel(position)


@pytest.mark.parametrize("kind", [Ring, Cancels], ids=["right", "cancels"])
def test_a_handler_never_learns_that_its_request_was_to_be_taken_back(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    model = Model(monkeypatch)

    def controller(_: Machine, log: list[Any]) -> None:
        ring = model.ring(kind)
        store(ring, 1)
        log.append(ring.withdraw(0))

    def worker(machine: Machine, log: list[Any]) -> None:
        ring = model.ring(Ring)
        serve(ring, log)
        log.append(ring.is_cancelled(0))  # the handler asks
        machine.join(0)
        serve(ring, log)
        log.append(ring.is_cancelled(0))

    def check(logs: list[list[Any]]) -> None:
        assert True not in logs[1]

    finds(lambda: model.explore([controller, worker], check), is_broken=kind is Cancels)


@pytest.mark.parametrize("cancels", [Ring, CancelsAny], ids=["right", "the older replaces the newer"])
def test_a_cancel_of_a_request_that_runs_takes_none_back_from_a_later_one(
    monkeypatch: pytest.MonkeyPatch, cancels: Kind
) -> None:
    """A worker with threads: a slow request is not answered yet when the ring has come round to its slot."""
    model = Model(monkeypatch, slots=1)

    def controller(machine: Machine, log: list[Any]) -> None:
        ring = model.ring(cancels)
        store(ring, 1)
        machine.wait_for(DONE, bool)
        store(ring, 2)
        log.append(ring.cancel(1))
        log.append(ring.cancel(0))

    def worker(machine: Machine, log: list[Any]) -> None:
        ring = model.ring()
        machine.wait_for(FIRST_NUMBER, lambda number: number != BLANK)
        serve(ring, log)
        serve(ring, log)
        machine.join(0)
        serve(ring, log)

    def check(logs: list[list[Any]]) -> None:
        assert [position for position, _ in logs[1]] == [0, 1]
        assert logs[1][0] == (0, "called")
        assert not logs[0][1]
        assert logs[1][1] == (1, "cancelled") or not logs[0][0]

    finds(lambda: model.explore([controller, worker], check), is_broken=cancels is CancelsAny)
