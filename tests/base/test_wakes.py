"""Waking needs no lock: whatever a signal handler interrupts, every later wake returns and wakes who waits."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import pytest

from tr_mmap.base import wakes
from tr_mmap.base.wakes import Wakes

BOUND_S = 60


class Interrupt(BaseException):
    """What a signal handler raises."""


def interrupt_at(number: int, action: Any) -> bool:
    """Run the action, but raise before its ``number``-th line; False if it has fewer."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != wakes.__file__:
            return None
        if event == "line":
            left -= 1
            if not left:
                sys.settrace(None)
                raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        action()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def check(made: Wakes) -> None:
    """Every thread that waits is woken."""
    is_waiting, has_ended = threading.Barrier(3), []

    def wait() -> None:
        is_waiting.wait(BOUND_S)
        while not is_over.is_set():
            made.wait(BOUND_S, is_over.is_set)
        has_ended.append(1)

    is_over = threading.Event()
    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    is_waiting.wait(BOUND_S)
    is_over.set()
    for thread in threads:
        while thread.is_alive():
            made.wake()
            thread.join(0.001)
    assert has_ended == [1, 1]


def test_a_wake_reaches_all_that_wait() -> None:
    check(Wakes())


def test_who_sees_that_it_is_over_does_not_wait() -> None:
    Wakes().wait(BOUND_S * 1000, lambda: True)


@pytest.mark.parametrize("side", ["wait", "wake"])
def test_an_interrupt_anywhere_leaves_nothing_locked(side: str) -> None:
    number = 1
    while True:
        made = Wakes()
        waiting = threading.Lock()
        waiting.acquire()
        made._waiters.append(waiting)
        action = made.wake if side == "wake" else lambda made=made: made.wait(0, lambda: False)
        is_interrupted = interrupt_at(number, action)
        check(made)
        assert not waiting.locked()
        if not is_interrupted:
            break
        number += 1
    assert number > 3


def test_a_wake_in_the_middle_of_a_wait_is_not_lost() -> None:
    """A signal handler that wakes comes between two steps of the same thread's wait."""
    made = Wakes()

    def handler() -> bool:
        made.wake()
        return False

    made.wait(BOUND_S * 1000, handler)
