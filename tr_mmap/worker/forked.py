"""Ends a child that a handler forked and that comes back from the handler. Answers nothing.

The child has the worker's channel and tensors too, but must not use them, because the parent answers the request. The
child has done its work in the handler. So it ends here as a program does that has come to its end or has raised, but
without the worker's cleanup, which would remove what the parent uses.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final, NoReturn

from .log import log
from .stop_signals import Stop
from .traces import is_a, trace_of

__all__ = ["end_child"]

_code_of: Final[Any] = SystemExit.__dict__["code"].__get__  # a subclass may have a property of that name


def end_child(error: BaseException | None) -> NoReturn:
    """End this process, a forked child of the worker.

    Args:
        error: what the handler raised in it; None if the handler returned.
    """
    code = 1
    try:
        if error is None:
            code = 0
        elif is_a(error, SystemExit):
            code = _exit_code(_code_of(error))
        elif not is_a(error, Stop):  # Stop: the worker was being ended when the handler forked
            log(trace_of(error))
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:  # closed, or an object of the user's own
                continue
    finally:
        os._exit(code)


def _exit_code(argument: Any) -> int:
    """The exit status that Python makes of ``sys.exit``'s argument."""
    if argument is None:
        return 0
    if issubclass(type(argument), int):
        return int.__and__(argument, 0xFF)
    log(argument)
    return 1
