"""What a response means to its caller: tensors, or an error. Receives nothing."""

from __future__ import annotations

from typing import Any, TypeAlias

from ..errors import RemoteError, RemoteOutOfSpace, RequestCancelled, UnexpectedResponse, UnknownCommand
from ..protocol.messages import Failure, FailureKind, Response
from ..protocol.named_values import FORM_NAMED, unpack

__all__ = ["Result", "remote_error", "tensors_of", "value_of"]

Result: TypeAlias = tuple[Response, list[Any]]  # a response, and views of its tensors


def value_of(result: Result) -> Any:
    """What ``calculate`` returns: values by name, the tensor, the list of several tensors, or else the text."""
    response, tensors = result
    if response.form == FORM_NAMED:
        return unpack(response.result, tensors)
    if len(tensors) == 1:  # the usual number
        return tensors[0]
    return tensors if tensors else response.result


def tensors_of(response: Response, tensors: list[Any]) -> Any:
    """The tensor of a result, or the list of its tensors if there are several; or its values by name.

    Args:
        response: of the request.
        tensors: of that response, received.

    Raises:
        UnexpectedResponse: the result has no tensor.
    """
    if response.form == FORM_NAMED:
        return unpack(response.result, tensors)
    if not tensors:
        why = f" ({response.message})" if response.message else ""
        raise UnexpectedResponse(
            f"the response to {response.command!r} has no tensor; its text is {response.result[:200]!r}{why}",
            result=response.result,
        )
    return tensors[0] if len(tensors) == 1 else tensors


def remote_error(command: str, failure: Failure) -> RemoteError:
    """The error that a failed request raises in the controller.

    Args:
        command: of the request.
        failure: what the worker says of it.

    Returns:
        UnknownCommand, RequestCancelled, RemoteOutOfSpace, or else a plain RemoteError.
    """
    fields = {"command": command, "error_type": failure.type, "remote_traceback": failure.traceback}
    if failure.kind is FailureKind.UNKNOWN_COMMAND:
        return UnknownCommand(failure.message, **fields)
    if failure.kind is FailureKind.CANCELLED:
        return RequestCancelled(failure.message, **fields)
    if failure.kind is FailureKind.BAD_INPUT:
        return RemoteError(failure.message, **fields)
    trace = f"\n\n{failure.traceback}" if failure.traceback else ""
    message = f"{command!r} failed in the worker: {failure.type}: {failure.message}{trace}"
    if failure.needed_nbytes is not None and failure.free_nbytes is not None:
        return RemoteOutOfSpace(message, **fields, needed_nbytes=failure.needed_nbytes, free_nbytes=failure.free_nbytes)
    return RemoteError(message, **fields)
