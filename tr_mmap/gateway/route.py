"""What the table of routes says of each. Knows no route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import Response

from .api import PREFIX
from .calls import Call
from .scheduler import Job
from .service import Service

__all__ = ["PREFIX", "Endpoint", "Route"]

Endpoint = Callable[[Service, Call], Awaitable[Response]]


class _RecordId(StringConvertor):
    """The id of a record in a path. It may have slashes; behind ``/tensors/`` comes a tensor's name."""

    regex = r"(?s:(?:(?!/tensors/).)*)"  # an empty one too, lest the framework leads to the path of all records


class _TensorName(StringConvertor):
    """The name of a record's tensor in a path."""

    regex = r"(?s:.*)"  # line breaks too: the framework's own leaves one at the end out, and finds another tensor


register_url_convertor("tr_record_id", _RecordId())
register_url_convertor("tr_tensor", _TensorName())


@dataclass(frozen=True)
class Route:
    """One route.

    Attributes:
        method: of HTTP.
        path: with its parts in braces.
        scope: that a token must grant; None if none is needed. The endpoint itself checks one with a part of the path.
        endpoint: answers it.
        summary: one line for the documentation.
        body: type of the request's body; None for none.
        needs_body: whether a request without one is refused.
        query: type of the parameters behind the question mark; None for none.
        result: type of the response's body.
        status: of the response.
        errors: other statuses that it may have, of errors as a rule, beside those of all.
        examples: of the body, by name.
        is_hot: whether it goes past the framework.
        is_stream: whether the response is a stream of events.
        takes_binary: whether the request's body may have a binary part.
        gives_binary: whether the response's may, if the client takes one.
        takes_key: whether a request with an idempotency key that was answered gets the same response again.
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
    takes_key: bool = False
    needs_body: bool = True
    takes_binary: bool = False
    gives_binary: bool = False
    query: type | None = None
    begin: Callable[[Service, Call, bytes], Job] | None = None
    end: Callable[[Call, Any], Response] | None = None

    @property
    def pattern(self) -> str:
        """The path, for the framework."""
        return self.path.replace("{record_id}", "{record_id:tr_record_id}").replace("{tensor}", "{tensor:tr_tensor}")
