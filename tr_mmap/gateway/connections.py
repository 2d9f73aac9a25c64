"""Connections of HTTP: uvicorn's protocol, with the limits that it lacks. Knows no route.

Too many connections are refused, and so is a request whose headers are too large, or whose framing two readers could
understand in two ways. A client that sends its headers too slowly, does not finish a body that nobody reads, or does
not read its response loses the connection. Whatever is refused here, no application sees.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar, Final

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .api import ErrorBody
from .errors import BadRequest, HeadersTooLarge, Overloaded, TooSlow
from .logs import log
from .payloads import JSON
from .sections import ServerConfig

__all__ = ["MOST_HEADERS", "MOST_HEAD_NBYTES", "Connection"]

MOST_HEAD_NBYTES: Final = 32 << 10
"""Of a request's first line and headers together."""

MOST_HEADERS: Final = 100

_MOST_PIPELINED: Final = 64  # uvicorn stops reading at the second one, but one read may bring thousands
_MOST_DYING: Final = 64  # connections over the limit that are told so; those beyond are closed without a word
_LINGER_S: Final = 2.0  # closed at once, with unread bytes, the client's kernel would throw the response away

_TYPES: Final[dict[int, type[Exception]]] = {408: TooSlow, 431: HeadersTooLarge, 503: Overloaded}


