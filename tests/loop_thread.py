"""An event loop in a thread of its own, for tests that use it from the main thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

from support import FOREVER_MS

__all__ = ["LoopThread"]


class LoopThread:
    """A loop that runs until :meth:`end`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def start(self, action: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine in the loop, and return at once."""
        return asyncio.run_coroutine_threadsafe(action, self._loop)

    def run(self, action: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop, and wait for what it returns or raises."""
        return self.start(action).result(FOREVER_MS / 1000)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
