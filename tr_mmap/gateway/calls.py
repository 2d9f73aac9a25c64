"""One request, as routes see it, and the steps that all have in common: token, rate, body, answer. Knows no route."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..sandbox.values import MAX_DEPTH, check_depth
from .api import IDEMPOTENCY_KEY, NAME
from .aside import LARGE_NBYTES, aside
from .complaints import explain
from .errors import BadRequest, NotFound, TooLarge, TooSlow, Unauthorized, UnsupportedMediaType
from .payloads import BINARY, JSON, JSON_LENGTH, Done, split_body
from .problems import describe, headers_of, status_of
from .tokens import Principal

__all__ = ["KEY_HEADER", "Call", "answer", "decode_body", "error_response", "json_response", "new_request_id"]

_T = TypeVar("_T")
_ID: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_NAME: Final = re.compile(NAME)
KEY_HEADER: Final = IDEMPOTENCY_KEY.lower().encode()
_MOST_DIGITS: Final = 20  # of a length; one that has more is too large by any of them
_MOST_VALUES: Final = 1 << 22
_ENVELOPE: Final = 2  # dictionaries around a value of the inputs


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of a route that has none."""


@dataclass(slots=True)
class Call:
    """One request.

    Attributes:
        scope: of ASGI.
        receive: of ASGI.
        max_body_nbytes: that it may have.
        body_timeout_s: in which its body must have come.
        id: of the request.
        principal: whose token it has; None where a route needs none.
        what: the name of what it changes, for the audit log, where the path does not say it.
        began_s: when it came, by ``time.monotonic``.
        is_final: whether what it asked for has begun, and must not be done again, whatever has come of it.
    """

    scope: dict[str, Any]
    receive: Callable[[], Awaitable[Any]]
    max_body_nbytes: int
    body_timeout_s: float
    id: str = ""
    principal: Principal | None = None
    what: str = ""
    began_s: float = field(default_factory=time.monotonic)
    is_final: bool = False
    _raw: bytearray | None = None
    _request: Request | None = None
    _headers: dict[bytes, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._headers = dict(reversed(self.scope["headers"]))
        self.id = new_request_id(self.header(b"x-request-id"))

    def header(self, name: bytes) -> str | None:
        """A header of the request; the first one of its name.

        Args:
            name: in small letters.
        """
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    def headers(self, name: bytes) -> list[str]:
        """All headers of a name."""
        return [value.decode("latin-1") for each, value in self.scope["headers"] if each == name]

    @property
    def has_key(self) -> bool:
        """Whether the client can ask again for what comes of it; see :mod:`.idempotency`."""
        return KEY_HEADER in self._headers

    @property
    def request(self) -> Request:
        """The request as the framework has it. The hot routes do without: making it takes time."""
        if self._request is None:
            self._request = Request(self.scope, self.receive)
        return self._request

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
        return str((self.scope.get("client") or ("",))[0])

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
            raise BadRequest(_in_words(error, kind, given, "the query")) from None

    def check_query(self) -> None:
        """
        Raises:
            BadRequest: there are parameters, and the route has none.
        """
        if self.scope.get("query_string"):
            self.query(_Nothing)

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
        content_type = self.header(b"content-type")
        text, binary = split_body(
            raw, JSON if content_type is None else content_type, self.header(JSON_LENGTH.encode())
        )
        return await aside(lambda: decode_body(text, kind), len(text)), binary

    async def read(self) -> bytearray:
        """All bytes of the body, also when they were read before.

        Raises:
            TooSlow: they did not come in time.
            BadRequest: not all of them came.
            TooLarge: there are too many.
            UnsupportedMediaType: they are compressed.
        """
        if self._raw is None:
            self._raw = await self._receive()
        return self._raw

    async def _receive(self) -> bytearray:
        coding = self.header(b"content-encoding")
        if coding is not None and coding.strip().lower() != "identity":
            raise UnsupportedMediaType("a body is taken as it is, without Content-Encoding")
        said = self.header(b"content-length") or ""
        if said.isascii() and said.isdigit() and int(said[:_MOST_DIGITS]) > self.max_body_nbytes:
            raise self._too_large()
        found = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout_s):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise BadRequest("the connection ended before the body was whole")
                    chunk = message.get("body", b"")
                    if len(found) + len(chunk) > self.max_body_nbytes:
                        raise self._too_large()
                    found += chunk
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise TooSlow(f"the body did not come within {self.body_timeout_s:g} s, [server] body_timeout_s") from None
        return found

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"a body may have {self.max_body_nbytes} bytes here; see [server] max_body_mb",
            limit_nbytes=self.max_body_nbytes,
        )


