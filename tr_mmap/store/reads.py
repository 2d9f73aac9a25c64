"""The methods that read a store or a snapshot of it: ``get``, ``get_all``, ``ids``, ``search``, ``history``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import EllipsisType
from typing import Any, Final, Literal, TypeAlias, TypeVar

from ..errors import BadMessage
from .arguments import check_id, check_limit, check_max_age, check_threshold
from .changes import slabs_of
from .core import StoreCore
from .records import Event, Hit, Page, Record, Stats
from .views import Snapshot, View, open_now

__all__ = ["Mode", "Questions", "StoreReads", "StoreSnapshot"]

_T = TypeVar("_T")
Mode: TypeAlias = Literal["auto", "exact", "text", "ann", "hybrid"]
_SHORT_NBYTES: Final = 64 << 10  # of a stored record, which is decoded in well under a millisecond


class Questions(ABC):
    """The methods that a store and its snapshots have in common."""

    @property
    @abstractmethod
    def _core(self) -> StoreCore:
        """The store."""

    @abstractmethod
    def _read(self, action: Callable[[View], _T]) -> _T:
        """Call a function with a view."""

    def get_all(
        self,
        *,
        filters: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        """Records, newest first.

        Args:
            filters: which records, see :mod:`tr_mmap.store.filters`; None for all.
            user_id: only this user's.
            agent_id: only this agent's.
            run_id: only this run's.
            limit: how many at most; the page's ``cursor`` leads to the next page. None for all.
            cursor: of the previous page; None for the first one.

        Raises:
            BadMessage: a filter, the limit or the cursor is wrong.
            StoreCorrupt: a record cannot be read; the message names it.
        """
        wanted = self._core._filter(filters, user_id, agent_id, run_id)
        check_limit(limit)
        return self._read(lambda view: view.get_all(wanted, limit, cursor))

    def ids(
        self,
        *,
        filters: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
    ) -> list[str]:
        """The ids of records, newest first. Opens none of their files, so ids of damaged records are listed too.

        Args:
            filters: which records; None for all.
            user_id: only this user's.
            agent_id: only this agent's.
            run_id: only this run's.

        Returns:
            Ids; some of the records may have expired.

        Raises:
            BadMessage: a filter is wrong.
        """
        wanted = self._core._filter(filters, user_id, agent_id, run_id)
        return self._read(lambda view: view.ids(wanted))

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
    ) -> list[Hit]:
        """The records that are nearest to a vector, or that have a text's words; the best first.

        Args:
            query: a vector of shape ``(dim,)``, or a text.
            limit: how many at most.
            filters: which records; None for all.
            user_id: only this user's.
            agent_id: only this agent's.
            run_id: only this run's.
            threshold: the lowest score; None for any.
            mode: ``"exact"`` compares vectors, ``"text"`` compares words. ``"auto"`` compares words if the query is a
                text and the handle has no embedder, else vectors. ``"ann"`` and ``"hybrid"`` are reserved for later
                releases, and refused.

        Raises:
            BadMessage: an argument is wrong.
            WrongShape: the vector does not fit the store.
            StoreCorrupt: a record that was found cannot be read; the message names it.
        """
        core = self._core
        check_limit(limit, may_be_none=False)
        check_threshold(threshold)
        if mode not in ("auto", "exact", "text"):
            raise BadMessage(f"mode is {mode!r:.40}; it must be 'auto', 'exact' or 'text'", detail="mode")
        if query is None:
            raise BadMessage("query is None; it is a text or a vector", detail="query")
        wanted = core._filter(filters, user_id, agent_id, run_id)
        is_text = isinstance(query, str)
        if mode == "text" or (mode == "auto" and is_text and not core.has_embedder):
            if not is_text:
                raise BadMessage("a search of texts needs a text", detail="query")
            return self._read(lambda view: view.with_words(query, wanted, limit, threshold))
        if is_text and not core.has_embedder:
            raise BadMessage("the store has no embedder: give a vector, or search with mode='text'", detail="query")
        vector = core._query_vector(query)
        if vector is None:
            return []
        return self._read(lambda view: view.nearest(vector, wanted, limit, threshold))

    def history(self, id: str) -> list[Event]:
        """The last 32 events of a record, oldest first; the last one may say that it was deleted, and why.

        Returns:
            An empty list if there never was such a record, or if 10,000 others were deleted after it.
        """
        check_id(id)
        return self._read(lambda view: view.history(id))


class StoreReads(StoreCore, Questions):
    """The part of :class:`tr_mmap.store.Store` that reads."""

    @property
    def _core(self) -> StoreCore:
        return self

    def get(self, id: str) -> Record | None:
        """The record of an id; None if there is none.

        Raises:
            BadMessage: the id is not one that a record may have.
            StoreCorrupt: the record cannot be read.
        """
        check_id(id)
        raw = self._catalogue.value("records", id.encode())
        if raw is None:
            return None
        record = open_now(raw, self.scope, self._files, self._places)
        if record is not ...:
            return record
        return self._read(lambda view: view.get(id))  # a snapshot keeps its files from being removed meanwhile

    def get_now(self, id: str) -> Record | EllipsisType | None:
        """As :meth:`get` if that takes microseconds; ``...`` if it may take longer."""
        check_id(id)
        raw = self._catalogue.short_value("records", id.encode(), _SHORT_NBYTES)
        if raw is None or raw is ...:
            return raw
        return open_now(raw, self.scope, self._files, self._places)

    def snapshot(self, *, max_age_s: float = 60.0) -> StoreSnapshot:
        """The store as it is now, for several reads that agree with each other.

        Args:
            max_age_s: seconds after which the snapshot closes itself, because an open snapshot keeps files and pages
                from being freed.

        Raises:
            BadMessage: ``max_age_s`` is not a number of seconds above 0.
        """
        check_max_age(max_age_s)
        return StoreSnapshot(self, max_age_s)

    def stats(self) -> Stats:
        """What the store holds."""
        with self._catalogue.read() as transaction:
            state = transaction.state()
            entries = slabs_of(transaction)
        used = sum(min(each.room, state.next_row - each.first) for each in entries)
        return Stats(
            state.records,
            state.vectors,
            state.epoch,
            state.nbytes,
            self._options.budget_nbytes,
            self._places.nbytes(),
            max(0, used - state.vectors),
            len(entries),
            self._catalogue.count_readers(),
        )


class StoreSnapshot(Snapshot, Questions):
    """What :meth:`Store.snapshot` returns: ``get``, ``get_all``, ``ids``, ``search`` and ``history`` of one moment.

    A record that expires after that moment stays visible.
    """

    def __init__(self, store: StoreReads, max_age_s: float) -> None:
        self._store = store
        super().__init__(store._catalogue, store._view, max_age_s)

    @property
    def _core(self) -> StoreCore:
        return self._store

    def get(self, id: str) -> Record | None:
        """As :meth:`Store.get`."""
        check_id(id)
        return self._read(lambda view: view.get(id))
