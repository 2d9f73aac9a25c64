"""One of several processes that change a store at once, and note what they did and saw at which commit."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from children import say

from tr_mmap.store import NoSuchRecord, RecordExists, Store, VersionConflict
from tr_mmap.store.changes import Changes

DIM = 4
Seen = dict[str, tuple[int, str]]  # version and value, by id


def vector_of(value: str) -> np.ndarray[Any, Any]:
    return np.random.default_rng([*value.encode()]).random(DIM).astype(np.float32)


def fields_of(value: str) -> dict[str, Any]:
    return {
        "content": f"value {value}",
        "vector": vector_of(value),
        "tensors": {"t": np.frombuffer(value.encode(), np.uint8)},
        "metadata": {"value": value, "kind": len(value) % 2},
    }


def seen_of(records: list[Any]) -> Seen:
    """What was read; fails if a record is not all of one value."""
    for record in records:
        value = record.metadata["value"]
        assert record.content == f"value {value}"
        assert record.vector.tobytes() == vector_of(value).tobytes()
        assert record.tensors["t"].tobytes() == value.encode()
    return {record.id: (record.version, record.metadata["value"]) for record in records}


def play(path: str, who: int, steps: list[list[Any]]) -> None:
    """Do the steps; say of each what came of it, and of the commits that it made."""
    store = Store("model", path, dim=DIM, indexed=("kind",))
    catalogue = store._catalogue
    commits: list[int] = []
    removed: list[str] = []
    original = catalogue.write

    def write(action: Any) -> Any:
        def noted(transaction: Any) -> Any:
            result = action(transaction)
            commits.append(transaction.state().epoch + 1)
            return result

        return original(noted)

    catalogue.write = write  # type: ignore[method-assign]

    remove = Changes.remove

    def note(changes: Any, record: Any, *more: Any, **options: Any) -> None:
        removed.append(record.id)
        remove(changes, record, *more, **options)

    Changes.remove = note  # type: ignore[method-assign]

    def epoch() -> int:
        with catalogue.read() as transaction:
            return transaction.state().epoch

    say("ready")
    while not os.path.exists(f"{path}/go"):
        time.sleep(0.001)
    for number, (kind, *arguments) in enumerate(steps):
        commits.clear()
        removed.clear()
        value, low = f"{who}-{number}", epoch()
        result: Any = None
        try:
            if kind == "add":
                store.add_many({"id": each, **fields_of(value)} for each in arguments[0])
            elif kind == "update":
                store.update(arguments[0], **fields_of(value))
            elif kind == "compare":
                store.update(arguments[0], if_version=arguments[1], **fields_of(value))
            elif kind == "delete":
                result = store.delete(arguments[0])
            elif kind == "clear":
                assert store.clear(filters={"kind": arguments[0]}) == len(removed)
                result = list(removed)
            elif kind == "compact":
                store.compact()
            elif kind == "get":
                found = store.get(arguments[0])
                result = {} if found is None else seen_of([found])
            elif kind == "list":
                result = seen_of(store.get_all())
            elif kind == "filter":
                result = seen_of(store.get_all(filters={"kind": arguments[0]}))
            elif kind == "search":
                hits = store.search(vector_of(value), limit=100)
                assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
                result = seen_of([hit.record for hit in hits])
            elif kind == "words":
                result = seen_of([hit.record for hit in store.search("value", limit=100)])
            elif kind == "snapshot":
                with store.snapshot() as then:
                    assert then._transaction is not None
                    low = then._transaction.state().epoch
                    result = seen_of(then.get_all())
                    store.add(id=value, **fields_of(value))
                    assert seen_of([hit.record for hit in then.search("value", limit=100)]) == result
                    assert seen_of([hit.record for hit in then.search(vector_of(value), limit=100)]) == result
                    assert then.get(value) is None
                say("saw", low, low, "list", [], result)
                kind, arguments, low, result = "add", [[value]], epoch(), None
        except RecordExists as error:
            say("saw", low, epoch(), "there", [error.id], True)
            continue
        except NoSuchRecord as error:
            say("saw", low, epoch(), "there", [error.id], False)
            continue
        except VersionConflict as error:
            say("saw", low, epoch(), "version", [error.id], error.found)
            continue
        if kind == "clear" and not commits:  # it has found none
            kind, result = "filter", {}
        if kind in ("add", "update", "compare", "delete", "clear"):
            say("did", commits[0], kind, arguments, value, result)
            if len(commits) > 1:
                say("kept", commits[1:])
        else:
            say("saw", low, epoch(), kind, arguments, result)
            say("kept", commits[:])
    say("kept", commits[:0])
    store.close()