class _Refused(Exception):
    """Raised in a callback of the parser, which ends the request."""

    def __init__(self, status: int, text: str, reason: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.reason = reason


class Connection(HttpToolsProtocol):
    """One connection. The parser calls its ``on_…`` methods while it is fed.

    Attributes:
        limits: of the server.
    """

    limits: ClassVar[ServerConfig]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = log
        self._is_deaf = False  # what still comes is thrown away
        self._is_in_head = True  # the headers of the next request are not complete
        self._has_begun = False  # a byte of them is there
        self._has_moved = False  # while the parser was fed: headers were completed, or bytes of a body came
        self._unmoved_nbytes = 0  # since then: of headers, of trailers, of what chunks have beside their bytes
        self._head_nbytes = 0
        self._header_count = 0
        self._refused: _Refused | None = None
        self._active: RequestResponseCycle | None = None  # `cycle` is the last one, and pipelined ones wait for others
        self._last_words = b""
        self._timer: asyncio.TimerHandle | None = None  # for what the client owes
        self._write_timer: asyncio.TimerHandle | None = None

    def note_refusal(self, reason: str) -> None:
        """For metrics."""
        raise NotImplementedError

    @property
    def is_between_requests(self) -> bool:
        """Whether what comes next begins a request, and none is being answered."""
        is_clean = self._is_in_head and not self._has_begun and not self._unmoved_nbytes
        return is_clean and not self._is_deaf and self._is_idle()

    def unset_timers(self) -> None:
        """The client owes nothing now."""
        self._unset_timer()
        self._unset_keepalive_if_required()

    def close_when_written(self) -> None:
        """Close the connection; whoever takes nothing of its response loses it."""
        self._end()

    # -- what asyncio tells -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        over = len(self.connections) - self.limits.max_connections
        if over > _MOST_DYING:
            self.note_refusal("connections")
            self._is_deaf = True
            transport.abort()
        elif over > 0:
            most = self.limits.max_connections
            text = f"{most} connections are open already, [server] max_connections; close one, or try again"
            self._refuse(_Refused(503, text, "connections"))
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        self._has_moved = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # to nothing else: this request is answered, and is the last
            self._is_deaf = True
            self.cycle.keep_alive = False
            return
        except httptools.HttpParserError as error:
            self._refuse(
                self._refused or _Refused(400, f"this is no HTTP that can be taken: {_plain(error)}", "framing")
            )
            return
        self._unmoved_nbytes = 0 if self._has_moved else self._unmoved_nbytes + len(data)
        if self._unmoved_nbytes > MOST_HEAD_NBYTES:
            self._refuse(_too_large())
        elif self._is_in_head and (self._has_begun or self._is_idle()):
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None and not self.transport.is_closing():
            self._write_timer.cancel()
            self._write_timer = None

    # -- what the parser tells --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._raise(_Refused(400, f"more than {_MOST_PIPELINED} requests came without waiting", "pipelined"))
        self._has_begun, self._head_nbytes, self._header_count = True, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_head:
            return  # a trailer, which nobody asks for, and which must not pass for a header
        self._count(len(name) + len(value) + len(b": \r\n"))
        self._header_count += 1
        if self._header_count > MOST_HEADERS:
            self._raise(_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        try:
            self._check_head()
        except _Refused as error:
            self._raise(error)
        super().on_headers_complete()
        self._is_in_head, self._has_begun, self._has_moved = False, False, True
        self._unset_timer()

    def on_chunk_header(self) -> None:
        """A chunk's size is there."""
        self._has_moved = True

    def on_body(self, body: bytes) -> None:
        self._has_moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_head = True
        self._unset_timer()
        super().on_message_complete()

    def _raise(self, error: _Refused) -> None:
        """The parser wraps what a callback raises."""
        self._refused = error
        raise error

    def _count(self, nbytes: int) -> None:
        self._head_nbytes += nbytes
        if self._head_nbytes > MOST_HEAD_NBYTES:
            self._raise(_too_large())

    def _check_head(self) -> None:
        """
        Raises:
            _Refused: another reader could understand this request otherwise.
        """
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _Refused(505, "HTTP/1.1 and HTTP/1.0 are understood here", "framing")
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (version == "1.0" or len(codings) > 1 or codings[0].strip(b" \t").lower() != b"chunked"):
            raise _Refused(
                400, "the only Transfer-Encoding that is understood is chunked, once, in HTTP/1.1", "framing"
            )
        if self.parser.should_upgrade() and (codings or any(name == b"content-length" for name, _ in self.headers)):
            raise _Refused(400, "this does not change its protocol; send the body without Upgrade", "framing")
        if not self.url.startswith(b"/") and not self._names_own_host():
            raise _Refused(400, "the target of a request is a path, as /api/v1/python/execute", "framing")

    def _names_own_host(self) -> bool:
        """Whether the target is a whole URL with the host that the header Host has, too."""
        hosts = [value.lower() for name, value in self.headers if name == b"host"]
        scheme, _, rest = self.url.lower().partition(b"://")
        authority, slash, _ = rest.partition(b"/")
        return scheme in (b"http", b"https") and slash == b"/" and hosts == [authority]

    # -- responses --------------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which begins the next one that waits
        if self.transport.is_closing():
            self._watch_writing()
        elif self._is_idle():
            if self._last_words:
                self._say_last()
            elif not self._is_in_head:
                if self.expect_100_continue:  # the client may have the rest still to come, or may leave it out
                    self._say_last()
                else:
                    self._expect(self.limits.body_timeout_s, self._end)

    def _is_idle(self) -> bool:
        """Whether no request is being answered, or waits for that."""
        return (self._active is None or self._active.response_complete) and not self.pipeline

    def _refuse(self, refused: _Refused) -> None:
        """Answer what is no request; what came before it is answered first."""
        request_id = uuid.uuid4().hex
        self.note_refusal(refused.reason)
        log.info(
            "refused",
            extra={
                "request_id": request_id,
                "status": refused.status,
                "reason": refused.reason,
                "client": self.client[0] if self.client else "",
            },
        )
        self._is_deaf = True
        self._unset_timer()
        self._last_words = _response(refused, request_id)
        faulty = None if self._is_in_head else self.cycle
        if faulty is not None and not faulty.response_complete:  # its body is what is wrong
            faulty.disconnected = True
            faulty.message_event.set()
            if faulty is not self._active:
                self.pipeline.popleft()
            elif faulty.response_started:
                self._last_words = b""
                self._end()
                return
            else:
                self._active = None
        if self._is_idle():
            self._say_last()

    def _say_last(self) -> None:
        """Send the last words; then throw away what comes, for a while, until the client closes."""
        self._is_deaf = True
        if self._last_words:
            self.transport.write(self._last_words)
            self._last_words = b""
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._expect(_LINGER_S, self._end)
        else:  # TLS
            self._end()

    def _end(self) -> None:
        self.transport.close()
        self._watch_writing()

    # -- time -------------------------------------------------------------------------------------------------------

    def timeout_keep_alive_handler(self) -> None:
        self._end()

    def _expect_head(self) -> None:
        if self._timer is None:
            self._expect(self.limits.header_timeout_s, self._miss_head)

    def _miss_head(self) -> None:
        if self.flow.read_paused:  # it is not the client that is slow
            self._expect_head()
        elif self._has_begun and self._is_idle():
            text = f"the headers did not come within {self.limits.header_timeout_s:g} s, [server] header_timeout_s"
            self._refuse(_Refused(408, text, "slow_headers"))
        else:
            self._is_deaf = True
            self._end()

    def _expect(self, seconds: float, otherwise: Callable[[], None]) -> None:
        def ring() -> None:
            self._timer = None
            if not self.transport.is_closing():
                otherwise()

        self._unset_timer()
        self._timer = self.loop.call_later(seconds, ring)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_writing(self) -> None:
        """End the connection when the client takes nothing of its responses for too long."""
        if self._write_timer is None:
            left = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self.limits.body_timeout_s, self._look_at_writing, left)

    def _look_at_writing(self, former: int) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() < former:
            self._watch_writing()
        else:
            if former:
                self.note_refusal("slow_reader")
            self.transport.abort()


def _too_large() -> _Refused:
    text = f"the headers of a request may have {MOST_HEAD_NBYTES} bytes, and be {MOST_HEADERS}"
    return _Refused(431, text, "headers")


def _plain(error: httptools.HttpParserError) -> str:
    """What the parser says, without what the client sent."""
    return " ".join(str(error).split())[:100] if not isinstance(error, httptools.HttpParserCallbackError) else "its URL"


def _response(refused: _Refused, request_id: str) -> bytes:
    status = HTTPStatus(refused.status)
    said = ErrorBody(
        error=refused.text,
        status_code=status,
        type=_TYPES.get(refused.status, BadRequest).__name__,
        request_id=request_id,
    )
    body = msgspec.json.encode(said) + b"\n"
    headers = {
        "content-type": JSON,
        "content-length": str(len(body)),
        "connection": "close",
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "x-request-id": request_id,
        **({"retry-after": "1"} if status == 503 else {}),
    }
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
