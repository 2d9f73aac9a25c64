"""The runs of a sandbox as coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from .interface import Algorithm, ComputeRequest, ComputeResponse
from .running import cancelled
from .waiting import closed

if TYPE_CHECKING:
    from .box import Sandbox

__all__ = ["AsyncRuns"]


class AsyncRuns:
    """The runs of a sandbox, for ``asyncio``."""

    def __init__(self, box: Sandbox) -> None:
        self._box = box

    async def run(
        self,
        algorithm: Algorithm | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> ComputeResponse:
        """As :meth:`Sandbox.submit`. When the task is cancelled, the run ends."""
        box = self._box
        return await self._wait(
            box._request(algorithm, inputs, priority=priority, deadline_s=deadline_s, id=request_id)
        )

    async def call(self, algorithm: Algorithm | str, function: str, *arguments: Any) -> Any:
        """As :meth:`Sandbox.call`."""
        outputs = (await self._wait(self._box._call(algorithm, function, arguments))).outputs
        return outputs["output"] if outputs.keys() == {"output"} else outputs

    async def _wait(self, request: ComputeRequest) -> ComputeResponse:
        loop = asyncio.get_running_loop()
        is_done = asyncio.Event()

        def tell(_: Future[ComputeResponse]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no task waits any more
                loop.call_soon_threadsafe(is_done.set)

        future = self._box._submit(request)
        future.add_done_callback(tell)
        try:
            # Not the future itself: if that is cancelled by cancel(request_id), the task must not look cancelled.
            await is_done.wait()
        except asyncio.CancelledError:
            if not future.cancel():
                # In a thread, because _cancel waits for the end of the process.
                await asyncio.shield(asyncio.to_thread(self._box._cancel, request))
            raise
        if future.cancelled():  # it had not begun
            raise cancelled(request) if request.is_cancelled else closed()
        return future.result()

    async def execute(
        self, code: str | bytes | os.PathLike[str], inputs: Mapping[str, Any] | None = None
    ) -> ComputeResponse:
        """As :meth:`Sandbox.execute`."""
        return await self.run(Algorithm("code", self._box._bytes_of(code), None), inputs)
