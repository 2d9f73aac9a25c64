"""``AsyncStore``: a store for asyncio. Slow work runs in a few threads of its own, never in the loop's thread."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

from .reads import StoreSnapshot
from .records import Event, Hit, Page, Record, Stats
from .store import Store
from .threads import Threads, do, obtain

__all__ = ["AsyncHandle", "AsyncStore"]


class AsyncHandle:
    """A store, and the threads that work on it for an asyncio loop.

    Calls that may use the embedder have threads of their own, so that a slow embedder delays no other call.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = Threads("tr_store")
        self._embedding = Threads("tr_store_embed")

    def _threads_for(self, *, may_embed: bool) -> Threads:
        return self._embedding if may_embed and self._store.has_embedder else self._threads

    async def _record(self, id: str) -> Record | None:
        """A record: looked up in the loop's thread if that takes microseconds, else in another thread."""
        record = self._store.get_now(id)
        return await self._threads.run(self._store.get, id) if record is ... else record

    async def close(self) -> None:
        """Wait for the calls that have begun, then release the handle. Idempotent."""
        await do(self._close)

    def _close(self) -> None:
        self._threads.end()
        self._embedding.end()
        self._store.close()  # LMDB may need a moment

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


class AsyncStore(AsyncHandle):
    """As :class:`Store`; each method is a coroutine. Made by :meth:`open`. Tasks may share it.

    ``get`` of a small record runs in the loop's thread, because it takes microseconds; everything else runs in threads.
    A thread finishes what it has begun: if a task is cancelled in the middle of ``add``, the record may still be added.
    """

    @classmethod
    async def open(
        cls, name: str = "default", path: str | os.PathLike[str] | None = None, **options: Any
    ) -> AsyncStore:
        """Open a store, or make it; the arguments are those of :class:`Store`."""
        return cls(await obtain(partial(Store, name, path, **options), Store.close))

    @property
    def scope(self) -> str | None:
        """The user to whose records it is bound; None if it is not."""
        return self._store.scope

    def clone(self, *, scope: str | None = None) -> AsyncStore:
        """Another handle on the same store; cheap."""
        return AsyncStore(self._store.clone(scope=scope))

    async def add(self, content: str | None = None, **fields: Any) -> str:
        """As :meth:`Store.add`."""
        return await self._threads_for(may_embed=_lacks_vector(fields)).run(self._store.add, content, **fields)

    async def add_many(self, records: Iterable[Mapping[str, Any]]) -> list[str]:
        """As :meth:`Store.add_many`."""
        several = list(records)
        return await self._threads_for(may_embed=any(map(_lacks_vector, several))).run(self._store.add_many, several)

    async def get(self, id: str) -> Record | None:
        """As :meth:`Store.get`."""
        return await self._record(id)

    async def get_all(self, **options: Any) -> Page:
        """As :meth:`Store.get_all`."""
        return await self._threads.run(self._store.get_all, **options)

    async def ids(self, **options: Any) -> list[str]:
        """As :meth:`Store.ids`."""
        return await self._threads.run(self._store.ids, **options)

    async def search(self, query: Any, **options: Any) -> list[Hit]:
        """As :meth:`Store.search`."""
        may_embed = isinstance(query, str) and options.get("mode") != "text"
        return await self._threads_for(may_embed=may_embed).run(self._store.search, query, **options)

    async def update(self, id: str, **changes: Any) -> Record:
        """As :meth:`Store.update`."""
        may_embed = "content" in changes and "vector" not in changes
        return await self._threads_for(may_embed=may_embed).run(self._store.update, id, **changes)

    async def delete(self, id: str) -> bool:
        """As :meth:`Store.delete`."""
        return await self._threads.run(self._store.delete, id)

    async def clear(self, **options: Any) -> int:
        """As :meth:`Store.clear`."""
        return await self._threads.run(self._store.clear, **options)

    async def history(self, id: str) -> list[Event]:
        """As :meth:`Store.history`."""
        return await self._threads.run(self._store.history, id)

    @asynccontextmanager
    async def snapshot(self, *, max_age_s: float = 60.0) -> AsyncIterator[StoreSnapshot]:
        """As :meth:`Store.snapshot`; its methods are those of the synchronous one."""
        found = await obtain(partial(self._store.snapshot, max_age_s=max_age_s), StoreSnapshot.close)
        try:
            yield found
        finally:
            await do(found.close)  # another thread may be using it

    async def stats(self) -> Stats:
        """As :meth:`Store.stats`."""
        return await self._threads.run(self._store.stats)

    async def compact(self) -> int:
        """As :meth:`Store.compact`."""
        return await self._threads.run(self._store.compact)

    async def check(self) -> list[str]:
        """As :meth:`Store.check`."""
        return await self._threads.run(self._store.check)

    def __repr__(self) -> str:
        return f"<Async{repr(self._store)[1:]}"


def _lacks_vector(fields: Mapping[str, Any]) -> bool:
    return isinstance(fields, Mapping) and fields.get("vector") is None
