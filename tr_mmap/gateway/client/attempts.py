"""When a request is sent, and when again: the steps of one call. Does no I/O, and knows the clock it is given only.

A generator says what to do next: send the request, or wait. It is told the response, or the error that came instead.
It returns what the call returns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

from ...errors import TRException, WorkerDied
from ...sandbox.errors import SandboxBroken
from .answers import Answer
from .asks import Ask
from .failures import ConnectionLost

__all__ = ["Done", "Pause", "Send", "Steps", "advance", "attempts"]

_T = TypeVar("_T")
_MAY_RETRY: Final = frozenset({409, 429, 503})  # with Retry-After
_MOST_LOST: Final = 3
_FIRST_PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request.

    Attributes:
        timeout_s: what is left of the call's time.
        call_s: all of it.
    """

    timeout_s: float
    call_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done(Generic[_T]):
    """The call returns ``value``."""

    value: _T


Steps: TypeAlias = Generator[Send | Pause, "Answer | TRException | None", _T]


def advance(steps: Steps[_T], outcome: Answer | TRException | None) -> Send | Pause | Done[_T]:
    """The next step, after the last one's outcome; None at first, and after a pause."""
    try:
        return steps.send(outcome)
    except StopIteration as end:
        return Done(end.value)


def attempts(ask: Ask[_T], timeout_s: float, *, may_retry: bool, clock: Callable[[], float]) -> Steps[_T]:
    """The steps of one call.

    A request that the gateway refuses for now is sent again when it says, if that is within the call's time; one whose
    response was lost is, if it can be repeated.

    Args:
        ask: the request.
        timeout_s: how long the call may take, pauses included.
        may_retry: whether it may be sent again at all.
        clock: says the time, in seconds.

    Raises:
        TRException: the gateway refuses, or cannot be reached, or does not answer in time.
    """
    end_s = clock() + timeout_s
    lost = 0
    refused: Answer | None = None
    while True:
        outcome = yield Send(max(end_s - clock(), 0.001), timeout_s)
        assert outcome is not None
        if isinstance(outcome, Answer):
            pause_s = _pause_of(outcome)
            failure = None
            refused = outcome
        else:
            lost += 1
            failure = outcome
            is_lost = isinstance(failure, ConnectionLost) and ask.is_repeatable and lost <= _MOST_LOST
            pause_s = _FIRST_PAUSE_S * 2**lost if is_lost else None
        if may_retry and pause_s is not None and clock() + pause_s < end_s:
            yield Pause(pause_s * random.uniform(1.0, 1.1))  # many clients that were refused at once come one by one
            continue
        if failure is not None:
            if refused is not None:
                failure.add_note(f"before that, the gateway refused it: {refused.error()}")
            raise failure
        assert isinstance(outcome, Answer)
        return ask.read(outcome)


def _pause_of(answer: Answer) -> float | None:
    """After which time the gateway wants the request again; None if it does not."""
    after_s = answer.retry_after_s()
    if after_s is None or answer.status not in _MAY_RETRY:
        return None
    error = answer.error()
    if isinstance(
        error, SandboxBroken | WorkerDied
    ):  # the run began; the gateway itself has repeated it, if it may be repeated
        return None
    precise_s = getattr(error, "retry_after_s", None)  # the header has whole seconds
    return max(float(precise_s), _FIRST_PAUSE_S) if isinstance(precise_s, int | float) else after_s
