"""Signal handlers, at each step of ours at which the interpreter runs them: ones that raise, and ones that act."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType

import tr_mmap

PACKAGE = os.path.dirname(tr_mmap.__file__) + os.sep


class Stop(BaseException):
    """What the handler raises."""


def interrupted_at(step: int, action: Callable[[], object]) -> bool:
    """Run ``action``, and raise at that step of ours at which a handler could; whether it had so many."""

    def stop() -> None:
        raise Stop

    try:
        return handled_at(step, action, stop)
    except Stop:
        return True


def handled_at(step: int, action: Callable[[], object], handle: Callable[[], object]) -> bool:
    """Run ``action``, and ``handle`` at that step of ours at which a handler could run; whether it had so many.

    ``handle`` may call this function, as one signal handler may interrupt another.
    """
    count = 0

    def on_event(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        # The interpreter runs handlers on entering a function, and when a builtin one has returned.
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            count += 1
            if count == step:
                sys.call_tracing(handle_unwatched, ())  # else the interpreter watches nothing in this function

    def handle_unwatched() -> None:
        sys.setprofile(None)
        try:
            handle()
        finally:
            sys.setprofile(on_event)

    previous = sys.getprofile()
    sys.setprofile(on_event)
    try:
        action()
    finally:
        sys.setprofile(previous)
    return count >= step
