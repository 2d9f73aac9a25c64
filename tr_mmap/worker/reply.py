"""The reply: what a handler says to a request, or how it failed, in terms of the protocol. Sends nothing."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import msgspec

from ..protocol.messages import Failure, FailureKind

__all__ = ["Reply", "failure_of", "log", "printable"]


class Reply(msgspec.Struct):
    """What a handler has said so far in reply to one request.

    Attributes:
        command: what the handler calls the command; "" to use the request's.
        result: the text; None if the handler has set none.
        message: a remark.
        complaint: why ``get_tensors`` returned None; sent as the remark if the handler makes none.
        bad_input: raised because the request's words do not fit the command; its handler was not called.
    """

    command: str = ""
    result: str | None = None
    message: str = ""
    complaint: str = ""
    bad_input: Exception | None = None


def failure_of(error: Exception, reply: Reply) -> Failure:
    """The failure for what was raised while a request was handled. A handler's traceback also goes to the log."""
    name = type(error).__name__
    if error is reply.bad_input:
        return Failure(FailureKind.BAD_INPUT, name, printable(error))
    trace = printable("".join(traceback.format_exception(error)))
    log(trace)
    return Failure(FailureKind.HANDLER, name, printable(error), trace)


def printable(text: str | Exception) -> str:
    """The text in a form that UTF-8 can hold. An exception's text may have a file name's bytes; to get it may raise."""
    try:
        text = str(text)
    except Exception:  # the ``__str__`` of a user's class raised; the traceback says which class
        text = "(it has no text)"
    return text.encode("utf-8", "replace").decode()


def log(*values: Any) -> None:
    """Write to the worker's log. A full file system must not end the worker: log and tensors share one."""
    try:
        print(*values, file=sys.stderr, flush=True)
    except OSError:
        pass
