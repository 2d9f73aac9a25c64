"""``AsyncTask``: a run of a gateway whose result is asked for later, from asyncio or trio."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import httpx

from .. import api
from . import messages
from .answers import Answer
from .attempts import Send
from .results import EventReader, Framework, Result

if TYPE_CHECKING:
    from .async_client import AsyncClient

__all__ = ["AsyncTask"]


class AsyncTask:
    """A run whose result is asked for later; :meth:`AsyncClient.submit` makes one.

    Attributes:
        id: by which the gateway knows it.
    """

    def __init__(self, client: AsyncClient, task_id: str, framework: Framework) -> None:
        self.id = task_id
        self._client = client
        self._framework = framework

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    async def status(self) -> str:
        """See :meth:`Task.status`."""
        return (await self.info()).status

    async def info(self) -> api.TaskInfo:
        """See :meth:`Task.info`."""
        return await self._client._call(messages.task_info(self.id, self._framework))

    async def result(self, timeout_s: float | None = None) -> Result:
        """See :meth:`Task.result`."""
        bound_s = math.inf if timeout_s is None else timeout_s
        return await self._client._call(messages.follow_to_end(self.id, self._framework), bound_s)

    async def cancel(self) -> api.TaskInfo:
        """See :meth:`Task.cancel`."""
        return await self._client._call(messages.cancel(self.id, self._framework))

    async def events(self) -> AsyncIterator[api.TaskInfo]:
        """See :meth:`Task.events`."""
        ask = messages.follow(self.id)
        reader = EventReader(self._framework)
        try:
            async with self._client._open(ask, math.inf) as response:
                if response.status_code != 200:
                    raise Answer(response.status_code, response.headers, memoryview(await response.aread())).error()
                async for line in response.aiter_lines():
                    info = reader.take(line)
                    if info is not None:
                        yield info
        except httpx.HTTPError as error:
            raise self._client._settings.failure(ask, error, Send(math.inf, math.inf), has_begun=True) from error
