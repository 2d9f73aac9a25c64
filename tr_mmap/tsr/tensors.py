"""Tensors to bytes and back: numpy and torch, every layout, bit for bit. Never opens files, never reads headers.

torch is imported only when a caller wants a torch tensor. To recognise an input as one, ``sys.modules`` is enough.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, overload

import numpy as np

from ..errors import MissingPackage, UnsupportedTensor
from ..native import copy, learn_torch
from ..wire.header import MAX_NDIM
from .dtypes import DType, by_name, from_numpy, from_torch, import_torch
from .framework_names import check_framework_name

if TYPE_CHECKING:
    from mmap import mmap

    import torch

    ReadableBuffer: TypeAlias = bytes | bytearray | memoryview | mmap
    WriteableBuffer: TypeAlias = bytearray | memoryview | mmap
    Tensor: TypeAlias = "np.ndarray[Any, Any] | torch.Tensor"

__all__ = [
    "as_torch",
    "copy_into",
    "from_buffer",
    "is_little_endian",
    "is_plain_torch",
    "received_torch",
    "to_array",
    "unguarded_torch",
]

_IS_LITTLE: Final = sys.byteorder == "little"

# These dtypes cross between torch and numpy as unsigned integers of the same size, because torch's cannot be numpy's.
_BITS: Final[dict[DType, np.dtype[Any]]] = {by_name("bfloat16"): np.dtype("<u2")} | {
    by_name(f"float8_{kind}"): np.dtype("u1") for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")
}

# What DLPack calls the kinds of elements, by the dtype's name without its bits; float8 has a kind for each variant.
_DLPACK_KINDS: Final = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "complex": 5, "bool": 6} | {
    f"float8_{kind}": code
    for kind, code in (("e4m3fn", 10), ("e4m3fnuz", 11), ("e5m2", 12), ("e5m2fnuz", 13), ("e8m0fnu", 14))
}

_told: Final[set[DType]] = set()  # the fast paths know how these cross


def to_array(tensor: object) -> tuple[DType, np.ndarray[Any, Any]]:
    """The tensor's dtype, and its elements as an array of the same shape, in the same memory if possible.

    A numpy array is returned as it is, of any strides, byte order and writability. A torch tensor is detached and moved
    to the CPU; it is copied only if it is not there yet, or if it is lazily conjugated or negated. A torch bfloat16 or
    float8 becomes unsigned integers of the same size.

    Args:
        tensor: a numpy array or scalar, or a torch tensor; at most 16 dimensions.

    Raises:
        UnsupportedTensor: it is something else, or its dtype or layout has no TSR form.
    """
    if type(tensor) is np.ndarray:
        array = tensor
        dtype = from_numpy(array.dtype)
    else:
        dtype, array = _to_array_slow(tensor)
    if array.ndim > MAX_NDIM:
        raise UnsupportedTensor(f"{array.ndim} dimensions, TSR holds at most {MAX_NDIM}; reshape first")
    return dtype, array


def is_little_endian(array: np.ndarray[Any, Any]) -> bool:
    """Whether the elements are stored as TSR stores them."""
    return _IS_LITTLE and array.dtype.isnative


def is_plain_torch(value: Any) -> bool:
    """Whether it is a torch tensor of no other class, dense, on the CPU, and without gradients."""
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not getattr(torch, "Tensor", None):
        return False
    return value.device.type == "cpu" and value.layout is torch.strided and not value.requires_grad


def copy_into(buffer: WriteableBuffer, offset: int, array: np.ndarray[Any, Any]) -> None:
    """Write the elements in C order, little-endian, in one pass and bit for bit.

    Args:
        buffer: writable, at least ``offset + array.nbytes`` bytes.
        offset: bytes from the start of the buffer.
        array: from :func:`to_array`.
    """
    if _IS_LITTLE and array.dtype.isnative:
        try:
            copy(buffer, offset, array)
            return
        except (BufferError, ValueError):
            pass  # not contiguous, or a type without a buffer
    if array.size == 0:
        return
    dtype = array.dtype if is_little_endian(array) else array.dtype.newbyteorder("<")
    target = np.frombuffer(buffer, dtype, array.size, offset)
    if array.ndim != 1:
        target = target.reshape(array.shape)
    target[...] = array


@overload
def from_buffer(
    buffer: ReadableBuffer, dtype: DType, shape: tuple[int, ...], offset: int, framework: Literal["numpy"]
) -> np.ndarray[Any, Any]: ...
@overload
def from_buffer(
    buffer: ReadableBuffer, dtype: DType, shape: tuple[int, ...], offset: int, framework: Literal["torch"]
) -> torch.Tensor: ...
@overload
def from_buffer(
    buffer: ReadableBuffer, dtype: DType, shape: tuple[int, ...], offset: int, framework: str
) -> Tensor: ...
def from_buffer(buffer: ReadableBuffer, dtype: DType, shape: tuple[int, ...], offset: int, framework: str) -> Tensor:
    """A view of the buffer's bytes as a tensor; nothing is copied.

    A numpy view is as writable as the buffer. A torch view needs a writable buffer, because torch has no read-only
    tensors. It is a copy if the payload is not aligned for its dtype (v0 puts payloads at byte 28). A tensor without
    elements has memory of its own.

    Args:
        buffer: holds the payload for as long as the view lives.
        dtype: the element type.
        shape: sizes in elements, outermost first.
        offset: bytes from the start of the buffer to the payload.
        framework: ``"numpy"`` or ``"torch"``.

    Raises:
        BadMessage: no such framework.
        UnsupportedTensor: its release lacks the dtype, or a torch view of a read-only buffer.
        MissingPackage: the framework, or ``ml_dtypes`` for a small float, is not installed.
    """
    if framework == "numpy":
        return _view(buffer, dtype.numpy, shape, offset)
    check_framework_name(framework)
    return _torch_view(buffer, dtype, shape, offset)


def _view(buffer: ReadableBuffer, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> np.ndarray[Any, Any]:
    count = math.prod(shape)
    if count == 0:
        array: np.ndarray[Any, Any] = np.empty(shape, dtype)
        array.flags.writeable = not memoryview(buffer).readonly
        return array
    array = np.frombuffer(buffer, dtype, count, offset)
    return array if len(shape) == 1 else array.reshape(shape)


def _torch_view(buffer: ReadableBuffer, dtype: DType, shape: tuple[int, ...], offset: int) -> torch.Tensor:
    if memoryview(buffer).readonly:
        raise UnsupportedTensor("torch has no read-only tensors; give it a private mapping, or ask for numpy")
    bits = _BITS.get(dtype)
    array = _view(buffer, dtype.numpy if bits is None else bits, shape, offset)
    return as_torch(array if array.flags.aligned else array.copy(), dtype)


def unguarded_torch(buffer: ReadableBuffer, dtype: DType, shape: tuple[int, ...], offset: int) -> torch.Tensor:
    """A torch view of a read-only mapping: a store into it is SIGSEGV. Otherwise as :func:`from_buffer`."""
    writable: Any = np.asarray(_Unguarded(buffer))
    return _torch_view(writable.data, dtype, shape, offset)


class _Unguarded:
    """Tells numpy that read-only bytes may be written, because torch warns about a read-only array.

    The array keeps this object alive, and this object the bytes.
    """

    def __init__(self, buffer: ReadableBuffer) -> None:
        self._bytes = np.frombuffer(buffer, np.uint8)
        address, _ = self._bytes.__array_interface__["data"]
        self.__array_interface__ = {**self._bytes.__array_interface__, "data": (address, False)}


def as_unguarded_torch(array: np.ndarray[Any, Any], dtype: DType) -> torch.Tensor:
    """A read-only array as a torch tensor, which keeps the array alive: a store into it is SIGSEGV."""
    if array.size == 0:
        return as_torch(array, dtype)
    writable = np.asarray(_Unguarded(array.reshape(-1).view(np.uint8).data))
    return as_torch(writable.view(array.dtype).reshape(array.shape), dtype)


def as_torch(array: np.ndarray[Any, Any], dtype: DType) -> torch.Tensor:
    """The same memory as a torch tensor, which keeps the array alive. Without elements, it has memory of its own.

    Args:
        array: writable, aligned, of the table's numpy type for ``dtype``, or of unsigned integers that numpy and torch
            have both.
        dtype: its element type.

    Raises:
        MissingPackage: torch is not installed.
        UnsupportedTensor: its release lacks the dtype.
    """
    torch_dtype = dtype.torch  # names a missing torch, too
    import torch

    if array.size == 0:  # numpy's strides are others than those that torch gives a tensor without elements
        return torch.empty(array.shape, dtype=torch_dtype, device="cpu")
    _tell_fast_paths(dtype, torch)
    bits = _BITS.get(dtype)
    if bits is None:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(bits)).view(torch_dtype)


def received_torch(array: np.ndarray[Any, Any], dtype: DType) -> torch.Tensor:
    """A received array as a torch tensor, which keeps the array alive: a store into it is SIGSEGV if it is read-only.

    It is no inference tensor, whatever mode this thread is in: the result may be for another thread.
    """
    torch = import_torch()
    make = as_torch if array.flags.writeable else as_unguarded_torch
    if not torch.is_inference_mode_enabled():
        return make(array, dtype)
    with torch.inference_mode(False):
        return make(array, dtype)


def _to_array_slow(tensor: object) -> tuple[DType, np.ndarray[Any, Any]]:
    torch = sys.modules.get("torch")
    # "Tensor" is missing while another thread is in the middle of importing torch.
    if torch is not None and isinstance(tensor, getattr(torch, "Tensor", ())):
        return _from_torch_tensor(tensor, torch)
    if isinstance(tensor, np.ma.MaskedArray):
        raise UnsupportedTensor("a masked array's mask has no TSR form; send .filled(...), or data and mask apart")
    if isinstance(tensor, np.ndarray | np.generic):
        array = np.asarray(tensor)
        return from_numpy(array.dtype), array
    kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
    if type(tensor) in (list, tuple, dict) and any(hasattr(each, "shape") for each in _values_of(tensor)):
        raise UnsupportedTensor(
            f"{kind} is not a tensor, but has several: give each by itself (a file has one, a tag too; a record of a "
            "store has any number), or make one of them (numpy.stack, torch.stack)"
        )
    raise UnsupportedTensor(
        f"{kind} is not a tensor; give a numpy array or a torch tensor (numpy.asarray and torch.as_tensor make one)"
    )


def _values_of(several: Any) -> Any:
    return several.values() if type(several) is dict else several


def _from_torch_tensor(tensor: Any, torch: Any) -> tuple[DType, np.ndarray[Any, Any]]:
    try:
        dtype = _dtype_of_strided(tensor, torch)
        if tensor.requires_grad:
            tensor = tensor.detach()
        is_on_device = not tensor.is_cpu
        has_storage = not (is_on_device and _is_functional(tensor, torch))
        if has_storage and _is_cut_off(tensor):  # torch would read whatever is there
            raise UnsupportedTensor(
                f"the memory of this tensor of shape {tuple(tensor.shape)} was freed or made shorter: its storage "
                f"holds {tensor.untyped_storage().nbytes()} bytes"
            )
    except (UnsupportedTensor, MemoryError):
        raise
    except Exception as error:  # a lazy parameter that is not initialized refuses all of these, as a subclass may
        raise _without_data(tensor, error) from error
    if is_on_device:
        tensor = tensor.cpu()  # the caller gets a device's own errors as they are
    try:
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        _tell_fast_paths(dtype, torch)
        bits = _BITS.get(dtype)
        if bits is not None:
            tensor = tensor.view(getattr(torch, bits.name))  # of the same size, so the shape stays
        return dtype, tensor.numpy()
    except MemoryError:
        raise
    except Exception as error:  # fake, functorch-wrapped and distributed tensors have no plain storage
        raise _without_data(tensor, error) from error


def _tell_fast_paths(dtype: DType, torch: Any) -> None:
    """Tell once how torch's tensors of a dtype cross."""
    if dtype in _told:
        return
    _told.add(dtype)
    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    kind = _DLPACK_KINDS.get(dtype.name if "_" in dtype.name else dtype.name.rstrip("0123456789"))
    if exchange is None or kind is None:  # torch before 2.10 has none: its tensors take the slow path
        return
    try:
        in_numpy = dtype.numpy
    except MissingPackage:  # then no segment has such a tensor
        return
    types = torch.Tensor, torch.nn.Parameter, torch.Size
    learn_torch((*types, exchange, torch.is_inference_mode_enabled, torch.inference_mode), kind, in_numpy)


