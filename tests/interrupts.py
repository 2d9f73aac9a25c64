"""Exceptions that a signal handler raises, at each step of ours at which the interpreter runs handlers."""

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
    count = 0

    def on_event(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        # The interpreter runs handlers on entering a function, and when a builtin one has returned.
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            count += 1
            if count == step:
                raise Stop

    sys.setprofile(on_event)
    try:
        action()
    except Stop:
        return True
    finally:
        sys.setprofile(None)
    return False
