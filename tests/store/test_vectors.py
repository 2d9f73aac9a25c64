"""A vector is kept as it was given, in the store's dtype, or is refused: never wrapped, never cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tr_mmap import BadMessage
from tr_mmap.store import Store

WHOLE = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
UNFIT: list[tuple[str, Any]] = [
    ("int8", [300, -200, 1]),
    ("int8", [0.7, 1, 2]),
    ("int8", np.int64([0, 0, -129])),
    ("int8", np.uint8([0, 0, 128])),
    ("uint8", [-1, 256, 3]),
    ("uint8", np.float32([1, 2, 3.9])),
    ("uint8", np.int8([0, 0, -1])),
    ("uint16", np.float16([0, 0, -1])),
    ("int32", [0, 0, 2**31]),
    ("uint32", np.float64([0, 0, 2**32])),
    ("int64", [0, 0, 2**63]),
    ("int64", np.float64([0, 0, 2.0**63])),
    ("int64", np.float64([0, 0, 1e300])),
    ("uint64", [0, 0, -1]),
    ("uint64", np.float64([0, 0, 2.0**64])),
    ("int32", np.float32([0, 0, np.nan])),
    ("int32", [0, 0, float("inf")]),
    ("int16", np.longdouble([0, 0, 0.5])),
]


@pytest.mark.parametrize(("dtype", "vector"), UNFIT, ids=str)
def test_a_number_that_the_store_s_dtype_does_not_have_is_refused(root: Path, dtype: str, vector: Any) -> None:
    with Store("whole", root, dtype=dtype) as store:
        kept = store.add("kept", vector=[1, 2, 3])
        for action in (
            lambda: store.add(vector=vector),
            lambda: store.add_many([{"vector": [1, 2, 3]}, {"vector": vector}]),
            lambda: store.update(kept, vector=vector),
        ):
            with pytest.raises(BadMessage, match=r"has (the|a) number") as caught:
                action()
            assert caught.value.detail == "vector"
            assert "\n" not in str(caught.value)
        assert store.stats().records == 1
        assert store.get(kept).vector.tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", WHOLE)
def test_every_whole_number_of_the_store_s_dtype_is_kept_exactly(root: Path, dtype: str) -> None:
    limits = np.iinfo(dtype)
    exact = [limits.min, limits.max, 1]
    with Store("whole", root, dtype=dtype) as store:
        assert store.get(store.add(vector=np.array(exact, dtype))).vector.tolist() == exact
        assert store.get(store.add(vector=exact)).vector.tolist() == exact
        assert store.get(store.add(vector=np.float64([1, 0, 100]))).vector.tolist() == [1, 0, 100]
        assert store.get(store.add(vector=np.array([True, False, True]))).vector.tolist() == [1, 0, 1]


def test_small_floats_go_into_a_store_of_whole_numbers_if_they_are_whole(root: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with Store("whole", root, dtype="int8") as store:
        assert store.get(store.add(vector=np.array([1, -2], ml_dtypes.bfloat16))).vector.tolist() == [1, -2]
        for wrong in ([1.5, 0], [512, 0]):
            with pytest.raises(BadMessage, match="the number"):
                store.add(vector=np.array(wrong, ml_dtypes.bfloat16))


def test_vectors_of_an_embedder_that_do_not_fit_are_refused_too(root: Path) -> None:
    def halves(texts: list[str]) -> Any:
        return np.full((len(texts), 2), 0.5)

    with Store("whole", root, dtype="int8", embedder=halves) as store:
        with pytest.raises(BadMessage, match=r"the number 0\.5"):
            store.add("x")
        assert store.stats().records == 0


def test_a_query_of_a_store_of_whole_numbers_may_have_any_numbers(root: Path) -> None:
    with Store("whole", root, dtype="int8", metric="l2") as store:
        near = store.add(vector=[1, 2])
        store.add(vector=[100, 2])
        assert store.search([0.5, 300.25], limit=1)[0].record.id == near
