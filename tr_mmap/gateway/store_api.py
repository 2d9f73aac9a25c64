"""The bodies and parameters of requests to stores, and their responses: documented, and stable. Types only."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

__all__ = [
    "STORE_NAME",
    "AddBody",
    "Added",
    "ClearQuery",
    "CreateStoreBody",
    "Deleted",
    "FoundRecord",
    "ListQuery",
    "ReadQuery",
    "RecordBody",
    "RecordInfo",
    "RecordPage",
    "ScopeQuery",
    "SearchBody",
    "SearchResult",
    "StoreInfo",
    "TensorQuery",
    "UpdateBody",
]

STORE_NAME: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$"

Limit = Annotated[int, Meta(ge=1, le=1000)]
TensorsIn = Literal["none", "list", "base64"]
"""How a response gives vectors and tensors: ``none`` says their dtype and shape alone; as ``list``, those that have too
many numbers, infinity or NaN are ``base64`` nevertheless. If the request's header
``Accept`` has ``application/octet-stream``, they lie in the binary part instead."""


class CreateStoreBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """A store to be made, with the options of :class:`tr_mmap.store.Store`.

    Attributes:
        dim: numbers of a vector; null to learn it from the first one.
        dtype: of the vectors.
        metric: by which they are compared.
        embedder: makes vectors of texts; the bundled one, or none.
        indexed: fields of the metadata by which filters find records quickly.
        durability: what a commit outlives.
        budget_nbytes: how much all records may count for; null for no limit.
        at_budget: whether what does not fit is refused, or other records go.
    """

    dim: Annotated[int, Meta(ge=1)] | None = None
    dtype: str | None = None
    metric: Literal["cosine", "dot", "l2"] | None = None
    embedder: Literal["multilingual-e5-small-q4"] | None = None
    indexed: tuple[str, ...] | None = None
    durability: Literal["memory", "os", "fsync"] | None = None
    budget_nbytes: Annotated[int, Meta(ge=1)] | None = None
    at_budget: Literal["fail", "evict"] | None = None


class StoreInfo(Struct, kw_only=True):
    """A store, and what it was made with."""

    name: str
    dim: int | None = None
    dtype: str = "float32"
    metric: str = "cosine"
    embedder: str | None = None
    indexed: tuple[str, ...] = ()
    durability: str = "memory"
    budget_nbytes: int | None = None
    at_budget: str = "fail"


class RecordBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """A record to be added.

    Attributes:
        content: its text.
        vector: a list of numbers, or a tensor in one of its forms.
        tensors: by name, each in one of its forms.
        id: names it; a new one if it is left out.
        user_id: whose it is; a token of one user says it already.
        agent_id: which agent's.
        run_id: which run's.
        metadata: values by name.
        importance: 0 to 1.
        ttl_s: after how many seconds it is gone.
    """

    content: str | None = None
    vector: Any = None
    tensors: dict[str, Any] = {}
    id: str | None = None
    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    metadata: dict[str, Any] = {}
    importance: float = 0.5
    ttl_s: float | None = None


class AddBody(RecordBody, forbid_unknown_fields=True, kw_only=True):
    """A record to be added; or several, in one commit.

    Attributes:
        records: several, and then nothing beside them.
    """

    records: list[RecordBody] | None = None


class Added(Struct):
    """The ids of the records that were added, in their order."""

    ids: list[str]


class UpdateBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed in a record; the rest stays.

    Attributes:
        content: its new text; null for none.
        vector: its new vector; null for none.
        tensors: all its tensors; null for none.
        metadata: all its metadata.
        importance: 0 to 1.
        ttl_s: seconds from now; null for never.
        version: change it only if it is of that version.
    """

    content: str | UnsetType | None = UNSET
    vector: Any = UNSET
    tensors: dict[str, Any] | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    importance: float | UnsetType = UNSET
    ttl_s: float | UnsetType | None = UNSET
    version: int | None = None


class SearchBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is looked for.

    Attributes:
        query: a text; or a vector, as a list of numbers or as a tensor in one of its forms.
        limit: how many at most.
        filters: which records.
        user_id: only this user's.
        agent_id: only this agent's.
        run_id: only this run's.
        threshold: the lowest score.
        mode: ``exact`` compares vectors, ``text`` words; ``auto`` chooses by the query and the store.
        tensors: how vectors and tensors are given.
    """

    query: Any
    limit: Limit = 10
    filters: dict[str, Any] | None = None
    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    threshold: float | None = None
    mode: str = "auto"
    tensors: TensorsIn = "none"


class RecordInfo(Struct, kw_only=True):
    """A record.

    Attributes:
        vector: a tensor in one of its forms, or its dtype and shape; null for none.
        tensors: the same, by name.
        created_at, updated_at, expires_at: seconds since 1970.
    """

    id: str
    version: int
    content: str | None
    user_id: str | None
    agent_id: str | None
    run_id: str | None
    metadata: dict[str, Any]
    importance: float
    created_at: float
    updated_at: float
    expires_at: float | None
    vector: dict[str, Any] | None
    tensors: dict[str, dict[str, Any]]


class RecordPage(Struct):
    """Records, newest first.

    Attributes:
        cursor: for the next page; null if this is the last one.
    """

    records: list[RecordInfo]
    cursor: str | None


class FoundRecord(Struct):
    """One result of a search.

    Attributes:
        score: the higher, the better.
        distance: the smaller, the better; null for a search of texts.
    """

    record: RecordInfo
    score: float
    distance: float | None


class SearchResult(Struct):
    """What was found, the best first."""

    hits: list[FoundRecord]


class Deleted(Struct):
    """How many records were deleted."""

    deleted: int


class ScopeQuery(Struct, forbid_unknown_fields=True, kw_only=True):
    """Parameters of all requests to a store.

    Attributes:
        scope: a user: only this user's records are shown and changed. A token may grant no others.
    """

    scope: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET


class ReadQuery(ScopeQuery, forbid_unknown_fields=True, kw_only=True):
    """Parameters of requests that are answered with a record.

    Attributes:
        tensors: how its vector and its tensors are given.
    """

    tensors: TensorsIn = "none"


class TensorQuery(ScopeQuery, forbid_unknown_fields=True, kw_only=True):
    """Parameters of a request for one tensor.

    Attributes:
        tensors: ``binary`` for its bytes alone; else JSON.
    """

    tensors: Literal["binary", "list", "base64"] = "binary"


class ClearQuery(ScopeQuery, forbid_unknown_fields=True, kw_only=True):
    """Which records.

    Attributes:
        filters: a filter, as JSON.
        user_id: only this user's.
        agent_id: only this agent's.
        run_id: only this run's.
    """

    filters: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    agent_id: str | UnsetType = UNSET
    run_id: str | UnsetType = UNSET


class ListQuery(ClearQuery, forbid_unknown_fields=True, kw_only=True):
    """Which records, and how many.

    Attributes:
        limit: how many at most.
        cursor: of the page before.
        tensors: how vectors and tensors are given.
    """

    limit: Limit = 100
    cursor: str | UnsetType = UNSET
    tensors: TensorsIn = "none"
