"""A request, from the moment that it is made until its answer was consumed. Sends and receives nothing.

``Pending`` has these fields:

``message``
    what the user has sent.
``framework``
    of the tensors of its result; None to receive none.
``seq``, ``order``
    its number, 0 until it is about to be sent; and how many requests of the session were sent before it.
``outcome``
    its result, with views, which hold the leases; or its error; None while there is neither.
``deadline_s``
    when the time is over of a call that the fast path has begun, by the monotonic clock; 0 for all others.
``held``
    this side's segments that it names; None for none.
``is_sent``
    its message was stored; may not be noted yet if an exception came just then: the channel knows its latest messages.
``is_abandoned``
    no caller waits for the answer any more; it is dropped when it comes.
``asker``
    marks the thread that made it, if any thread may take its result.
``is_lost``, ``is_given_up``
    it was lost with its worker; and its asker has started the next worker since, and the asker's next request drops it.
``on_done``
    called once when there is an outcome, by the thread that has consumed the answer; None for nothing.
"""

from __future__ import annotations

import threading
from typing import Any

from ..native import Pending
from ..protocol.commands import parse_command
from .results import Result

__all__ = ["Pending", "awaited", "command_of", "mark_of_thread", "opened"]

_of_thread = threading.local()


def command_of(pending: Pending) -> str:
    """The command that a request asks for."""
    return parse_command(pending.message)[0]


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
