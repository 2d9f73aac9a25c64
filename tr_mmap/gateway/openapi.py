"""The description of the routes as OpenAPI: made of the table of routes and of the types of their bodies."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final

import msgspec

from . import api, store_api
from .idempotency import KEY
from .metrics import CONTENT_TYPE
from .payloads import BINARY, JSON
from .route import Route
from .routes import ROUTES

__all__ = ["describe_routes"]

_TEXT: Final = {"type": "string"}
_PART: Final = re.compile(r"\{(\w+)\}")
_BYTES: Final = {"schema": {"type": "string", "format": "binary"}}
_KEY: Final = {
    "name": api.IDEMPOTENCY_KEY,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": KEY},
    "description": "A request with the key and the body of an earlier one gets that one's response.",
}
_TWO_PARTS: Final = (
    f"A body of type `{BINARY}` is JSON, and a binary part, in which its tensors lie. It needs the header "
    "`TR-JSON-Length`: how many of its bytes are JSON."
)
_OF_ALL: Final = (400, 403, 500, 503)  # 403 is for scripts of other pages, too; 503 for a gateway that is about to end
_WITH_TOKEN: Final = (401, 429)
_WITH_BODY: Final = (413, 415)
_ABOUT: Final = """Algorithms, models and tasks, run in a sandbox, on tensors.

Every error has the same body. Before a route sees it, a request may also be answered 405 (no such method; the header
Allow names those that there are), 408 (its headers or its body came too slowly), 431 (its headers are too large) or 505
(another version of HTTP). Every response has the header `X-Request-ID`: the request's own, if it is of 1 to 64 letters,
digits, dots, hyphens and underscores, and else a new one."""
_HEADERS: Final[dict[int, dict[str, Any]]] = {
    401: {"WWW-Authenticate": "How to give a token."},
    429: {"Retry-After": "When to try again, in seconds."},
}
_LOCATION: Final = {"Location": {"description": "The path of the task.", "schema": {"type": "string"}}}
_PARTS: Final = {
    "name": {"type": "string", "pattern": api.NAME},
    "task_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "store": {"type": "string", "pattern": store_api.STORE_NAME},
    "record_id": {"type": "string", "minLength": 1, "maxLength": 255},
    "tensor": {"type": "string", "minLength": 1},
}


def describe_routes(version: str) -> dict[str, Any]:
    """The document.

    Args:
        version: of the package.
    """
    types = {each for route in ROUTES for each in (route.body, route.result) if each not in (None, bytes)}
    types |= {api.ErrorBody, api.Health}
    ordered = sorted(types, key=lambda each: each.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    paths["/healthz"] = {
        "get": _outside("Whether the gateway serves.", "healthz", by_type, (), by_type[api.Health], JSON)
    }
    paths["/metrics"] = {
        "get": _outside(
            "The gateway's figures, as Prometheus reads them.", "metrics", by_type, _WITH_TOKEN, _TEXT, CONTENT_TYPE
        )
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tr_mmap gateway",
            "version": version,
            "description": _ABOUT,
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
        "security": [{"token": []}],
    }


def _operation(route: Route, by_type: dict[type, Any]) -> dict[str, Any]:
    error = by_type[api.ErrorBody]
    result = by_type.get(route.result, {}) if route.result is not None else {}
    if route.is_stream:
        result = _event(result)
    answers: dict[str, Any] = {
        str(route.status): _response(
            HTTPStatus(route.status).phrase, result, "text/event-stream" if route.is_stream else JSON
        )
    }
    statuses = {*_OF_ALL, *route.errors, *((409, 422) if route.takes_key else ())}
    if route.scope is not None:
        statuses.update(_WITH_TOKEN)
    if route.body is not None:
        statuses.update(_WITH_BODY)
    if "{" in route.path:
        statuses.add(404)
    for status in sorted(statuses):
        answers[str(status)] = _response(HTTPStatus(status).phrase, error if status >= 400 else result, status=status)
    if route.result is api.TaskStarted:
        answers[str(route.status)]["headers"] = _LOCATION
    if route.gives_binary or route.result is bytes:
        answers[str(route.status)]["content"][BINARY] = _BYTES
    said: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.endpoint.__name__.lstrip("_"),
        "description": f"Needs a token with the scope `{route.scope}`.",
        "responses": answers,
    }
    parts = _PART.findall(route.path)
    parameters = [{"name": each, "in": "path", "required": True, "schema": _PARTS[each]} for each in parts]
    if route.query is not None:
        parameters += _query_of(route.query)
    if route.takes_key:
        parameters.append(_KEY)
    if parameters:
        said["parameters"] = parameters
    if route.body is not None:
        examples = {name: {"value": value} for name, value in route.examples.items()}
        said["requestBody"] = {
            "required": route.needs_body,
            "content": {JSON: {"schema": by_type[route.body], "examples": examples}},
        }
        if route.takes_binary:
            said["requestBody"]["content"][BINARY] = _BYTES
            said["requestBody"]["description"] = _TWO_PARTS
    return said


def _query_of(kind: type) -> list[dict[str, Any]]:
    """The parameters behind a path's question mark, which are optional."""
    found = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in found.items()]


def _outside(
    summary: str, name: str, by_type: dict[type, Any], statuses: tuple[int, ...], result: Any, content_type: str
) -> dict[str, Any]:
    """A route that is not in the table."""
    answers = {"200": _response(HTTPStatus.OK.phrase, result, content_type)}
    for status in sorted({*_OF_ALL, *statuses}):
        answers[str(status)] = _response(HTTPStatus(status).phrase, by_type[api.ErrorBody], status=status)
    said: dict[str, Any] = {"summary": summary, "operationId": name, "responses": answers}
    return said if 401 in statuses else {**said, "security": []}


def _event(data: Any) -> dict[str, Any]:
    """One server-sent event."""
    text = {"type": "string", "contentMediaType": JSON, "contentSchema": data}
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": text}, "required": ["event", "data"]}


def _response(text: str, schema: Any, content_type: str = JSON, status: int = 200) -> dict[str, Any]:
    said: dict[str, Any] = {"description": text, "content": {content_type: {"schema": schema}}}
    headers = _HEADERS.get(status)
    if headers:
        said["headers"] = {
            name: {"description": about, "required": True, "schema": {"type": "string"}}
            for name, about in headers.items()
        }
    return said
