"""``Gateway``: what is configured, started and ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

from .app import Front, make_app
from .config import Config
from .config_places import check_places
from .idempotency import Replays
from .logs import AuditLog, RequestLog, log
from .metrics import Metrics
from .rates import RateLimit
from .service import Service
from .tokens import Tokens, read_key_file

if TYPE_CHECKING:
    from .scheduler import Job

__all__ = ["Gateway"]


class Gateway:
    """A gateway: algorithms, models and tasks over HTTP.

    ``serve()`` listens; or :attr:`asgi_app` is mounted in another application. It starts with the first of the two, and
    has no process before that.

    Args:
        config: what is configured; ``Gateway.from_toml`` reads a file.

    Raises:
        BadConfig: there is no key, or a directory of the configuration is not there.
        HostilePath: others can read the key, or the audit log.
    """

    def __init__(self, config: Config) -> None:
        check_places(config)
        self.config = config
        self.version = version("tr_mmap")
        self.tokens = Tokens(read_key_file(config.auth.key_file), config.auth.audience)
        self.rates = RateLimit(config.auth.requests_per_minute, config.auth.burst)
        self.replays = Replays()
        auth = config.auth
        self.failures = RateLimit(
            auth.failures_per_minute,
            auth.failures_burst,
            "an address",
            "tries of a token",
            "[auth] failures_per_minute",
        )
        self.metrics = Metrics(lambda: self.service.scheduler.status())
        self.audit = AuditLog(config.auth.audit_log, self.metrics.missed_audit)
        self.request_log = RequestLog()
        self.is_closing = False
        self._service: Service | None = None
        self._starting: asyncio.Lock | None = None
        self._closing: asyncio.Task[None] | None = None
        self._app: Front | None = None

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Gateway:
        """The gateway of a configuration file.

        Raises:
            BadConfig: it cannot be read, or an option is unknown or wrong; one line says which.
        """
        return cls(Config.from_toml(path))

    @property
    def asgi_app(self) -> Front:
        """The application: for a server of ASGI, or to be mounted in another one."""
        if self._app is None:
            self._app = make_app(self)
        return self._app

    @property
    def has_started(self) -> bool:
        """Whether there is a service."""
        return self._service is not None

    @property
    def service(self) -> Service:
        """What it does, for whoever is in its loop.

        Raises:
            RuntimeError: it has not started.
        """
        if self._service is None:
            raise RuntimeError("the gateway has not started; await start()")
        return self._service

    async def start(self) -> None:
        """Start, unless that was done. A server does it, and so does the first request of a mounted application.

        Raises:
            SandboxBroken: this machine lacks a required layer.
            BadConfig: the interpreter, or a worker's script, cannot be used.
        """
        if self._service is not None:
            return
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._service is not None:
                return
            service = Service(self.config, self._saw_run)
            try:
                await service.warm()
            except BaseException:
                await service.close()
                raise
            self._service = service
        if self.config.python.use_wasm_sandbox:
            log.warning(
                "use_wasm_sandbox: Python runs contained by the kernel; CPython in WebAssembly is not there yet"
            )
        if self.config.sharedmemory.enabled:
            log.warning("sharedmemory: clients cannot pass tensors by name yet; they send them in a binary part")
        for _, box in service.boxes.open_boxes():
            self.metrics.saw_layers(box.layers)

    def _saw_run(self, job: Job, error: BaseException | None) -> None:
        self.metrics.saw_run(job, error)

    async def aclose(self) -> None:
        """Refuse what comes from now on, let go on what runs for a while, then end all. Idempotent."""
        await asyncio.shield(self._begin_to_close())

    def _begin_to_close(self) -> asyncio.Task[None]:
        self.is_closing = True
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        return self._closing

    async def _close(self) -> None:
        if self._service is not None:
            await self._service.close()
        self.audit.close()
        self.request_log.flush()

    def serve(self, on_ready: Callable[[str], None] | None = None) -> bool:
        """Listen where ``[server]`` says, until SIGINT or SIGTERM comes.

        Args:
            on_ready: is called once it listens, with its address as a URL.

        Returns:
            Whether it came to listen; if not, it was ended before.

        Raises:
            BadConfig: the files of TLS cannot be used; and as :meth:`start`.
            SandboxBroken: as :meth:`start`.
            OSError: the address cannot be had.
        """
        from .listening import listen

        return listen(
            self.asgi_app,
            self.config.server,
            on_ready or (lambda _: None),
            self.start,
            self._begin_to_close,
            self.metrics.saw_refusal,
        )
