"""Listens on an address, and gives what comes to an application of ASGI, by uvicorn."""

from __future__ import annotations

import asyncio
import socket
from asyncio import Future
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from .app import Front
from .sections import ServerConfig
from .short_way import protocol_of
from .tls_files import check_tls_files

__all__ = ["listen"]

_CLOSE_S: Final = 10  # in which the responses are sent of what has ended
_LOOK_S: Final = 0.1  # how long a second signal may wait


class _Server(uvicorn.Server):
    """A server that says when it listens and when it is about to end, and ends well at a signal.

    Attributes:
        failure: why it does not start.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        start: Callable[[], Awaitable[None]],
        on_ready: Callable[[], None],
        on_end: Callable[[], Future[None]],
    ) -> None:
        super().__init__(config)
        self.failure: Exception | None = None
        self._start = start
        self._on_ready = on_ready
        self._on_end = on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await self._start()
        except Exception as error:  # listen() raises it; the server would say it in its own way
            self.failure = error
            self.should_exit = True
            return
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # It listens meanwhile: who asks is told that it ends, and gets what has come of tasks.
        ended = self._on_end()
        while not ended.done() and not self.force_exit:
            await asyncio.wait({ended}, timeout=_LOOK_S)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # else it sends them to this process again, once all is done


def listen(
    app: Front,
    config: ServerConfig,
    on_ready: Callable[[str], None],
    start: Callable[[], Awaitable[None]],
    on_end: Callable[[], Future[None]],
    saw_refusal: Callable[[str], None],
) -> bool:
    """Serve until SIGINT or SIGTERM comes.

    Args:
        app: of a gateway.
        config: where.
        on_ready: is called once it listens, with its address as a URL.
        start: is called in the server's loop before it listens.
        on_end: is called in the server's loop at the signal, and begins the end of what goes on. Once its future is
            done, it listens no more, and its connections are closed.
        saw_refusal: is told the reason of each connection and request that the application does not see.

    Returns:
        Whether it came to listen; if not, a signal came before.

    Raises:
        BadConfig: the files of TLS cannot be used.
        OSError: the address cannot be had.
        Exception: what ``start`` raises.
    """
    check_tls_files(config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # With the protocol's number: asyncio sets TCP_NODELAY only where it sees that, and else each response waits 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.host, config.port))
        except OSError as error:
            text = f"server.host, server.port: {config.host}:{config.port} cannot be had: {error.strerror or error}"
            raise OSError(error.errno, text) from error
        listener.listen(2048)
        name = f"[{config.host}]" if ":" in config.host else config.host
        scheme = "https" if config.tls_certificate else "http"
        url = f"{scheme}://{name}:{listener.getsockname()[1]}"
        server = _Server(
            uvicorn.Config(
                app,
                ssl_certfile=config.tls_certificate,
                ssl_keyfile=config.tls_key,
                http=protocol_of(app, config, saw_refusal),
                ws="none",
                lifespan="on",
                access_log=False,
                server_header=False,
                log_config=None,
                proxy_headers=bool(config.trusted_proxies),
                forwarded_allow_ips=list(config.trusted_proxies),
                timeout_graceful_shutdown=_CLOSE_S,
            ),
            start,
            lambda: on_ready(url),
            on_end,
        )
        server.run(sockets=[listener])
        if server.failure is not None:
            raise server.failure
        return server.started
