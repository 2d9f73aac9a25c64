"""One request, as routes see it, and the steps that all have in common: token, rate, body, answer. Knows no route."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..sandbox.values import MAX_DEPTH, check_depth
from .api import NAME
from .errors import BadRequest, NotFound, TooLarge, Unauthorized, UnsupportedMediaType
from .payloads import BINARY, JSON, JSON_LENGTH, Done, split_body
from .problems import describe, headers_of, status_of
from .tokens import Principal

__all__ = ["Call", "answer", "error_response", "json_response", "new_request_id"]

_T = TypeVar("_T")
_ID: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_NAME: Final = re.compile(NAME)
_MOST_DIGITS: Final = 20  # of a length; one that has more is too large by any of them
_MOST_VALUES: Final = 1 << 22
_ENVELOPE: Final = 2  # dictionaries around a value of the inputs
_PARSED_ASIDE: Final = 1 << 18  # bytes of JSON from which parsing would hold the loop up


@dataclass(slots=True)
class Call:
    """One request.

    Attributes:
        request: of HTTP.
        id: of the request; a run has it too.
        principal: whose token it has; None where a route needs none.
        what: the name of what it changes, for the audit log, where the path does not say it.
        began_s: when it came, by ``time.monotonic``.
    """

    request: Request
    id: str
    max_body_nbytes: int
    body_timeout_s: float
    principal: Principal | None = None
    what: str = ""
    began_s: float = field(default_factory=time.monotonic)
    _raw: bytearray | None = None

    @property
    def who(self) -> Principal:
        """Whose token it has.

        Raises:
            Unauthorized: there is none.
        """
        if self.principal is None:
            raise Unauthorized("this needs a token: send the header Authorization: Bearer TOKEN")
        return self.principal

    @property
    def client(self) -> str:
        """The address that it came from; empty if it is not known."""
        return self.request.client.host if self.request.client else ""

    def part(self, name: str) -> str:
        """A part of the path.

        Raises:
            NotFound: it is a name, and none that anything can have.
        """
        found = str(self.request.path_params[name])
        if name == "name" and not _NAME.search(found):
            raise NotFound(f"nothing can have the name {found!r:.200}")
        return found

    def query(self, kind: type[_T]) -> _T:
        """The parameters behind the path's question mark.

        Raises:
            BadRequest: there is one that is not documented, or a wrong value.
        """
        given: dict[str, str] = {}
        for name, value in self.request.query_params.multi_items():
            if name in given:
                raise BadRequest(f"{name!r:.80} is given twice")
            given[name] = value
        try:
            return msgspec.convert(given, kind, strict=False)
        except msgspec.ValidationError as error:
            raise BadRequest(_in_words(str(error), "the query")) from None

    async def body(self, kind: type[_T], *, is_needed: bool = True) -> tuple[_T, memoryview]:
        """The body's JSON, and its binary part.

        Args:
            kind: what it says.
            is_needed: whether an empty body is refused; else it stands for one that says nothing.

        Raises:
            BadRequest: it is not what is documented.
            TooLarge: it is.
        """
        raw = memoryview(await self.read())
        if not raw and not is_needed:
            return kind(), raw
        content_type = self.request.headers.get("content-type", JSON)
        text, binary = split_body(raw, content_type, self.request.headers.get(JSON_LENGTH))
        if len(text) > _PARSED_ASIDE:
            return await asyncio.to_thread(_decode, text, kind), binary
        return _decode(text, kind), binary

    async def read(self) -> bytearray:
        """All bytes of the body, also when they were read before.

        Raises:
            BadRequest: they did not come in time, or not all of them.
            TooLarge: there are too many.
            UnsupportedMediaType: they are compressed.
        """
        if self._raw is None:
            self._raw = await self._receive()
        return self._raw

    async def _receive(self) -> bytearray:
        if self.request.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UnsupportedMediaType("a body is taken as it is, without Content-Encoding")
        said = self.request.headers.get("content-length", "")
        if said.isascii() and said.isdigit() and int(said[:_MOST_DIGITS]) > self.max_body_nbytes:
            raise self._too_large()
        found = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout_s):
                async for chunk in self.request.stream():
                    if len(found) + len(chunk) > self.max_body_nbytes:
                        raise self._too_large()
                    found += chunk
        except ClientDisconnect:
            raise BadRequest("the connection ended before the body was whole") from None
        except TimeoutError:
            raise BadRequest(f"the body did not come within {self.body_timeout_s:g} s") from None
        return found

    def _too_large(self) -> TooLarge:
        return TooLarge(f"a body may have {self.max_body_nbytes} bytes here", limit_nbytes=self.max_body_nbytes)


def _decode(text: memoryview, kind: type[_T]) -> _T:
    if not len(text):
        raise BadRequest("the body is empty, and should be JSON")
    raw = bytes(text)
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > _MOST_VALUES:  # each takes 50 bytes and more, once parsed
        raise BadRequest(
            f"the JSON has more than {_MOST_VALUES} values; give large tensors as base64, or in a binary part"
        )
    try:
        check_depth(raw, MAX_DEPTH + _ENVELOPE)
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(_in_words(str(error))) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON that can be taken: {error}") from None


def _in_words(text: str, whole: str = "the body") -> str:
    """What msgspec says, with the path in front as people write it."""
    what, _, at = text.partition(" - at `$")
    place = at.rstrip("`").lstrip(".")
    return f"{place}: {what[:1].lower()}{what[1:]}" if place else f"{whole}: {what[:1].lower()}{what[1:]}"


def new_request_id(given: str | None) -> str:
    """The id that a client has given a request, if it is one; else a new one."""
    return given if given is not None and _ID.fullmatch(given) else uuid.uuid4().hex


def json_response(call: Call, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of JSON."""
    return Response(msgspec.json.encode(body), status, {"x-request-id": call.id, **(headers or {})}, JSON)


def done_response(call: Call, done: Done, body: Any, *, is_binary: bool) -> Response:
    """The response of a run; with a binary part if the client takes one."""
    text = msgspec.json.encode(body)
    if not is_binary:
        return Response(text, 200, {"x-request-id": call.id}, JSON)
    headers = {"x-request-id": call.id, "tr-json-length": str(len(text))}
    return Response(b"".join([text, *done.pieces]), 200, headers, BINARY)


def error_response(call: Call, error: BaseException) -> Response:
    """The response of what went wrong."""
    return json_response(call, describe(error, call.id), status_of(error), headers_of(error))


async def answer(
    call: Call, do: Callable[[Call], Awaitable[Response]], on_fault: Callable[[BaseException], None]
) -> Response:
    """What a route answers, whatever it raises.

    Args:
        call: the request.
        do: the route.
        on_fault: is told of errors that no client has made.
    """
    try:
        return await do(call)
    except asyncio.CancelledError as error:
        if type(error) is asyncio.CancelledError:  # this task is; RunCancelled is one of its kind
            raise
        return error_response(call, error)
    except Exception as error:
        if status_of(error) == 500:
            on_fault(error)
        return error_response(call, error)