_decoders: Final[dict[type, msgspec.json.Decoder[Any]]] = {}


def _decoder(kind: type[_T]) -> msgspec.json.Decoder[_T]:
    found = _decoders.get(kind)
    if found is None:
        found = _decoders[kind] = msgspec.json.Decoder(kind)
    return found


def decode_body(text: memoryview | bytes, kind: type[_T]) -> _T:
    """What a body of JSON says.

    Raises:
        BadRequest: it is not what is documented.
    """
    if not len(text):
        raise BadRequest("the body is empty, and should be JSON")
    raw = bytes(text)
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > _MOST_VALUES:  # each takes 50 bytes and more, once parsed
        raise BadRequest(
            f"the JSON has more than {_MOST_VALUES} values; give large tensors as base64, or in a binary part"
        )
    try:
        check_depth(raw, MAX_DEPTH + _ENVELOPE)
    except ValueError:
        raise BadRequest(f"a value of the JSON is nested deeper than {MAX_DEPTH} levels") from None
    try:
        decoded: _T = _decoder(kind).decode(raw)
        return decoded
    except msgspec.ValidationError as error:
        raise BadRequest(_in_words(error, kind, raw)) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON that can be taken: {error}") from None


def _in_words(error: Exception, kind: Any, given: Any, whole: str = "the body") -> str:
    """What msgspec says, with the place in front as people write it."""
    text = str(error)
    if isinstance(given, bytes):
        has_keys = "[...]" in text or "`key`" in text
        given = _parsed(given) if has_keys and len(given) <= LARGE_NBYTES else None
    place, what = explain(text, kind, given)
    return f"{place or whole}: {what}"


def _parsed(raw: bytes) -> Any:
    """What is in a body that is wrong, to say where; None if it is no JSON at all."""
    try:
        return json.loads(raw)
    except ValueError:
        return None


def new_request_id(given: str | None) -> str:
    """The id that a client has given a request, if it is one; else a new one."""
    return given if given is not None and _ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


class Plain(Response):
    """A response whose body is there. As the framework's, made in a fraction of its time."""

    def __init__(self, body: bytes, status: int, headers: dict[str, str], media_type: str) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.media_type = media_type
        said = {"content-type": media_type, "content-length": str(len(body)), **headers}
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in said.items()]


def json_response(call: Call, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of JSON."""
    return Plain(msgspec.json.encode(body) + b"\n", status, {"x-request-id": call.id, **(headers or {})}, JSON)


def done_response(call: Call, done: Done, body: Any, *, is_binary: bool) -> Response:
    """The response of a run; with a binary part if the client takes one."""
    text = msgspec.json.encode(body)
    if not is_binary:
        return Plain(text + b"\n", 200, {"x-request-id": call.id}, JSON)
    headers = {"x-request-id": call.id, "tr-json-length": str(len(text))}
    return Plain(b"".join([text, *done.pieces]), 200, headers, BINARY)


def error_response(call: Call, error: BaseException) -> Response:
    """The response of what went wrong. Clients send again what they are told to, and nothing that is final."""
    headers = headers_of(error)
    if call.is_final:
        headers.pop("retry-after", None)
    return json_response(call, describe(error, call.id), status_of(error), headers)


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
