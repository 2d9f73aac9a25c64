"""What the table of routes says of each. Knows no route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.responses import Response

from .calls import Call
from .scheduler import Job
from .service import Service

__all__ = ["PREFIX", "Endpoint", "Route"]

PREFIX: Final = "/api/v1"
Endpoint = Callable[[Service, Call], Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    """One route.

    Attributes:
        method: of HTTP.
        path: with its parts in braces.
        scope: that a token must grant; None if none is needed.
        endpoint: answers it.
        summary: one line for the documentation.
        body: type of the request's body; None for none.
        result: type of the response's body.
        status: of the response.
        errors: other statuses that it may have, beside those of all.
        examples: of the body, by name.
        is_hot: whether it goes past the framework.
        is_stream: whether the response is a stream of events.
        begin, end: of a hot one: begin what a small body of JSON asks for, and the response once it is done; see
            ``short_way.py``.
    """

    method: str
    path: str
    scope: str | None
    endpoint: Endpoint
    summary: str
    body: type | None = None
    result: type | None = None
    status: int = 200
    errors: tuple[int, ...] = ()
    examples: dict[str, Any] = field(default_factory=dict)
    is_hot: bool = False
    is_stream: bool = False
    begin: Callable[[Service, Call, bytes], Job] | None = None
    end: Callable[[Call, Any], Response] | None = None
