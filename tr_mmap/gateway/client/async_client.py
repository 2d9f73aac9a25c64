"""``AsyncClient``: a gateway, asked from asyncio or trio. Each method is that of :class:`Client`, to be awaited."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import anyio
import httpx

from ...errors import TRException
from .. import api
from ..model_api import ModelInfo
from . import messages
from .answers import Answer, Inbox
from .asks import Ask
from .async_store import AsyncRemoteStore
from .async_task import AsyncTask
from .attempts import Done, Pause, Send, advance, attempts
from .messages import Algorithm, Code, Inputs
from .results import Framework, Result
from .settings import Settings, Verify
from .store_messages import StoreAsks

__all__ = ["AsyncClient"]

_T = TypeVar("_T")


class AsyncClient:
    """As :class:`Client`, for programs that do other things while they wait.

    ::

        async with AsyncClient(token=TOKEN) as client:
            results = await asyncio.gather(*(client.run("double", {"x": x}) for x in arrays))

    A call that is cancelled ends its run in the gateway too.

    Args:
        url, token, timeout_s, retry, framework, verify: as :class:`Client` takes them.
        transport: of httpx; ``httpx.ASGITransport(gateway.asgi_app)`` asks a gateway in this process.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry: bool = True,
        framework: Framework | None = None,
        verify: Verify = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = Settings.of(url, token, timeout_s, retry, framework)
        self._http = httpx.AsyncClient(**self._settings.options(verify), transport=transport)

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self._settings.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    # -- algorithms -----------------------------------------------------------------------------------------------

    async def register(
        self,
        name: str | Callable[..., Any],
        code: Code | None = None,
        *,
        kind: str | None = None,
        wasm: bytes | Path | None = None,
        library: bytes | Path | None = None,
        function: str | None = None,
        dependencies: tuple[str, ...] | list[str] | None = None,
        memory_mb: int | None = None,
        cpu_cores: int | None = None,
        timeout_ms: float | None = None,
        reuse: bool | None = None,
        idempotent: bool | None = None,
        outputs: tuple[str, ...] | list[str] | None = None,
        model: str | None = None,
        sha256: str | None = None,
    ) -> api.AlgorithmInfo:
        """See :meth:`Client.register`."""
        return await self._call(
            messages.register(
                name,
                code,
                kind=kind,
                wasm=wasm,
                library=library,
                memory_mb=memory_mb,
                cpu_cores=cpu_cores,
                with_key=self._settings.retry,
                function=function,
                dependencies=dependencies,
                timeout_ms=timeout_ms,
                reuse=reuse,
                idempotent=idempotent,
                outputs=outputs,
                model=model,
                sha256=sha256,
            )
        )

    async def algorithms(self) -> list[api.AlgorithmInfo]:
        """See :meth:`Client.algorithms`."""
        return await self._call(messages.algorithms())

    async def algorithm(self, name: str) -> api.AlgorithmInfo:
        """See :meth:`Client.algorithm`."""
        return await self._call(messages.algorithm_named(name))

    async def unregister(self, name: Algorithm) -> api.AlgorithmInfo:
        """See :meth:`Client.unregister`."""
        return await self._call(messages.unregister(name))

    # -- runs -----------------------------------------------------------------------------------------------------

    async def run(
        self,
        algorithm: Algorithm,
        inputs: Inputs = None,
        *,
        function: str | None = None,
        timeout_ms: float | None = None,
        priority: int | None = None,
        framework: Framework | None = None,
    ) -> Result:
        """See :meth:`Client.run`."""
        return await self._execute(
            algorithm, None, inputs, framework, timeout_ms=timeout_ms, priority=priority, function=function
        )

    async def execute(
        self,
        code: Code,
        inputs: Inputs = None,
        *,
        function: str | None = None,
        timeout_ms: float | None = None,
        priority: int | None = None,
        framework: Framework | None = None,
    ) -> Result:
        """See :meth:`Client.execute`."""
        return await self._execute(
            None, code, inputs, framework, timeout_ms=timeout_ms, priority=priority, function=function
        )

    async def _execute(
        self, algorithm: Algorithm | None, code: Code | None, inputs: Inputs, framework: Framework | None, **fields: Any
    ) -> Result:
        settings = self._settings
        framework = framework or settings.framework
        return await self._call(
            messages.execute(algorithm, code, inputs, framework=framework, with_key=settings.retry, **fields)
        )

    # -- tasks ----------------------------------------------------------------------------------------------------

    async def submit(
        self,
        algorithm: Algorithm | None = None,
        inputs: Inputs = None,
        *,
        code: Code | None = None,
        function: str | None = None,
        timeout_ms: float | None = None,
        priority: int | None = None,
        framework: Framework | None = None,
    ) -> AsyncTask:
        """See :meth:`Client.submit`."""
        settings = self._settings
        ask, kind = messages.compute(
            algorithm,
            code,
            inputs,
            framework=framework or settings.framework,
            with_key=settings.retry,
            timeout_ms=timeout_ms,
            priority=priority,
            function=function,
        )
        return AsyncTask(self, await self._call(ask), kind)

    def task(self, task_id: str, *, framework: Framework | None = None) -> AsyncTask:
        """See :meth:`Client.task`; it asks nothing, and is not awaited."""
        return AsyncTask(self, task_id, framework or self._settings.framework or "numpy")

    # -- stores ---------------------------------------------------------------------------------------------------

    def store(self, name: str, *, scope: str | None = None, framework: Framework | None = None) -> AsyncRemoteStore:
        """See :meth:`Client.store`; it asks nothing, and is not awaited."""
        asks = StoreAsks(name, scope, framework or self._settings.framework or "numpy")
        return AsyncRemoteStore(self._call, asks)

    # -- the gateway ----------------------------------------------------------------------------------------------

    async def models(self) -> list[ModelInfo]:
        """See :meth:`Client.models`."""
        return await self._call(messages.models())

    async def load_model(self, name: str, version: int | None = None) -> ModelInfo:
        """See :meth:`Client.load_model`."""
        return await self._call(messages.load_model(name, version))

    async def dependencies(self) -> api.DependencyList:
        """See :meth:`Client.dependencies`."""
        return await self._call(messages.dependencies())

    async def make_environment(
        self, packages: tuple[str, ...] | list[str], *, timeout_s: float | None = None
    ) -> api.EnvironmentInfo:
        """See :meth:`Client.make_environment`."""
        return await self._call(messages.make_environment(packages), timeout_s)

    async def workers(self) -> list[api.WorkerInfo]:
        """See :meth:`Client.workers`."""
        return await self._call(messages.workers())

    async def scheduler_status(self) -> api.SchedulerStatus:
        """See :meth:`Client.scheduler_status`."""
        return await self._call(messages.scheduler_status())

    async def health(self) -> api.Health:
        """See :meth:`Client.health`."""
        return await self._call(messages.health())

    # -- how it asks ----------------------------------------------------------------------------------------------

    async def _call(self, ask: Ask[_T], timeout_s: float | None = None) -> _T:
        settings = self._settings
        may_retry = settings.retry and ask.may_retry
        steps = attempts(ask, settings.time_of(ask, timeout_s), may_retry=may_retry, clock=time.monotonic)
        step = advance(steps, None)
        while not isinstance(step, Done):
            if isinstance(step, Pause):
                await anyio.sleep(step.seconds)
                step = advance(steps, None)
            else:
                step = advance(steps, await self._exchange(ask, step))
        return step.value

    async def _exchange(self, ask: Ask[Any], step: Send) -> Answer | TRException:
        has_begun = False
        try:
            with anyio.fail_after(step.timeout_s):
                async with self._open(ask, step.timeout_s) as response:
                    has_begun = True
                    inbox = Inbox(response.status_code, response.headers)
                    async for chunk in response.aiter_bytes():
                        inbox.take(chunk)
        except (httpx.HTTPError, TimeoutError) as error:
            return self._settings.failure(ask, error, step, has_begun=has_begun)
        return inbox.answer()

    @asynccontextmanager
    async def _open(self, ask: Ask[Any], timeout_s: float) -> AsyncIterator[httpx.Response]:
        response = await self._http.send(self._settings.request(self._http, ask, timeout_s), stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close its connections. Idempotent."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
