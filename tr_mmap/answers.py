"""What a handler says in answer to a request, or how it fails, in terms of the protocol. Sends nothing."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import msgspec

from .protocol import Failure, FailureKind

__all__ = ["Answer", "failure_of", "log", "printable"]


class Answer(msgspec.Struct):
    """What a handler has said so far in answer to one request.

    Attributes:
        command: what the handler calls it; "" for what the controller does.
        result: the text; None where it has said nothing.
        message: a remark.
        complaint: a remark of ours, why get_tensors gave None, unless the handler makes one.
    """

    command: str = ""
    result: str | None = None
    message: str = ""
    complaint: str = ""


def failure_of(error: Exception) -> Failure:
    """What the controller is told of what a handler raised; the traceback also goes to the log."""
    name = type(error).__name__
    if getattr(error, "is_bad_input", False):
        return Failure(FailureKind.BAD_INPUT, name, printable(error))
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
