"""The short way of small requests to hot routes, past the server's and the framework's machinery for a request.

A connection that looks at what comes before uvicorn's parser does. It answers a request itself if all of
it came at once and its head is plain; clients that keep their connection send the same head again and again, so what
was found of it is kept. All other requests take the long way, as if this were not there. On both ways the front checks
the same, and the same functions make the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .app import Front, with_usual
from .calls import Call, error_response
from .connections import Connection
from .payloads import JSON
from .problems import status_of
from .route import Route
from .scheduler import Job
from .sections import ServerConfig

__all__ = ["Head", "Heads", "protocol_of"]

_END: Final = b"\r\n\r\n"
_MOST_HEAD_NBYTES: Final = 4096
_MOST_BODY_NBYTES: Final = 64 << 10
_MOST_HEADS: Final = 1024
_MOST_WAITING_NBYTES: Final = 64 << 10  # of what a client sends before it has its answer
# A head with any other header takes the long way: it may mean something there.
_PLAIN: Final = frozenset(
    {b"host", b"content-length", b"content-type", b"authorization", b"accept", b"accept-encoding", b"user-agent"}
    | {b"connection"}
)
_PLAIN_ACCEPTS: Final = (b"*/*", b"application/json")


class Head(NamedTuple):
    """A plain head.

    Attributes:
        route: a hot one.
        path: as the request has it.
        headers: names in small letters, and values.
        nbytes: of the body.
    """

    route: Route
    path: str
    headers: list[tuple[bytes, bytes]]
    nbytes: int


class Heads:
    """What was found of heads, by their bytes.

    Args:
        front: whose hot routes, and hosts, they are for.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._found: dict[bytes, Head | None] = {}

    def find(self, raw: bytes) -> Head | None:
        """The head that these bytes are, up to the empty line; None if it is not plain."""
        try:
            return self._found[raw]
        except KeyError:
            found = self._parse(raw)
            if len(self._found) >= _MOST_HEADS:
                self._found.clear()
            self._found[raw] = found
            return found

    def _parse(self, raw: bytes) -> Head | None:
        seen = _Seen()
        parser = httptools.HttpRequestParser(seen)
        try:
            parser.feed_data(raw + _END)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        headers = dict(seen.headers)
        length = headers.get(b"content-length", b"")
        route = self._front.hot.get((parser.get_method().decode("ascii"), seen.url.decode("latin-1")))
        is_plain = (
            route is not None
            and route.begin is not None
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and headers.keys() <= _PLAIN
            and len(headers) == len(seen.headers)  # each once
            and length.isdigit()
            and int(length) <= min(_MOST_BODY_NBYTES, self._front.max_body_nbytes)
            and headers.get(b"content-type", JSON.encode()) == JSON.encode()
            and headers.get(b"accept", b"*/*") in _PLAIN_ACCEPTS
            and headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
            and b"host" in headers
            and self._front.is_known_host(headers[b"host"].decode("latin-1"))
        )
        return Head(route, route.path, seen.headers, int(length)) if is_plain and route is not None else None


class _Seen:
    """What a parser finds in a head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


async def _nothing() -> dict[str, Any]:
    """What a client sends behind its request, as ASGI has it."""
    return {"type": "http.disconnect"}


class _ShortWay(Connection):
    """One connection. See the module's docstring."""

    front: ClassVar[Front]
    heads: ClassVar[Heads]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._job: Job | None = None  # of the request that takes the short way now
        self._waiting = b""  # what came meanwhile
        self._is_ending = False

    def data_received(self, data: bytes) -> None:
        if self._job is not None:
            self._waiting += data
            if len(self._waiting) > _MOST_WAITING_NBYTES:
                self.flow.pause_reading()
            return
        if self.is_between_requests and not self.flow.write_paused and self.front.is_open:
            end = data.find(_END, 0, _MOST_HEAD_NBYTES)
            if end > 0:
                head = self.heads.find(data[:end])
                if head is not None and len(data) == end + len(_END) + head.nbytes:
                    self.unset_timers()
                    self._begin(head, data[end + len(_END) :])
                    return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._job is not None:
            self.front.service.scheduler.cancel(self._job)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._job is not None:
            self._is_ending = True
        else:
            super().shutdown()

    def _begin(self, head: Head, body: bytes) -> None:
        scope = {"method": "POST", "path": head.path, "headers": head.headers, "client": self.client}
        call = Call(scope, _nothing, 0, 0.0)
        try:
            if head.route.scope is not None:
                self.front.admit(head.route.scope, call)
            assert head.route.begin is not None
            job = head.route.begin(self.front.service, call, body)
        except Exception as error:
            self._answer(call, head, self._response_of(call, error))
            return
        self._job = job
        job.future.add_done_callback(lambda _: self._end_of_job(call, head, job))

    def _end_of_job(self, call: Call, head: Head, job: Job) -> None:
        assert head.route.end is not None
        call.is_final = job.is_final
        try:
            response = head.route.end(call, job.future.result())
        except (Exception, asyncio.CancelledError) as error:  # RunCancelled is one of the latter
            response = self._response_of(call, error)
        self._job = None
        self._answer(call, head, response)
        self.flow.resume_reading()
        waiting, self._waiting = self._waiting, b""
        if waiting and not self.transport.is_closing():
            self.data_received(waiting)

    def _response_of(self, call: Call, error: BaseException) -> Response:
        if status_of(error) == 500:
            self.front.tell_fault(call, error)
        return error_response(call, error)

    def _answer(self, call: Call, head: Head, response: Response) -> None:
        is_last = self._is_ending or not self.front.is_open
        if not self.transport.is_closing():
            lines = [STATUS_LINE[response.status_code]]
            for name, value in (*self.server_state.default_headers, *with_usual(response.raw_headers, call)):
                lines += (name, b": ", value, b"\r\n")
            if is_last:
                lines.append(b"connection: close\r\n")
            self.transport.write(b"".join([*lines, b"\r\n", response.body]))
            if is_last:
                self.close_when_written()
            else:
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        self.server_state.total_requests += 1
        self.front.finish(call, head.route.path, response.status_code)


def protocol_of(app: Front, config: ServerConfig, saw_refusal: Callable[[str], None]) -> type[HttpToolsProtocol]:
    """The protocol of a server's connections.

    Args:
        app: to which requests go.
        config: the limits of the connections.
        saw_refusal: is told the reason of each refusal, for metrics.
    """

    class Protocol(_ShortWay):
        limits = config
        front = app
        heads = Heads(app)

        def note_refusal(self, reason: str) -> None:
            saw_refusal(reason)

    return Protocol
