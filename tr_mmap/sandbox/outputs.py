"""Opens the results that a process describes in its answer, in place, after the whole description was checked."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ..errors import TRException
from ..tsr import dtypes
from ..tsr.tensors import from_buffer
from ..wire.header import MAX_NDIM
from .inputs import ALIGNMENT
from .messages import Answer, TensorSpec
from .values import MAX_VALUES_NBYTES, parse_values
from .verdicts import forged

__all__ = ["end_of", "end_of_all", "open_outputs"]


_NOTHING: Final = (b"", b"{}")


def end_of_all(answer: Answer) -> int:
    """Where the results end, according to the process; not checked."""
    end = max(0, answer.values_offset + answer.values_nbytes)
    for spec in answer.tensors:
        end = max(end, end_of(spec))
    return end


def end_of(spec: TensorSpec) -> int:
    """Where a tensor ends, according to the process; 0 for an impossible description, which is refused later."""
    try:
        return spec.offset + dtypes.by_name(spec.dtype).itemsize * math.prod(spec.shape)
    except (TRException, ValueError):
        return 0


def open_outputs(answer: Answer, buffer: Any) -> dict[str, Any]:
    """Check the description of all outputs, and open them as views of the buffer.

    Raises:
        AlgorithmError: the description is not one that our runner would give.
    """
    try:
        end = answer.values_offset + answer.values_nbytes
        if not 0 <= answer.values_offset <= end <= len(buffer) or answer.values_nbytes > MAX_VALUES_NBYTES:
            raise ValueError(f"values at {answer.values_offset} to {end}, of {len(buffer)} bytes")
        text = bytes(buffer[answer.values_offset : end])
        outputs = parse_values(text) if text not in _NOTHING else {}
        for spec in answer.tensors:
            if spec.name in outputs:
                raise ValueError(f"two results named {spec.name!r:.80}")
            outputs[spec.name] = _open_tensor(spec, buffer)
        return outputs
    except (ValueError, OverflowError, TRException) as error:
        raise forged(error) from None


def _open_tensor(spec: TensorSpec, buffer: Any) -> Any:
    if spec.area:
        raise ValueError(f"a result in the area {spec.area!r:.80}, and there is one")
    if len(spec.shape) > MAX_NDIM or any(not 0 <= size < 1 << 63 for size in spec.shape):
        raise ValueError(f"shape {spec.shape!r:.80}")
    dtype = dtypes.by_name(spec.dtype)
    nbytes = dtype.itemsize * math.prod(spec.shape)
    if spec.offset % ALIGNMENT or not 0 <= spec.offset <= spec.offset + nbytes <= len(buffer):
        raise ValueError(f"{nbytes} bytes at {spec.offset}, of {len(buffer)} bytes")
    tensor = from_buffer(buffer, dtype, spec.shape, spec.offset, "numpy")
    # numpy trusts that a bool is 0 or 1: it computes sizes of buffers from masks.
    if tensor.dtype == np.bool_ and tensor.view(np.uint8).max(initial=0) > 1:
        raise ValueError("a bool that is neither 0 nor 1")
    return tensor
