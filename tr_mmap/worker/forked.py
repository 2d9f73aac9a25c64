"""Ends a child that a handler forked and that comes back from the handler. Answers nothing.

The child has the worker's channel and all its tensors, so it must touch neither: it is the parent that answers. What
the child is for, it has done in the handler. So it ends as a program ends that has come to its end, or that raised, but
without the worker's cleaning up.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from .log import log
from .stop_signals import Stop
from .traces import trace_of

__all__ = ["end_child"]


def end_child(error: BaseException | None) -> NoReturn:
    """End this process, a forked child of the worker.

    Args:
        error: what the handler raised in it; None if the handler returned.
    """
    code = 1
    try:
        if error is None:
            code = 0
        elif isinstance(error, SystemExit):
            code = _exit_code(error)
        elif not isinstance(error, Stop):  # the worker's own end, if a handler forks while that is under way
            log(trace_of(error))
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:  # closed, or an object of the user's own
                continue
    finally:
        os._exit(code)


def _exit_code(error: SystemExit) -> int:
    """The exit status that Python makes of ``sys.exit``'s argument."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    log(error.code)
    return 1
