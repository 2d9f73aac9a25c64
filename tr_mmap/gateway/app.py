"""The application: routes behind a front that every request passes. Speaks ASGI; listens nowhere."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from . import api
from .calls import Call, answer, error_response, json_response
from .config import is_loopback
from .errors import BadRequest, Forbidden, NotFound, Overloaded, Unauthorized
from .logs import log
from .metrics import CONTENT_TYPE
from .openapi import describe_routes
from .route import Route
from .routes import ROUTES
from .service import Service

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["Front", "make_app"]

Scope = dict[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_CHANGES: Final = frozenset({"POST", "PUT", "DELETE", "PATCH"})
_MOST_HOSTS: Final = 256


class Front:
    """What every request passes: checks of who asks and from where, limits, metrics, the log.

    Args:
        gateway: whose requests they are.

    Attributes:
        hot: the hot routes, by method and path.
        max_body_nbytes: of a request.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._config = config = gateway.config
        server = config.server
        self.max_body_nbytes = server.max_body_mb << 20
        names = {"localhost", "127.0.0.1", "[::1]", *server.allowed_hosts}
        if server.host not in ("0.0.0.0", "::"):
            names.add(server.host)
        self._hosts = frozenset(each.lower() for each in names)
        self._known_hosts: dict[str, bool] = {}  # what was found of those that were asked for
        self._is_any_host = "*" in names
        self._origins = frozenset(each.rstrip("/").lower() for each in server.allowed_origins)
        self.hot = {(each.method, each.path): each for each in ROUTES if each.is_hot}
        self._framework = _make_framework(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":  # there are no others
            await send({"type": "websocket.close", "code": 1000})
            return
        call = Call(scope, receive, self.max_body_nbytes, self._config.server.body_timeout_s)
        scope.setdefault("state", {})["call"] = call
        scope["tr.route"] = ""
        status = 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_passed_on(call)]
            await send(message)

        try:
            refusal = self._refusal(call)
            if refusal is not None:
                await refusal(scope, receive, note)
                return
            await self._gateway.start()
            path = get_route_path(scope) if scope.get("root_path") else scope["path"]
            hot = self.hot.get((scope["method"], path))
            if hot is not None:
                response = await self.serve(hot, call)
                status = response.status_code
                await _send_at_once(response, call, send)
            else:
                await self._framework(scope, receive, note)
        finally:
            self.finish(call, scope["tr.route"], status)

    @property
    def is_open(self) -> bool:
        """Whether it has started, and is not about to end."""
        return self._gateway.has_started and not self._gateway.is_closing

    @property
    def service(self) -> Service:
        """Of its gateway, which has started."""
        return self._gateway.service

    async def serve(self, route: Route, call: Call) -> Response:
        """Answer a request of a route."""
        call.scope["tr.route"] = route.path

        async def do(call: Call) -> Response:
            if route.scope is not None:
                self.admit(route.scope, call)
            return await route.endpoint(self._gateway.service, call)

        return await answer(call, do, lambda error: self.tell_fault(call, error))

    def admit(self, scope: str, call: Call) -> None:
        """Let a request pass.

        Raises:
            Unauthorized, Forbidden, RateLimited: the request's token does not grant it.
        """
        scheme, _, token = (call.header(b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthorized("this needs a token: send the header Authorization: Bearer TOKEN; see tr-mmap token")
        principal = call.principal = self._gateway.tokens.verify(token.strip())
        self._gateway.rates.take(principal.token_id, time.monotonic())
        principal.check(scope)

    def _refusal(self, call: Call) -> Response | None:
        """The answer to a request that no route should see."""
        hosts = [value for name, value in call.scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self.is_known_host(hosts[0].decode("latin-1")):
            return error_response(
                call, BadRequest("the header Host names no host of this gateway; see [server] allowed_hosts")
            )
        origin = call.header(b"origin")
        if origin is not None and origin.rstrip("/").lower() not in self._origins and not self._is_own(origin, call):
            return error_response(
                call, Forbidden("scripts of other pages may not ask here; see [server] allowed_origins")
            )
        if self._gateway.is_closing:
            return error_response(call, Overloaded("the gateway is about to end; try again", retry_after_s=1.0))
        return None

    def is_known_host(self, host: str) -> bool:
        """Whether requests may have this in ``Host``."""
        known = self._known_hosts.get(host)
        if known is None:
            known = self._look_at_host(host)
            if len(self._known_hosts) < _MOST_HOSTS:
                self._known_hosts[host] = known
        return known

    def _look_at_host(self, host: str) -> bool:
        try:
            found = urlsplit(f"//{host}")
            name, port = found.hostname or "", found.port
        except ValueError:
            return False
        del port  # proxies have others
        shown = f"[{name}]" if ":" in name else name
        return (
            self._is_any_host
            or shown.lower() in self._hosts
            or (is_loopback(name) and is_loopback(self._config.server.host))
        )

    def _is_own(self, origin: str, call: Call) -> bool:
        """Whether a page of this gateway asks: its documentation, for example."""
        return urlsplit(origin).netloc.lower() == (call.header(b"host") or "").lower()

    def finish(self, call: Call, route: str, status: int) -> None:
        """A request was answered."""
        seconds = time.monotonic() - call.began_s
        gateway, method = self._gateway, call.scope["method"]
        subject = call.principal.subject if call.principal is not None else ""
        gateway.metrics.saw_request(method, route or "other", status, seconds)
        if self._config.server.access_log:
            gateway.request_log.note(
                request_id=call.id,
                method=method,
                route=route or "other",
                status=status,
                duration_ms=round(1000 * seconds, 3),
                subject=subject,
            )
        if status in (401, 403, 429) or (method in _CHANGES and route not in _RUNS):
            gateway.audit.note(
                request_id=call.id,
                subject=subject,
                method=method,
                path=call.scope["path"][:300],
                status=status,
                client=(call.scope.get("client") or ("",))[0],
            )

    def tell_fault(self, call: Call, error: BaseException) -> None:
        """An error that no client has made."""
        log.error("a fault of the gateway", extra={"request_id": call.id}, exc_info=error)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start and end with the server."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._gateway.start()
                except Exception as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._gateway.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _passed_on(call: Call) -> list[tuple[bytes, bytes]]:
    """The headers that a response has from its request."""
    traceparent = call.header(b"traceparent")
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return []
    return [(b"traceparent", traceparent.encode())]


async def _send_at_once(response: Response, call: Call, send: Send) -> None:
    """Send a response whose body is there, with fewer steps than the response itself takes."""
    headers = [*response.raw_headers, *_passed_on(call)]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


_RUNS: Final = frozenset({"/api/v1/python/execute", "/api/v1/compute"})


def _make_framework(front: Front) -> FastAPI:
    """The framework's application: it finds the route of a path, and makes the documentation."""
    framework = FastAPI(
        title="tr_mmap gateway",
        description="Algorithms, models and tasks, run in a sandbox, on tensors.",
        version="1",
        docs_url="/docs",
        redoc_url=None,
        openapi_url="/openapi.json",
    )

    def endpoint_of(route: Route) -> Any:
        async def endpoint(request: Request) -> Response:
            return await front.serve(route, request.scope["state"]["call"])

        return endpoint

    for route in ROUTES:
        framework.router.add_route(route.path, endpoint_of(route), [route.method])
    gateway = front._gateway

    async def healthz(request: Request) -> Response:
        is_draining = gateway.is_closing
        body = api.Health(status="draining" if is_draining else "ok", version=gateway.version)
        return json_response(request.scope["state"]["call"], body, 503 if is_draining else 200)

    async def metrics(request: Request) -> Response:
        call: Call = request.scope["state"]["call"]
        request.scope["tr.route"] = "/metrics"

        async def do(call: Call) -> Response:
            if gateway.config.server.metrics_need_token:
                front.admit("metrics", call)
            return Response(gateway.metrics.text(), 200, {"x-request-id": call.id}, CONTENT_TYPE)

        return await answer(call, do, lambda error: front.tell_fault(call, error))

    framework.router.add_route("/healthz", healthz, ["GET"])
    framework.router.add_route("/metrics", metrics, ["GET"])
    framework.openapi = lambda: describe_routes(gateway.version)  # type: ignore[method-assign]

    async def missing(request: Request, error: Exception) -> Response:
        call: Call = request.scope["state"]["call"]
        assert isinstance(error, HTTPException)
        body = api.ErrorBody(
            error=f"there is no {request.method} {request.url.path[:200]}; see /docs",
            status_code=error.status_code,
            type=NotFound.__name__,
            request_id=call.id,
        )
        return json_response(call, body, error.status_code, dict(error.headers or {}))

    framework.add_exception_handler(HTTPException, missing)
    return framework


def make_app(gateway: Gateway) -> Front:
    """The application of a gateway, which may be mounted in another one."""
    return Front(gateway)
