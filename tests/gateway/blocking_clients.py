"""Both clients behind one face, so that every test of one is a test of the other."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tr_mmap.gateway import AsyncClient, AsyncRemoteStore, AsyncTask, Client

KINDS = ("sync", "async")


class Blocking:
    """An object with coroutines as methods, whose calls are waited for."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __repr__(self) -> str:
        return repr(self._target)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return (lambda *args, **named: self._end(found(*args, **named))) if callable(found) else found

    def _end(self, value: Any) -> Any:
        if inspect.isawaitable(value):
            value = self._runner.run(_awaited(value))
        elif hasattr(value, "__aiter__"):
            value = self._runner.run(_listed(value))
        return Blocking(value, self._runner) if isinstance(value, AsyncTask | AsyncRemoteStore) else value


async def _awaited(value: Any) -> Any:
    return await value


async def _listed(values: Any) -> list[Any]:
    return [each async for each in values]


@contextmanager
def client_of(kind: str, url: str, token: str | None, **options: Any) -> Iterator[Any]:
    """A client of that kind, as the synchronous one is used."""
    if kind == "sync":
        with Client(url, token, **options) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        target = AsyncClient(url, token, **options)
        try:
            yield Blocking(target, runner)
        finally:
            runner.run(target.aclose())
