"""Tensors of candle (the package ``candle-nn``) as arrays, inside the contained process. Never imports candle."""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np

from ..tsr import dtypes

__all__ = ["is_one", "plain"]

_DTYPES: Final = {
    "u8": "uint8", "u32": "uint32", "i64": "int64", "bf16": "bfloat16", "f16": "float16", "f32": "float32",
    "f64": "float64",
}  # fmt: skip


def is_one(value: Any) -> bool:
    """Whether a value is a tensor of candle."""
    kind = getattr(sys.modules.get("candle"), "Tensor", None)
    return isinstance(kind, type) and isinstance(value, kind)


def plain(value: Any) -> Any:
    """Copy a tensor of candle into an array. Anything else is returned as it is.

    It is a copy, because candle gives the elements as Python's numbers only.
    """
    if not is_one(value):
        return value
    dtype = dtypes.by_name(_DTYPES[str(value.dtype).lower()]).numpy
    return np.array(value.contiguous().flatten_all().values(), dtype).reshape(value.shape)
