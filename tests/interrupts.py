"""What a signal handler does at each step of ours at which the interpreter runs handlers: it raises, or forks."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

import tr_mmap

PACKAGE = os.path.dirname(tr_mmap.__file__) + os.sep


class Stop(BaseException):
    """What the handler raises."""


def interrupted_at(step: int, action: Callable[[], object]) -> bool:
    """Run ``action``, and raise at that step of ours at which a handler could; whether it had so many."""

    def handle() -> None:
        raise Stop

    try:
        return _handled_at(step, action, handle)
    except Stop:
        return True


def forked_at(step: int, action: Callable[[], object]) -> bool:
    """Run ``action``, and fork at that step; whether it had so many. The child raises there, as ``sys.exit()`` does.

    Fails unless just that exception comes out of the child's ``action``.
    """
    child = -1

    def handle() -> None:
        nonlocal child
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a child that waits for ever must not outlive the test
            raise Stop
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, step

    try:
        return _handled_at(step, action, handle)
    except BaseException as error:
        if child == 0:
            if not isinstance(error, Stop):
                traceback.print_exc()  # where -s shows it
            os._exit(0 if isinstance(error, Stop) else 2)
        raise
    finally:
        if child == 0:
            os._exit(3)  # it goes on in its parent's code


def _handled_at(step: int, action: Callable[[], object], handle: Callable[[], None]) -> bool:
    count = 0

    def on_event(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        # The interpreter runs handlers on entering a function, and when a builtin one has returned.
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            if frame.f_code.co_name == "<genexpr>":  # one that is closed when it is not needed any more raises nothing
                return
            count += 1
            if count == step:
                handle()

    sys.setprofile(on_event)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count >= step
