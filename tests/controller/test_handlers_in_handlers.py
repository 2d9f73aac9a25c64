"""A signal handler may interrupt another one that is in the middle of a request: all three get their own answers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupts import handled_at, interrupted_at
from support import TOOLS

from tr_mmap import PythonSession

OPTIONS: dict[str, dict[str, Any]] = {"mapped": {}, "signed": {"auth": True}}
SOON_MS = 5000.0

_numbers = count(1)


def ask_for_text(session: PythonSession) -> None:
    number = next(_numbers)
    assert session.fetch_response(f"say {number}", SOON_MS) == str(number)


def calculate(session: PythonSession) -> None:
    x = np.full(600, next(_numbers))
    assert session.calculate("echo", x, timeout_ms=SOON_MS).tolist() == x.tolist()


def calculate_with_torch(session: PythonSession) -> None:
    torch = pytest.importorskip("torch")
    x = torch.full((5,), next(_numbers))
    assert session.calculate("echo", x, timeout_ms=SOON_MS).tolist() == x.tolist()


def fetch_what_was_sent(session: PythonSession) -> None:
    number = next(_numbers)
    session.send_tensor(np.full(4, number), "t")
    assert session.fetch_tensor("echo t", SOON_MS).tolist() == [number] * 4


def ask_in_steps(session: PythonSession) -> None:
    number = next(_numbers)
    session.send_request(f"say {number}", SOON_MS)
    assert session.wait_for_response(SOON_MS) == str(number)


@pytest.fixture
def sample(is_full: bool) -> int:
    """At each step of what it interrupts, the handler is interrupted at one in so many of its own steps."""
    return 41 if is_full else 113


def interrupt_twice_at_all_steps(sample: int, outer: Callable[[], object], interrupted: Callable[[int], bool]) -> None:
    """Run ``outer`` again and again, each time with a handler at another step, which is interrupted at one of its own.

    Args:
        sample: the handler is interrupted at one in so many of its steps.
        outer: what the handler interrupts.
        interrupted: the handler; gets its own step, and says whether it had so many.
    """

    def interrupt_twice(step: int, inner_step: int) -> tuple[bool, bool]:
        had_so_many = False

        def handle() -> None:
            nonlocal had_so_many
            had_so_many = interrupted(inner_step)

        return handled_at(step, outer, handle), had_so_many

    step, is_in_time = 1, True
    while is_in_time:
        inner_step, is_inner_in_time = step % sample + 1, True
        while is_inner_in_time:
            is_in_time, is_inner_in_time = interrupt_twice(step, inner_step)
            inner_step += sample
        step += 1
    assert step > 3


@pytest.mark.long
@pytest.mark.each_value
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("outer", [ask_for_text, calculate, calculate_with_torch, fetch_what_was_sent, ask_in_steps])
def test_a_handler_that_interrupts_a_handler_loses_no_answer(
    workspace: Path, sample: int, options: str, outer: Callable[[PythonSession], None]
) -> None:
    with PythonSession(TOOLS, "nested", quiet_mode=True, **OPTIONS[options]) as session:
        for _ in range(3):
            outer(session)
            calculate(session)
        interrupt_twice_at_all_steps(
            sample,
            lambda: outer(session),
            lambda step: handled_at(step, lambda: calculate(session), lambda: calculate(session)),
        )
        assert not session.new_response()


@pytest.mark.long
@pytest.mark.parametrize("options", OPTIONS)
def test_a_handler_that_an_exception_of_another_one_ends_loses_no_answer(
    workspace: Path, sample: int, options: str
) -> None:
    with PythonSession(TOOLS, "nested", quiet_mode=True, **OPTIONS[options]) as session:
        for _ in range(3):
            calculate_with_torch(session)
            calculate(session)
        interrupt_twice_at_all_steps(
            sample,
            lambda: calculate_with_torch(session),
            lambda step: interrupted_at(step, lambda: calculate(session)),  # which catches what that raises
        )
