"""Signal handlers, at each step of ours at which the interpreter runs them: they raise, act, or fork."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable
from types import FrameType

import tr_mmap

PACKAGE = os.path.dirname(tr_mmap.__file__) + os.sep


class Stop(BaseException):
    """What the handler raises."""


def interrupted_at(step: int, action: Callable[[], object], places: tuple[str, ...] = (PACKAGE,)) -> bool:
    """Run ``action``, and raise at that step of ours at which a handler could; whether it had so many.

    Args:
        step: which, from 1.
        action: what is interrupted.
        places: how the paths begin of the files whose steps count.
    """

    def stop() -> None:
        raise Stop

    try:
        return handled_at(step, action, stop, places)
    except Stop:
        return True


def is_in_finalizer(frame: FrameType | None) -> bool:
    """Whether the interpreter ignores what is raised there: garbage, which may be an earlier test's, is collected."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code.co_filename == weakref.__file__:
            return True
        frame = frame.f_back
    return False


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
        return handled_at(step, action, handle)
    except BaseException as error:
        if child == 0:
            if not isinstance(error, Stop):
                traceback.print_exc()  # where -s shows it
            os._exit(0 if isinstance(error, Stop) else 2)
        raise
    finally:
        if child == 0:
            os._exit(3)  # it goes on in its parent's code


def handled_at(
    step: int, action: Callable[[], object], handle: Callable[[], object], places: tuple[str, ...] = (PACKAGE,)
) -> bool:
    """Run ``action``, and ``handle`` at that step of ours at which a handler could run; whether it had so many.

    ``handle`` may call this function, as one signal handler may interrupt another.
    """
    count = 0

    def on_event(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        # The interpreter runs handlers on entering a function, and when a builtin one has returned.
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(places):
            # What is raised in a generator that is closed, because it is not needed any more, comes out nowhere.
            if frame.f_code.co_name == "<genexpr>" or is_in_finalizer(frame):
                return
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
