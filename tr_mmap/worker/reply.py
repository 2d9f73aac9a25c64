"""The reply: what a handler says to a request, or how it failed, in terms of the protocol. Sends nothing."""

from __future__ import annotations

from types import CodeType
from typing import Any

import msgspec

from ..errors import BadMessage, MissingTag, OutOfSpace, RequestCancelled
from ..protocol.messages import Failure, FailureKind
from ..wire.words import ANSWERED_LINE
from .log import log
from .stop_signals import Stop
from .traces import is_a, name_of, text_of, trace_of

__all__ = ["Reply", "failure_of"]


class Reply(msgspec.Struct):
    """What a handler has said so far in reply to one request.

    Attributes:
        command: what the handler calls the command; "" to use the request's.
        result: the text; None if the handler has set none.
        form: of the text, as in a response.
        message: a remark.
        complaint: why ``get_tensors`` returned None; sent as the remark if the handler makes none.
        bad_input: raised because the request's words do not fit the command, or because a tensor of the request cannot
            be had; its handler was not called.
        bad_result: raised because what the handler returned cannot be sent.
        handler_code: of that handler; None if it is unknown.
        has_shown: the status has said something of this request.
    """

    command: str = ""
    result: str | None = None
    message: str = ""
    complaint: str = ""
    bad_input: Exception | None = None
    bad_result: Exception | None = None
    handler_code: CodeType | None = None
    has_shown: bool = False
    form: str = ""


def failure_of(error: BaseException, reply: Reply | None = None) -> Failure:
    """The failure for what was raised while a request was handled. A handler's traceback also goes to the log.

    A line after it says that the traceback is an answer: if the worker dies later, it is not the reason.

    Args:
        error: what was raised.
        reply: of the handler; None if no handler raised the error. Then the failure has no traceback.
    """
    failure = Failure(FailureKind.HANDLER, name_of(error), text_of(error))
    if is_a(error, RequestCancelled):
        failure.kind = FailureKind.CANCELLED
        return failure
    if is_a(error, OutOfSpace):
        needed, free = _attribute(error, "needed_nbytes"), _attribute(error, "free_nbytes")
        if type(needed) is int and type(free) is int:  # a user's own subclass may lack them
            failure.needed_nbytes, failure.free_nbytes = needed, free
    if reply is None:
        return failure
    bad_input, bad_result = reply.bad_input, reply.bad_result
    reply.bad_input = reply.bad_result = None  # the frames of their tracebacks hold views
    if error is bad_input:
        if is_a(error, BadMessage, MissingTag):  # else the words were right, and the worker has failed
            failure.kind = FailureKind.BAD_INPUT
        return failure
    if error is bad_result:
        failure.message = f"what the function returned cannot be sent: {failure.message}"
        failure.traceback = trace_of(error, reply.handler_code, has_returned=True)
    else:
        failure.traceback = trace_of(error)
    log(f"{failure.traceback.rstrip()}\n{ANSWERED_LINE}")
    return failure


def _attribute(error: BaseException, name: str) -> Any:
    try:
        return getattr(error, name)
    except Stop:
        raise
    except BaseException:  # a user's own subclass may lack it, or have a property of that name
        return None
