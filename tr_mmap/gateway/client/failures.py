"""What a gateway's refusals are as exceptions: the same as where they were raised. Sends nothing."""

from __future__ import annotations

import inspect
from typing import Any, Final

import httpx

from ... import errors as base_errors
from ...errors import ResponseTimeout, TRException
from ...sandbox import errors as sandbox_errors
from ...store import errors as store_errors
from .. import errors as gateway_errors
from ..api import ErrorBody

__all__ = [
    "ClientClosed",
    "ConnectionLost",
    "GatewayError",
    "Unreachable",
    "error_of",
    "error_of_transport",
    "not_answered",
    "not_ended",
]


class GatewayError(TRException, RuntimeError):
    """An error of the gateway that has no other type here, or a response that is none of a gateway's.

    Attributes:
        status: of HTTP; 0 if there was none.
        type: of the error, as the gateway names it; empty if it does not.
        details: its fields.
        request_id: under which the gateway's log describes it.
    """

    status: int
    type: str
    details: dict[str, Any]
    request_id: str

    def __init__(
        self, message: str, *, status: int, type: str = "", details: dict[str, Any] | None = None, request_id: str = ""
    ) -> None:
        super().__init__(message, status=status, type=type, details=details or {}, request_id=request_id)


class Unreachable(TRException, ConnectionError):
    """No gateway listens there, or the connection to it cannot be made.

    Attributes:
        url: of the gateway.
    """

    url: str

    def __init__(self, message: str, *, url: str) -> None:
        super().__init__(message, url=url)


class ConnectionLost(Unreachable):
    """The connection ended before the response did. The gateway may have done what was asked."""


class ClientClosed(TRException, RuntimeError):
    """The client was closed before it was asked this."""


def _kinds(*modules: Any) -> dict[str, type[TRException]]:
    named = [getattr(module, name) for module in modules for name in module.__all__]
    return {each.__name__: each for each in named if isinstance(each, type) and issubclass(each, TRException)}


_KINDS: Final = _kinds(base_errors, sandbox_errors, store_errors, gateway_errors)
_MISSING: Final = {"str": "", "int": 0, "float": 0.0, "bool": False}  # by annotation: the gateway left it out


def error_of(body: ErrorBody) -> TRException:
    """The exception of an error's body."""
    details = body.details if isinstance(body.details, dict) else {}
    kind = _KINDS.get(body.type)
    if kind is None:
        return GatewayError(
            body.error, status=body.status_code, type=body.type, details=details, request_id=body.request_id
        )
    known = {**details, "request_id": body.request_id}
    given = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        if name in known:
            if isinstance(known[name], list) and str(parameter.annotation).startswith("tuple"):
                known[name] = tuple(known[name])  # JSON has none
            given[name] = known[name]
        elif parameter.default is parameter.empty:
            given[name] = _MISSING.get(str(parameter.annotation))
    error = kind(body.error, **given)
    for name, value in known.items():
        if not hasattr(TRException, name):  # a field, and no method of exceptions
            setattr(error, name, value)
    traceback = details.get("traceback")
    if isinstance(traceback, str) and traceback:
        error.add_note(traceback)  # the algorithm's, shown below our own where nobody catches it
    return error


def error_of_transport(error: httpx.HTTPError, url: str, what: str) -> TRException:
    """The exception for what kept a request, or its response, from its end.

    Args:
        error: of httpx, and none that the call's time is over.
        url: of the gateway.
        what: was asked, as ``"POST /api/v1/compute"``.
    """
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return Unreachable(f"no gateway answers at {url}: {_reason(error)}; is tr-mmap serve running there?", url=url)
    return ConnectionLost(f"the connection to {url} was lost during {what}: {_reason(error)}", url=url)


def not_answered(url: str, what: str, timeout_s: float) -> ResponseTimeout:
    """The exception for a response that did not come in time."""
    text = f"{url} did not answer {what} within {timeout_s:g} s; give it more by timeout_s"
    return ResponseTimeout(text, timeout_ms=1000 * timeout_s, command=what)


def not_ended(awaited: str, what: str, timeout_s: float) -> ResponseTimeout:
    """The exception for what the gateway has answered, and what did not end in time.

    Args:
        awaited: what it is, with ``{within}`` where the time is said.
        what: was asked.
        timeout_s: how long the call might take.
    """
    text = awaited.format(within=f"within {timeout_s:g} s")
    return ResponseTimeout(text, timeout_ms=1000 * timeout_s, command=what)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
