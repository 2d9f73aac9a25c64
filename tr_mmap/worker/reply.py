"""What a handler says in reply to a request, or how it fails, in terms of the protocol. Sends nothing."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import msgspec

from ..protocol.messages import Failure, FailureKind

__all__ = ["BadInput", "Reply", "failure_of", "log", "printable"]


class Reply(msgspec.Struct):
    """What a handler has said so far in reply to one request.

    Attributes:
        command: what the handler calls it; "" for what the controller does.
        result: the text; None where it has said nothing.
        message: a remark.
        complaint: why get_tensors gave None; sent as the remark if the handler makes none.
    """

    command: str = ""
    result: str | None = None
    message: str = ""
    complaint: str = ""


class BadInput(Exception):
    """The request's words do not fit the command: the handler was not called.

    Attributes:
        error: what the controller is told.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def failure_of(error: Exception) -> Failure:
    """What the controller is told of what a handler raised; the traceback also goes to the log."""
    if isinstance(error, BadInput):
        return Failure(FailureKind.BAD_INPUT, type(error.error).__name__, printable(error.error))
    name = type(error).__name__
    trace = printable("".join(traceback.format_exception(error)))
    log(trace)
    return Failure(FailureKind.HANDLER, name, printable(error), trace)


def printable(text: str | Exception) -> str:
    """The text as UTF-8 can hold it: an exception's may have the bytes of a file name in it, or may not be had."""
    try:
        text = str(text)
    except Exception:  # a user's class; the traceback says which
        text = "(it has no text)"
    return text.encode("utf-8", "replace").decode()


def log(*values: Any) -> None:
    """Write to the worker's log, which lies where the tensors do: a full file system must not end the worker."""
    try:
        print(*values, file=sys.stderr, flush=True)
    except OSError:
        pass
