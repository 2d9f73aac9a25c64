"""``RemoteStore``: a store of a gateway, asked by a program that waits for each response."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ...store.records import Hit, Page
from ..store_api import StoreInfo
from .asks import Ask
from .records import RemoteRecord
from .store_messages import Listing, StoreAsks

if TYPE_CHECKING:
    from ...store.reads import Mode

__all__ = ["RemoteStore"]

_T = TypeVar("_T")


class _Call(Protocol):
    def __call__(self, ask: Ask[_T], /) -> _T: ...


class RemoteStore:
    """A store of a gateway; :meth:`Client.store` makes one, and asks nothing.

    Its methods take and give what those of :class:`tr_mmap.store.Store` do, and raise the same errors. Vectors and
    tensors come as arrays of their own, or as tensors of torch; ``with_tensors=False`` lets them be, and says their
    dtype and shape alone (:class:`TensorInfo`). The gateway's token says which records are seen and changed.

    Every method raises ``NotFound`` if there is no such store, ``Forbidden`` if the token does not grant it, and what
    :class:`Client` raises.

    Attributes:
        name: of the store.
        scope: the user whose records alone are meant; None for all that the token grants.
    """

    def __init__(self, call: _Call, asks: StoreAsks) -> None:
        self.name = asks.name
        self.scope = asks.scope
        self._call = call
        self._asks = asks

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    # -- the store ------------------------------------------------------------------------------------------------

    def create(
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
        """Make the store, unless it is there with these options. They are those of :class:`tr_mmap.store.Store`.

        Args:
            embedder: the name of the bundled one, ``"multilingual-e5-small-q4"``; None for none.
            durability: ``"os"`` if a new store is not told.

        Raises:
            OptionMismatch, EmbedderMismatch, Conflict: it is there with other options.
            Forbidden: the token is no administrator's, or stores are not made there.
        """
        return self._call(
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

    def info(self) -> StoreInfo:
        """What the store was made with."""
        return self._call(self._asks.info())

    # -- changes --------------------------------------------------------------------------------------------------

    def add(
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
        """Add a record; see :meth:`tr_mmap.store.Store.add`.

        Without an ``id`` it is added once, also if a response was lost and the request is sent again. With one, the
        request is not sent again then.

        Returns:
            Its id.

        Raises:
            BadMessage, WrongShape, RecordExists: as there.
            StoreFull: there is no room, or more than the budget.
        """
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
        return self._call(self._asks.add(given))[0]

    def add_many(self, records: Iterable[Mapping[str, Any]]) -> list[str]:
        """Add records in one commit: all of them, or none.

        Args:
            records: mappings with the parameters of :meth:`add`.

        Returns:
            Their ids, in the same order.
        """
        return self._call(self._asks.add_many(records))

    def update(
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
        """Change a record, and return it; see :meth:`tr_mmap.store.Store.update`. What is not given stays.

        Raises:
            NoSuchRecord: there is none.
            VersionConflict: it is of another version.
            ConnectionLost: the response was lost; the change may have been made.
        """
        given = {
            "content": content,
            "vector": vector,
            "tensors": tensors,
            "metadata": metadata,
            "importance": importance,
            "ttl_s": ttl_s,
        }
        return self._call(self._asks.update(id, given, if_version, with_tensors=with_tensors))

    def delete(self, id: str) -> bool:
        """Delete a record. Returns whether there was one."""
        return self._call(self._asks.delete(id))

    def clear(
        self,
        *,
        filters: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
    ) -> int:
        """Delete **all** records, or those that a filter lets pass. Returns how many."""
        return self._call(self._asks.clear(filters, user_id=user_id, agent_id=agent_id, run_id=run_id))

    # -- questions ------------------------------------------------------------------------------------------------

    def get(self, id: str, *, with_tensors: bool = True) -> RemoteRecord | None:
        """The record of an id; None if there is none."""
        return self._call(self._asks.get(id, with_tensors=with_tensors))

    def tensor(self, id: str, name: str) -> Any:
        """One tensor of a record.

        Raises:
            NoSuchRecord: there is no such record.
            NotFound: it has no tensor of that name.
        """
        return self._call(self._asks.tensor(id, name))

    def get_all(
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
        """Records, newest first; see :meth:`tr_mmap.store.Store.get_all`.

        They come in several responses if they are many, so they need not all be of the same moment. Each may take the
        client's time.
        """
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
            listing.take(self._call(ask))
        return listing.found

    def search(
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
        """The records that are nearest to a vector, or that have a text's words.

        Args, beside those of :meth:`tr_mmap.store.Store.search`:
            limit: how many at most, up to 1000.
        """
        return self._call(
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
