"""The application: routes behind a front that every request passes. Speaks ASGI; listens nowhere."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from ..errors import TRException
from . import api
from .calls import Call, answer, error_response, json_response
from .config import is_loopback
from .config_checks import host_in_requests
from .errors import BadRequest, Forbidden, MethodNotAllowed, NotFound, Overloaded, Unauthorized
from .idempotency import check_no_key
from .logs import log
from .metrics import CONTENT_TYPE
from .openapi import describe_routes
from .route import Route
from .routes import ROUTES
from .service import Service
from .tokens import Principal

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["Front", "make_app", "with_usual"]

Scope = dict[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_HOST: Final = re.compile(r"(?P<name>[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# What a path must not have even when it is escaped: separators, for what is in front may have seen one component, and
# characters that no name has.
_ODD_PATH: Final = re.compile(rb"%(?:2f|5c|[01][0-9a-f]|7f)", re.IGNORECASE)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_REASONS: Final = {401: "unauthorized", 403: "forbidden", 429: "rate"}
_NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
_NO_STORE: Final = (b"cache-control", b"no-store")
_NO_FRAMES: Final = (b"content-security-policy", b"frame-ancestors 'none'")
_MOST_HOSTS: Final = 256
_HEALTH: Final = "/healthz"
_PLAIN_PATHS: Final = frozenset({_HEALTH, "/docs", "/openapi.json"})  # of routes that are not in the table
_TASKS: Final = f"{api.PREFIX}/task/"
_CHANGES: Final = frozenset({"POST", "PUT", "DELETE", "PATCH"})


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
        names = {"localhost", "127.0.0.1", "::1", *server.allowed_hosts}
        if server.host not in ("0.0.0.0", "::"):
            names.add(server.host)
        self._hosts = frozenset(host_in_requests(each) for each in names)
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
        path = get_route_path(scope) if scope.get("root_path") else scope["path"]
        scope["tr.route"] = path if path in _PLAIN_PATHS else ""
        status, is_stranger = 500, False

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = with_usual(message["headers"], call)
            await send(message)

        try:
            refusal = self._refusal(call)
            if refusal is not None:
                is_stranger = not self._gateway.is_closing
                await refusal(scope, receive, note)
                return
            try:
                await self._gateway.start()
            except TRException as error:  # of a mounted one, whose first request this is
                self.tell_fault(call, error)
                await error_response(call, error)(scope, receive, note)
                return
            hot = self.hot.get((scope["method"], path))
            if hot is not None:
                response = await self.serve(hot, call)
                status = response.status_code
                await _send_at_once(response, call, send)
            else:
                await self._framework(scope, receive, note)
        finally:
            self.finish(call, scope["tr.route"], status, is_stranger=is_stranger)

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

        def on_fault(error: BaseException) -> None:
            self.tell_fault(call, error)

        async def run(call: Call) -> Response:
            if route.query is None:
                call.check_query()
            return await route.endpoint(self._gateway.service, call)

        async def do(call: Call) -> Response:
            if route.scope is not None:
                self.admit(route.scope, call)
            if route.takes_key:
                return await self._gateway.replays.answer(call, lambda: answer(call, run, on_fault))
            if route.method in _CHANGES:
                check_no_key(call)
            return await run(call)

        return await answer(call, do, on_fault)

    def admit(self, scope: str, call: Call) -> None:
        """Let a request pass.

        Raises:
            Unauthorized, Forbidden, RateLimited: the request's token does not grant it.
        """
        given = call.headers(b"authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthorized("this needs a token: send the header Authorization: Bearer TOKEN; see tr-mmap token")
        principal = call.principal = self._principal(token.strip(), call)
        self._gateway.rates.take(principal.token_id, time.monotonic())
        if "{" not in scope:
            principal.check(scope)

    def _principal(self, token: str, call: Call) -> Principal:
        """Whose a token is.

        Raises:
            Unauthorized: nobody's.
            RateLimited: too many of the same network were nobody's. Tokens that are known already pass even then, so
                that nobody locks others out.
        """
        gateway, now_s = self._gateway, time.monotonic()
        known = gateway.tokens.known(token)
        if known is not None:
            return known
        network = _network_of(call.client)
        gateway.failures.check(network, now_s)
        try:
            return gateway.tokens.verify(token)
        except Unauthorized:
            gateway.failures.take(network, now_s)
            raise

    def _refusal(self, call: Call) -> Response | None:
        """The answer to a request that no route should see."""
        if self._gateway.is_closing and not self._is_for_drains(call):
            return error_response(call, Overloaded("the gateway is about to end; try again", retry_after_s=1.0))
        hosts = call.headers(b"host")
        if len(hosts) != 1 or not self.is_known_host(hosts[0]):
            return error_response(
                call, BadRequest("the header Host names no host of this gateway; see [server] allowed_hosts")
            )
        origin = call.header(b"origin")
        if origin is not None and origin.rstrip("/").lower() not in self._origins and not self._is_own(origin, call):
            return error_response(
                call, Forbidden("scripts of other pages may not ask here; see [server] allowed_origins")
            )
        path, _, _ = (call.scope.get("raw_path") or b"").partition(b"/records/")  # whose ids may have any
        if _ODD_PATH.search(path):
            return error_response(call, BadRequest("a path has no escaped slashes, backslashes or control characters"))
        return None

    def _is_for_drains(self, call: Call) -> bool:
        """Whether a request is answered though the gateway is about to end: how it is, and what has come of tasks."""
        if call.scope["method"] != "GET" or not self._gateway.has_started:
            return False
        path = get_route_path(call.scope)
        return path == _HEALTH or path.startswith(_TASKS)

    def is_known_host(self, host: str) -> bool:
        """Whether requests may have this in ``Host``."""
        known = self._known_hosts.get(host)
        if known is None:
            known = self._look_at_host(host)
            if len(self._known_hosts) < _MOST_HOSTS:
                self._known_hosts[host] = known
        return known

    def _look_at_host(self, host: str) -> bool:
        found = _HOST.fullmatch(host)  # with any port: proxies have others
        if found is None:
            return False
        name = host_in_requests(found["name"])
        if name is None:
            return False
        return self._is_any_host or name in self._hosts or (is_loopback(name) and is_loopback(self._config.server.host))

    def _is_own(self, origin: str, call: Call) -> bool:
        """Whether a page of this gateway asks: its documentation, for example."""
        try:
            return urlsplit(origin).netloc.lower() == (call.header(b"host") or "").lower()
        except ValueError:  # half of an address in brackets, say
            return False

    def finish(self, call: Call, route: str, status: int, *, is_stranger: bool = False) -> None:
        """A request was answered."""
        seconds = time.monotonic() - call.began_s
        gateway, said = self._gateway, call.scope["method"]
        subject = call.principal.subject if call.principal is not None else ""
        method = said if said in _METHODS else "other"
        gateway.metrics.saw_request(method, route or "other", status, seconds)
        if is_stranger or status in _REASONS:
            gateway.metrics.saw_refusal(_REASONS.get(status, "host_or_path"))
        if self._config.server.access_log:
            gateway.request_log.note(
                request_id=call.id,
                method=said,
                route=route or "other",
                status=status,
                duration_ms=round(1000 * seconds, 3),
                subject=subject,
            )
        if is_stranger or status in _REASONS or (said in _CHANGES and route not in _RUNS):
            gateway.audit.note(
                request_id=call.id,
                subject=subject,
                method=said,
                path=call.scope["path"][:300],
                what=call.what,
                status=status,
                client=call.client,
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


_RUNS: Final = frozenset({"/api/v1/python/execute", "/api/v1/compute", "/api/v1/store/{store}/search"})


def with_usual(headers: Iterable[tuple[bytes, bytes]], call: Call) -> list[tuple[bytes, bytes]]:
    """Headers of a response, and those that every one has."""
    found = [*headers, _NOSNIFF]
    names = {name for name, _ in found}
    if b"cache-control" not in names:
        found.append(_NO_STORE)
    if b"x-request-id" not in names:
        found.append((b"x-request-id", call.id.encode()))
    if any(name == b"content-type" and value.startswith(b"text/html") for name, value in found):
        found.append(_NO_FRAMES)
    traceparent = call.header(b"traceparent")
    if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
        found.append((b"traceparent", traceparent.encode()))
    return found


async def _send_at_once(response: Response, call: Call, send: Send) -> None:
    """Send a response whose body is there, with fewer steps than the response itself takes."""
    headers = with_usual(response.raw_headers, call)
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


def _network_of(address: str) -> str:
    """What counts as one client: an address, or of IPv6 the 64 bits in front, for a client has all that follow."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


