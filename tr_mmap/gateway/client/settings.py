"""How a client asks: where, with which token, for how long. Makes requests of httpx; sends none."""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from ...errors import ResponseTimeout, TRException
from ...tsr.framework_names import check_framework_name, check_installed
from ..config import is_loopback
from ..errors import BadRequest
from .asks import Ask, Buffer
from .attempts import Send
from .failures import ClientClosed, ConnectionLost, error_of_transport, not_answered, not_ended
from .results import Framework

__all__ = ["DEFAULT_URL", "Settings", "Verify"]

DEFAULT_URL: Final = "http://127.0.0.1:3000"
_CHUNK_NBYTES: Final = 1 << 18  # httpx copies what it sends: so much at a time
_KEPT_S: Final = 4.0  # a connection that is not used; the server closes it after 5 s
_CONNECT_S: Final = 10.0
_TOKEN: Final = re.compile(r"[!-~]*")
Verify = ssl.SSLContext | bool


@dataclass(frozen=True, slots=True)
class Settings:
    """What all calls of a client have in common.

    Attributes:
        url: of the gateway.
        token: that is sent; empty for none.
        timeout_s: how long a call may take.
        retry: whether requests are sent again.
        framework: of results; None for that of the inputs.
    """

    url: str
    token: str
    timeout_s: float
    retry: bool
    framework: Framework | None

    @classmethod
    def of(
        cls, url: str | None, token: str | None, timeout_s: float, retry: bool, framework: Framework | None
    ) -> Settings:
        """As a client is told; what is left out comes from the environment.

        Raises:
            BadRequest: one of them is wrong.
        """
        url = url or os.environ.get("TR_MMAP_URL") or DEFAULT_URL
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_url = False
        if not is_url or "@" in url:
            raise BadRequest(f"{url!r:.200} is no address of a gateway, as {DEFAULT_URL} is one")
        token = (token if token is not None else os.environ.get("TR_MMAP_TOKEN", "")).strip()
        if not _TOKEN.fullmatch(token):
            raise BadRequest("the token is no line of visible ASCII; tr-mmap token prints one as its last line")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
            raise BadRequest(f"timeout_s={timeout_s!r} is no number of seconds above 0")
        if framework is not None:
            check_framework_name(framework)
            check_installed(framework)
        return cls(url.rstrip("/"), token, float(timeout_s), retry, framework)

    def options(self, verify: Verify) -> dict[str, Any]:
        """For a client of httpx."""
        headers = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "tr_mmap"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        return {
            "base_url": self.url,
            "headers": headers,
            "verify": verify,
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=_KEPT_S),
            # A proxy of the environment does not reach this machine's loopback, and should not see the token.
            "trust_env": not is_loopback(urlsplit(self.url).hostname or ""),
        }

    def time_of(self, ask: Ask[Any], timeout_s: float | None) -> float:
        """How long a call may take, in seconds.

        Raises:
            BadRequest: it is told no time.
        """
        if timeout_s is not None and not _is_time(timeout_s):
            raise BadRequest(f"timeout_s={timeout_s!r:.80} is no number of seconds; None is for as long as it takes")
        return timeout_s if timeout_s is not None else max(self.timeout_s, ask.timeout_s or 0.0)

    def request(self, http: httpx.Client | httpx.AsyncClient, ask: Ask[Any], timeout_s: float) -> httpx.Request:
        """The request of httpx.

        Raises:
            ClientClosed: it cannot be sent any more.
        """
        if http.is_closed:
            raise ClientClosed("this client was closed; make another one")
        content: Any = None
        if ask.pieces:
            content = Chunks(ask.pieces) if isinstance(http, httpx.Client) else AsyncChunks(ask.pieces)
        headers = dict(ask.headers)
        if ask.pieces:
            headers["content-length"] = str(sum(len(each) for each in ask.pieces))
        bound = None if timeout_s == math.inf else timeout_s
        read = min(timeout_s, ask.silence_s or math.inf)
        connect = min(timeout_s, _CONNECT_S)
        timeout = httpx.Timeout(bound, connect=connect, read=None if read == math.inf else read)
        return http.build_request(ask.method, ask.path, content=content, headers=headers, timeout=timeout)

    def failure(self, ask: Ask[Any], error: Exception, step: Send, *, has_begun: bool) -> TRException:
        """What kept a request or its response from its end.

        Args:
            ask: the request.
            error: of httpx; or one that says that the call's time is over.
            step: that was tried.
            has_begun: whether the response had begun.
        """
        if isinstance(error, httpx.ReadTimeout) and ask.silence_s is not None and ask.silence_s < step.timeout_s:
            return ConnectionLost(f"{self.url} has sent nothing for {ask.silence_s:g} s", url=self.url)
        is_late = not isinstance(error, httpx.HTTPError) or isinstance(error, httpx.TimeoutException)
        if is_late and not isinstance(error, httpx.ConnectTimeout):
            return self.late(ask, step, has_begun=has_begun)
        assert isinstance(error, httpx.HTTPError)
        return error_of_transport(error, self.url, ask.what)

    def late(self, ask: Ask[Any], step: Send, *, has_begun: bool) -> ResponseTimeout:
        """The exception for a call whose time is over."""
        if has_begun and ask.awaited:
            return not_ended(ask.awaited, ask.what, step.call_s)
        return not_answered(self.url, ask.what, step.call_s)


def _is_time(seconds: object) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0


class Chunks:
    """A body, in pieces that may be read again; none of it is held twice."""

    def __init__(self, pieces: tuple[Buffer, ...]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[Buffer]:
        for piece in self._pieces:
            for begin in range(0, len(piece), _CHUNK_NBYTES):
                yield piece[begin : begin + _CHUNK_NBYTES]


class AsyncChunks:
    """The same for asynchronous clients."""

    def __init__(self, pieces: tuple[Buffer, ...]) -> None:
        self._chunks = Chunks(pieces)

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        for chunk in self._chunks:
            yield chunk