def _is_functional(tensor: Any, torch: Any) -> bool:
    """Whether the data of a tensor is elsewhere, as that of a lazy device or of XLA; its storage may have no bytes."""
    is_functional = getattr(torch, "_is_functional_tensor", None)
    return is_functional is not None and bool(is_functional(tensor))


def _is_cut_off(tensor: Any) -> bool:
    """Whether elements of a tensor lie behind the end of its storage, as after ``untyped_storage().resize_(0)``."""
    try:
        nbytes: int = tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):  # a tensor of a kind without such a storage
        return False
    count: int = tensor.numel()
    if count and not tensor.is_contiguous():
        count = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    end: int = (tensor.storage_offset() + count) * tensor.element_size()
    return count > 0 and end > nbytes


def _without_data(tensor: object, error: Exception) -> UnsupportedTensor:
    return UnsupportedTensor(f"torch cannot give the data of a {type(tensor).__name__}: {error}")


def _dtype_of_strided(tensor: Any, torch: Any) -> DType:
    if tensor.is_nested:
        raise UnsupportedTensor("a nested tensor has no single shape; send its .unbind() parts, or a padded one")
    if tensor.layout is not torch.strided:
        raise UnsupportedTensor(f"a tensor of layout {tensor.layout} has no TSR form; use .to_dense() first")
    if tensor.is_quantized:
        raise UnsupportedTensor(
            f"a quantized tensor ({tensor.dtype}) has no TSR form; use .dequantize() or .int_repr()"
        )
    if tensor.is_meta:
        raise UnsupportedTensor("a tensor on the meta device has no data to send")
    return from_torch(tensor.dtype)