def _make_framework(front: Front) -> FastAPI:
    """The framework's application: it finds the route of a path, and makes the documentation."""
    framework = FastAPI(
        title="tr_mmap gateway",
        description="Algorithms, models and tasks, run in a sandbox, on tensors.",
        version="1",
        docs_url="/docs",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        openapi_url="/openapi.json",
    )

    def endpoint_of(route: Route) -> Any:
        async def endpoint(request: Request) -> Response:
            return await front.serve(route, request.scope["state"]["call"])

        return endpoint

    for route in ROUTES:
        framework.router.add_route(route.pattern, endpoint_of(route), [route.method])
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

    framework.router.add_route(_HEALTH, healthz, ["GET"])
    framework.router.add_route("/metrics", metrics, ["GET"])
    framework.openapi = lambda: describe_routes(gateway.version)  # type: ignore[method-assign]

    async def missing(request: Request, error: Exception) -> Response:
        call: Call = request.scope["state"]["call"]
        assert isinstance(error, HTTPException)
        root = request.scope.get("root_path", "")  # of the application that it is mounted in
        body = api.ErrorBody(
            error=f"there is no {request.method} {request.url.path[:200]}; see {root}/docs",
            status_code=error.status_code,
            type=(MethodNotAllowed if error.status_code == 405 else NotFound).__name__,
            request_id=call.id,
        )
        headers = dict(error.headers or {})
        if error.status_code == 405:  # several routes may have the path; the framework names the first one's methods
            fitting = (each for each in framework.routes if each.matches(request.scope)[0] is not Match.NONE)
            headers["Allow"] = ", ".join(
                sorted({method for each in fitting for method in getattr(each, "methods", ())})
            )
        return json_response(call, body, error.status_code, headers)

    framework.add_exception_handler(HTTPException, missing)
    return framework


def make_app(gateway: Gateway) -> Front:
    """The application of a gateway, which may be mounted in another one."""
    return Front(gateway)
