"""A store beside its own parts: a large tensor beside ``load``, a filtered search beside another, an empty store."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..peers.stores.base import DIM, LIMIT
from .common import interleave

__all__: list[str] = []

_TENSOR_NBYTES: Final = 64 << 20
_RARE: Final = 100  # one record of so many passes the filter


def _child(directory: str, records: int, quick: bool) -> dict[str, Any]:
    return {
        "tensor": _tensor(directory, quick),
        "filter": _filter(directory, records, quick),
        "empty": _empty(directory),
    }


def _empty(directory: str) -> dict[str, Any]:
    from tr_mmap.store import Store

    with Store("empty", directory) as store:
        before = store.stats().disk_nbytes
        store.add("one", vector=np.ones(DIM, np.float32))
        return {"nbytes": before, "one_record_nbytes": store.stats().disk_nbytes}


def _tensor(directory: str, quick: bool) -> dict[str, Any]:
    import tr_mmap
    from tr_mmap.store import Store

    array = np.ones(_TENSOR_NBYTES // 4, np.float32)
    path = os.path.join(directory, "tensor.tsr")
    tr_mmap.save(path, array)
    with Store("tensor", directory) as store:
        store.add(id="large", tensors={"x": array})

        def get() -> None:
            record = store.get("large")
            assert record is not None
            record.tensors["x"][0]

        def load() -> None:
            tr_mmap.load(path)[0]

        found = interleave({"load": load, "ours": get}, rounds=10 if quick else 40, batch=50)
    Path(path).unlink()
    return {name: each.to_json() for name, each in found.items()}


def _filter(directory: str, records: int, quick: bool) -> dict[str, Any]:
    from tr_mmap.store import Store

    vectors = np.load(os.path.join(directory, "vectors.npy"), mmap_mode="r")[:records]
    random_ = np.random.default_rng(3)
    rare = random_.random(records) < 1 / _RARE
    with Store("filter", directory, indexed=("kind",)) as store:
        for start in range(0, records, 1000):
            store.add_many(
                {
                    "id": str(number),
                    "metadata": {"kind": "rare" if rare[number] else "plain"},
                    "vector": vectors[number],
                }
                for number in range(start, min(start + 1000, records))
            )
        queries = [random_.standard_normal(DIM, np.float32) for _ in range(20)]
        numbers = np.flatnonzero(rare)
        found = wanted = 0
        for query in queries:
            best = numbers[np.argsort(-(vectors[numbers] @ query), kind="stable")[:LIMIT]]
            hits = store.search(query, limit=LIMIT, filters={"kind": "rare"})
            found += len({int(hit.record.id) for hit in hits} & set(best.tolist()))
            wanted += len(best)
        times = interleave(
            {
                "unfiltered": lambda: store.search(queries[0], limit=LIMIT),
                "filtered": lambda: store.search(queries[0], limit=LIMIT, filters={"kind": "rare"}),
            },
            rounds=5 if quick else 20,
            batch=5,
        )
    return {
        "recall": found / wanted,
        "passing": int(rare.sum()),
        **{name: each.to_json() for name, each in times.items()},
    }


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "quick")))
