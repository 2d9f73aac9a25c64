"""``AsyncRemoteStore``: a store of a gateway, asked from asyncio or trio. Its methods are :class:`RemoteStore`'s."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ...store.records import Hit, Page
from ..store_api import StoreInfo
from .asks import Ask
from .records import RemoteRecord
from .store_messages import Listing, StoreAsks

if TYPE_CHECKING:
    from ...store.reads import Mode

__all__ = ["AsyncRemoteStore"]

_T = TypeVar("_T")


class _Call(Protocol):
    def __call__(self, ask: Ask[_T], /) -> Awaitable[_T]: ...


class AsyncRemoteStore:
    """As :class:`RemoteStore`, each method to be awaited; :meth:`AsyncClient.store` makes one."""

    def __init__(self, call: _Call, asks: StoreAsks) -> None:
        self.name = asks.name
        self.scope = asks.scope
        self._call = call
        self._asks = asks

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    # -- the store ------------------------------------------------------------------------------------------------

    async def create(
        self,
        *,
        dim: int | None = None,
        dtype: str | None = None,
        metric: str | None = None,
        embedder: str | None = None,
        indexed: Iterable[str] | None = None,
        durability: Literal["memory", "os", "fsync"] | None = None,
        budget_nbytes: int | None = None,
        at_budget: Literal["fail", "evict"] | None = None,
    ) -> StoreInfo:
        """See :meth:`RemoteStore.create`."""
        return await self._call(
            self._asks.create(
                dim=dim,
                dtype=dtype,
                metric=metric,
                embedder=embedder,
                indexed=indexed,
                durability=durability,
                budget_nbytes=budget_nbytes,
                at_budget=at_budget,
            )
        )

    async def info(self) -> StoreInfo:
        """See :meth:`RemoteStore.info`."""
        return await self._call(self._asks.info())

    # -- changes --------------------------------------------------------------------------------------------------

    async def add(
        self,
        content: str | None = None,
        *,
        vector: Any = None,
        tensors: Mapping[str, Any] | None = None,
        id: str | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        importance: float = 0.5,
        ttl_s: float | None = None,
    ) -> str:
        """See :meth:`RemoteStore.add`."""
        given = {
            "content": content,
            "vector": vector,
            "tensors": tensors,
            "id": id,
            "user_id": user_id,
            "agent_id": agent_id,
            "run_id": run_id,
            "metadata": metadata,
            "importance": importance,
            "ttl_s": ttl_s,
        }
        return (await self._call(self._asks.add(given)))[0]

    async def add_many(self, records: Iterable[Mapping[str, Any]]) -> list[str]:
        """See :meth:`RemoteStore.add_many`."""
        return await self._call(self._asks.add_many(records))

    async def update(
        self,
        id: str,
        *,
        content: str | EllipsisType | None = ...,
        vector: Any = ...,
        tensors: Mapping[str, Any] | EllipsisType | None = ...,
        metadata: Mapping[str, Any] | EllipsisType | None = ...,
        importance: float | EllipsisType = ...,
        ttl_s: float | EllipsisType | None = ...,
        if_version: int | None = None,
        with_tensors: bool = True,
    ) -> RemoteRecord:
        """See :meth:`RemoteStore.update`."""
        given = {
            "content": content,
            "vector": vector,
            "tensors": tensors,
            "metadata": metadata,
            "importance": importance,
            "ttl_s": ttl_s,
        }
        return await self._call(self._asks.update(id, given, if_version, with_tensors=with_tensors))

    async def delete(self, id: str) -> bool:
        """See :meth:`RemoteStore.delete`."""
        return await self._call(self._asks.delete(id))

    async def clear(
        self,
        *,
        filters: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
    ) -> int:
        """See :meth:`RemoteStore.clear`."""
        return await self._call(self._asks.clear(filters, user_id=user_id, agent_id=agent_id, run_id=run_id))

    # -- questions ------------------------------------------------------------------------------------------------

    async def get(self, id: str, *, with_tensors: bool = True) -> RemoteRecord | None:
        """See :meth:`RemoteStore.get`."""
        return await self._call(self._asks.get(id, with_tensors=with_tensors))

    async def tensor(self, id: str, name: str) -> Any:
        """See :meth:`RemoteStore.tensor`."""
        return await self._call(self._asks.tensor(id, name))

    async def get_all(
        self,
        *,
        filters: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        with_tensors: bool = True,
    ) -> Page:
        """See :meth:`RemoteStore.get_all`."""
        listing = Listing(
            self._asks,
            filters,
            limit,
            cursor,
            with_tensors=with_tensors,
            user_id=user_id,
            agent_id=agent_id,
            run_id=run_id,
        )
        while (ask := listing.next()) is not None:
            listing.take(await self._call(ask))
        return listing.found

    async def search(
        self,
        query: Any,
        *,
        limit: int = 10,
        filters: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        threshold: float | None = None,
        mode: Mode = "auto",
        with_tensors: bool = True,
    ) -> list[Hit]:
        """See :meth:`RemoteStore.search`."""
        return await self._call(
            self._asks.search(
                query,
                filters,
                with_tensors=with_tensors,
                limit=limit,
                user_id=user_id,
                agent_id=agent_id,
                run_id=run_id,
                threshold=threshold,
                mode=mode,
            )
        )
