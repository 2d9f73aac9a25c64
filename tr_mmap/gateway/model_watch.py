"""Looks at a directory of models when the gateway starts, from time to time, and when somebody has seen a change.

What is done at a look, and what comes of it, is the caller's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from .logs import log

__all__ = ["ModelWatch"]

_LEAST_S: Final = 0.5  # between two looks


class ModelWatch:
    """The watch of one directory. To be used in the thread of one event loop, but for :meth:`look_soon`.

    Args:
        root: the directory, for the log.
        scan: looks at it; raises OSError if it cannot be read. Called in another thread.
    """

    def __init__(self, root: str, scan: Callable[[], None]) -> None:
        self._root = root
        self._scan = scan
        self._unreadable = ""  # why the last look failed
        self._watcher: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_changed = asyncio.Event()  # somebody has seen it, before its time to be looked at

    def start(self, every_s: float) -> None:
        """Look from now on, every so many seconds."""
        self._loop = asyncio.get_running_loop()
        self._watcher = asyncio.create_task(self._watch(every_s), name="tr_mmap-models")

    async def close(self) -> None:
        """Look no more. Idempotent."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})

    def look_soon(self) -> None:
        """Somebody has seen a change: look before it is time, if it was started. From any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed, and so is all else
                self._loop.call_soon_threadsafe(self._has_changed.set)

    async def look(self) -> None:
        """Look; what fails is logged, once if the directory cannot be read, and nobody hears of it else."""
        why = ""
        try:
            await asyncio.to_thread(self._scan)
        except OSError as error:
            why = error.strerror or str(error)
            if why != self._unreadable:
                text = (
                    "[python.models] model_dir cannot be read; models that are served stay until it can be read again"
                )
                log.error(text, extra={"path": self._root, "reason": why})
        except Exception as error:
            log.error("a fault while the directory of models was looked at", exc_info=error)
        self._unreadable = why

    async def _watch(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(min(_LEAST_S, every_s))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_changed.wait(), max(0.0, every_s - _LEAST_S))
            self._has_changed.clear()
            await self.look()
