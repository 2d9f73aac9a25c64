"""Calls that block, in a thread, awaited by a loop. For what is rare: to start, to end, to copy a large tensor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["in_thread"]

_T = TypeVar("_T")


async def in_thread(action: Callable[..., _T], *arguments: Any, undo: Callable[[_T], object] | None = None) -> _T:
    """Call a function in a thread of its own, and wait for it. It is always run to its end.

    A task that is cancelled meanwhile waits for that end all the same, and is cancelled then: what the function has
    begun, a process say, is not left behind.

    Args:
        action: the function.
        *arguments: its arguments.
        undo: called in the loop with what the function has returned, if the task was cancelled.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_T] = loop.create_future()

    def settle(value: _T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is None:
            result.set_result(value)  # type: ignore[arg-type] # of the type that the function returns
        else:
            result.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = action(*arguments)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, value, error)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    threading.Thread(target=run, name="tr_mmap-aio", daemon=True).start()
    try:
        return await asyncio.shield(result)
    except asyncio.CancelledError:
        while not result.done():
            try:
                await asyncio.wait([result])
            except asyncio.CancelledError:
                pass  # once more: the function goes on all the same
        # The exception is asked for in any case, so that the loop does not complain.
        if not result.cancelled() and result.exception() is None and undo is not None:
            undo(result.result())
        raise
