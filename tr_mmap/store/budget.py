"""How many bytes a record counts for in the budget, and which records are evicted. Changes nothing."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator
from typing import Final

import msgspec

from ..errors import OutOfSpace
from .catalogue import Transaction
from .options import Options
from .records import Record, decode_record

__all__ = ["least_worth", "microseconds", "nbytes_without_tensors", "to_evict", "worth_keys"]

_RECORD_NBYTES: Final = 512  # what a record counts for beside its own bytes, vector and tensors
_OWNER_NBYTES: Final = 8
_ALL: Final = bytes(_OWNER_NBYTES)
_WORTH: Final = struct.Struct(">IQQ").pack

_encode: Final = msgspec.msgpack.Encoder().encode


def nbytes_without_tensors(record: Record, vector_nbytes: int) -> int:
    """Bytes that a record counts for in the budget, without those of its tensors.

    Args:
        record: any of the store.
        vector_nbytes: size of a vector of the store.
    """
    own = record.content, record.user_id, record.agent_id, record.run_id, record.metadata
    return _RECORD_NBYTES + len(_encode(own)) + record._has_vector * vector_nbytes


def microseconds(moment_s: float) -> int:
    """A moment as keys have it: whole microseconds since 1970."""
    return min(max(int(moment_s * 1e6), 0), 2**63)


def _owner(user_id: str) -> bytes:
    return hashlib.blake2b(user_id.encode(), digest_size=_OWNER_NBYTES).digest()  # an id may be longer than a key


def worth_keys(record: Record) -> list[bytes]:
    """Its keys in the order of eviction, among all records and among those of its user: the lowest is evicted first."""
    worth = _WORTH(int(record.importance * 2**31), microseconds(record.updated_at), record._row)
    return [_ALL + worth] if record.user_id is None else [_ALL + worth, _owner(record.user_id) + worth]


def least_worth(transaction: Transaction, user_id: str | None) -> Iterator[bytes]:
    """The ids of records, the one that is worth least first. The transaction must change nothing meanwhile.

    Args:
        transaction: any.
        user_id: only this user's; and those of users whose ids have the same hash, so check each. None for all.
    """
    owner = _ALL if user_id is None else _owner(user_id)
    for _, record_id in transaction.items_with("worth", owner):
        yield record_id


def to_evict(
    transaction: Transaction, options: Options, nbytes: int, kept: Collection[str], scope: str | None
) -> list[Record]:
    """The records to evict so that the others fit into the budget. Reads only records up to the last one to evict.

    Args:
        transaction: any.
        options: of the store.
        nbytes: what all records together count for.
        kept: ids that must stay: what the commit adds.
        scope: the only user whose records may be evicted; None for all.

    Raises:
        OutOfSpace: evicting all that may go is not enough, or the store evicts nothing.
    """
    budget = options.budget_nbytes
    if budget is None or nbytes <= budget:
        return []
    excess, found = nbytes - budget, []
    if options.at_budget == "evict":
        staying = frozenset(kept)
        for record_id in least_worth(transaction, scope):
            if record_id.decode() in staying:
                continue
            raw = transaction.get(record_id, db=transaction.records)
            record = None if raw is None else decode_record(raw)
            if record is None or (scope is not None and record.user_id != scope):
                continue
            found.append(record)
            excess -= record._nbytes
            if excess <= 0:
                return found
        advice = "all others together are less than that; raise budget_nbytes"
        if scope is not None:
            advice = f"this handle evicts records of the user {scope!r} only; delete others', or raise budget_nbytes"
    else:
        advice = "delete records, raise budget_nbytes, or make the store with at_budget='evict'"
    raise OutOfSpace(
        f"the store's budget is {budget} bytes, and this would make it {nbytes}: {advice}",
        needed_nbytes=excess,
        free_nbytes=0,
        is_budget=True,
    )
