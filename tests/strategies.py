"""Hypothesis strategies for tensors of every dtype, shape, layout and framework, and ``bits`` to compare them.

Elements are random bytes, so NaN payloads, -0.0 and subnormals occur. Never imports the code under test but its
dtype table and error types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tr_mmap.tsr.dtypes import TABLE, DType

try:
    import torch
except ModuleNotFoundError:
    torch = None

LAYOUTS = ("c", "fortran", "strided", "reversed", "readonly", "broadcast")
MAX_NDIM = 16
MAX_COUNT = 4096  # elements; keeps an example small, whatever its shape
STRIDED_AXES = 3  # each strided axis doubles the memory behind an example


def dtypes() -> st.SearchStrategy[DType]:
    """Every row of the table."""
    return st.sampled_from(TABLE)


@st.composite
def shapes(draw: st.DrawFn, max_ndim: int = MAX_NDIM) -> tuple[int, ...]:
    """0-d to ``max_ndim`` dimensions, sizes 0 to 5, at most MAX_COUNT elements."""
    ndim = draw(st.integers(0, max_ndim))
    shape: list[int] = []
    count = 1
    for _ in range(ndim):
        size = draw(st.integers(0, 5))
        if count * max(size, 1) > MAX_COUNT:
            size = 1
        count *= max(size, 1)
        shape.append(size)
    return tuple(shape)


@st.composite
def arrays(
    draw: st.DrawFn,
    dtype: st.SearchStrategy[DType] | None = None,
    shape: st.SearchStrategy[tuple[int, ...]] | None = None,
    layout: st.SearchStrategy[str] | None = None,
) -> np.ndarray[Any, Any]:
    """A numpy array of either byte order in any of LAYOUTS."""
    kind = draw(dtypes() if dtype is None else dtype)
    sizes = draw(shapes() if shape is None else shape)
    how = draw(st.sampled_from(LAYOUTS) if layout is None else layout)
    array = _laid_out(_random(draw, kind, sizes), how)
    if kind.itemsize > 1 and draw(st.booleans()):
        array = array.view(array.dtype.newbyteorder(">"))  # the bytes are random: any order of them will do
    return array


@st.composite
def torch_tensors(
    draw: st.DrawFn,
    dtype: st.SearchStrategy[DType] | None = None,
    shape: st.SearchStrategy[tuple[int, ...]] | None = None,
    layout: st.SearchStrategy[str] | None = None,
) -> torch.Tensor:
    """A torch tensor, contiguous or not, with or without grad, lazily conjugated or not."""
    kind = draw(dtypes() if dtype is None else dtype)
    sizes = draw(shapes() if shape is None else shape)
    how = draw(st.sampled_from(LAYOUTS) if layout is None else layout)
    flat = _random(draw, kind, sizes).reshape(-1).view(np.uint8)
    tensor = torch.from_numpy(flat).view(kind.torch).reshape(sizes)
    if how == "fortran":
        order = tuple(reversed(range(tensor.ndim)))
        tensor = tensor.permute(order).contiguous().permute(order)
    elif how == "strided":
        axes = min(tensor.ndim, STRIDED_AXES)
        big = torch.empty([2 * size for size in sizes[:axes]] + list(sizes[axes:]), dtype=tensor.dtype)
        view = big[(slice(None, None, 2),) * axes]
        view.copy_(tensor)
        tensor = view
    elif how == "broadcast" and tensor.ndim and tensor.shape[0]:
        tensor = tensor[:1].expand(tensor.shape)
    if tensor.is_floating_point() and kind.itemsize > 1 and draw(st.booleans()):
        tensor.requires_grad_()
    if tensor.is_complex() and draw(st.booleans()):
        tensor = tensor.conj()
        if draw(st.booleans()):
            tensor = tensor.imag  # carries the negative bit, and is strided
    return tensor


def tensors(
    dtype: st.SearchStrategy[DType] | None = None,
    shape: st.SearchStrategy[tuple[int, ...]] | None = None,
) -> st.SearchStrategy[Any]:
    """numpy arrays, and torch tensors where torch is installed."""
    return arrays(dtype, shape) if torch is None else arrays(dtype, shape) | torch_tensors(dtype, shape)


def bits(tensor: Any) -> bytes:
    """The elements as TSR stores them: C order, little-endian. Equal bits mean equal tensors, NaNs included."""
    if torch is not None and isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
        if tensor.numel() == 0:
            return b""
        return tensor.view(torch.uint8).numpy().tobytes()
    array = np.asarray(tensor)
    data = array.tobytes("C")
    if array.dtype.isnative or not data:
        return data
    part = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    return np.frombuffer(data, np.uint8).reshape(-1, part)[:, ::-1].tobytes()


def shape_of(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _random(draw: st.DrawFn, kind: DType, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape, dtype=np.int64))
    # A few drawn bytes, repeated with a drawn seed behind them: shrinks well, and stays fast for big shapes.
    head = draw(st.binary(min_size=0, max_size=4 * kind.itemsize))
    seed = draw(st.integers(0, 2**32 - 1))
    tail = np.random.default_rng(seed).bytes(count * kind.itemsize)
    data = bytearray((head + tail)[: count * kind.itemsize])
    flat = np.frombuffer(data, np.uint8) if count else np.empty(0, np.uint8)
    if kind.name == "bool":
        flat = flat & 1  # any other byte is undefined behaviour in numpy and torch alike
    return flat.view(kind.numpy).reshape(shape)


def _laid_out(array: np.ndarray[Any, Any], how: str) -> np.ndarray[Any, Any]:
    if how == "fortran":
        return np.asfortranarray(array)
    if how in ("strided", "reversed"):
        axes = min(array.ndim, STRIDED_AXES)
        step, factor = (2, 2) if how == "strided" else (-1, 1)
        big = np.empty([factor * size for size in array.shape[:axes]] + list(array.shape[axes:]), array.dtype)
        view = big[(slice(None, None, step),) * axes]
        if array.ndim:
            view[...] = array
        else:
            view = array
        return view
    if how == "readonly":
        array.flags.writeable = False
    if how == "broadcast" and array.ndim and array.shape[0]:
        return np.broadcast_to(array[:1], array.shape)
    return array
