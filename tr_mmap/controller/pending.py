"""A request, from the moment that it is made until its answer was consumed. Sends and receives nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..protocol.commands import UserMessage, parse_command
from .results import Result

__all__ = ["Pending", "awaited", "mark_of_thread", "opened"]

_of_thread = threading.local()


class Pending:
    """One request.

    Attributes:
        command, parameters: what it asks for.
        framework: of its result's tensors; None to receive none.
        seq: its number; 0 until it is about to be sent.
        order: how many requests of the session were sent before it.
        outcome: its result, with views, which hold the leases; or its error; None while there is neither.
        is_abandoned: no caller waits for the answer any more; it is dropped when it comes.
        asker: marks the thread that made it.
        is_lost: it was lost with its worker.
        is_given_up: and its asker has started the next worker since: its next request takes the place of this one.
        on_done: called once when there is an outcome, by the thread that has consumed the answer; None for nothing.
    """

    __slots__ = (
        "asker",
        "command",
        "framework",
        "is_abandoned",
        "is_given_up",
        "is_lost",
        "on_done",
        "order",
        "outcome",
        "parameters",
        "seq",
    )

    def __init__(self, message: UserMessage, framework: str | None) -> None:
        self.command, self.parameters = parse_command(message)
        self.framework = framework
        self.seq = self.order = 0
        self.outcome: Result | Exception | None = None
        self.asker = mark_of_thread()
        self.is_abandoned = self.is_lost = self.is_given_up = False
        self.on_done: Callable[[Pending], None] | None = None


def mark_of_thread() -> object:
    """What tells this thread from all others. A thread's number would not: another one gets it later."""
    mark: object = _of_thread.__dict__.setdefault("mark", object())
    return mark


def awaited() -> list[Pending]:
    """What this thread is in the middle of waiting for, the outermost wait first.

    All but the last are those of waits that a signal handler has interrupted: they go on, and get these results.
    """
    found: list[Pending] = _of_thread.__dict__.setdefault("awaited", [])
    return found


def opened(outcome: Any) -> Result:
    """A result; raises an error."""
    if isinstance(outcome, Exception):
        raise outcome
    result: Result = outcome
    return result
