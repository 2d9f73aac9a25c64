"""``struct tr_tensor`` of ``tr_algorithm.h``, for the runners of compiled algorithms. Knows no engine."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ...tsr import dtypes
from ...wire.header import MAX_NDIM
from ..messages import TensorSpec

__all__ = ["ALIGNMENT", "ERROR_NBYTES", "TENSOR", "Refused", "describe_input", "read_output", "text_of"]

TENSOR: Final = np.dtype(
    [("dtype", "<i4"), ("ndim", "<i4"), ("shape", "<i8", MAX_NDIM), ("nbytes", "<u8"), ("data", "<u8"), ("name", "<u8")]
)
"""``struct tr_tensor``."""

ERROR_NBYTES: Final = 1024
ALIGNMENT: Final = 64  # of an output's elements


class Refused(Exception):
    """An algorithm or its result is refused; the text says why. ``kind`` is the ``type`` of the AlgorithmError."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def describe_input(record: Any, spec: TensorSpec, data: int) -> None:
    """Fill an input's record, except its name, which the caller sets.

    Args:
        record: one element of an array of :data:`TENSOR`.
        spec: of the tensor.
        data: address of its elements.
    """
    dtype = dtypes.by_name(spec.dtype)
    record["dtype"], record["ndim"] = dtype.code, len(spec.shape)
    record["shape"][: len(spec.shape)] = spec.shape
    record["nbytes"] = dtype.itemsize * math.prod(spec.shape)
    record["data"] = data


def read_output(record: Any, name: str, data: int, offset: int, share_nbytes: int) -> TensorSpec:
    """Check and read an output's record, which the algorithm has filled.

    Args:
        record: one element of an array of :data:`TENSOR`.
        name: of the output.
        data: the address that the algorithm was given for the elements.
        offset: of that address in the outputs' area.
        share_nbytes: how many bytes the algorithm could write there.

    Raises:
        Refused: the algorithm has not made the output, or the record is wrong.
    """
    if record["dtype"] == 0:
        raise Refused("ValueError", f"the algorithm has not made its output {name!r}; see tr_make of tr_algorithm.h")
    if record["data"] != data or not 0 <= record["ndim"] <= MAX_NDIM or record["nbytes"] > share_nbytes:
        raise Refused("ValueError", f"the algorithm says of its output {name!r} what cannot be; see tr_algorithm.h")
    dtype = dtypes.by_code(int(record["dtype"]))
    shape = tuple(int(size) for size in record["shape"][: record["ndim"]])
    if min(shape, default=0) < 0 or dtype.itemsize * math.prod(shape) != record["nbytes"]:
        raise Refused(
            "ValueError", f"the algorithm's output {name!r} of {shape} has other than {record['nbytes']} bytes"
        )
    return TensorSpec(name, dtype.name, shape, offset)


def text_of(data: bytes) -> str:
    """The text in a buffer, up to its first zero byte."""
    return data.partition(b"\0")[0].decode("utf-8", "replace")
