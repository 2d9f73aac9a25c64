"""Files of tensors in the safetensors format: written in one pass, read in place. Knows no stores.

A dtype that safetensors lacks is written as its bytes: as uint8, with one more dimension, the bytes of an element. The
file's metadata then have its name, by that of the tensor, in the JSON object ``dtypes``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from ..errors import BadMessage
from ..tsr.dtypes import DType, by_name
from ..tsr.tensors import from_buffer

__all__ = ["Entry", "TensorFile", "write_tensors"]

_NAMES: Final = {  # those of our dtypes that all releases of safetensors have
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_OF_NAMES: Final = {name: ours for ours, name in _NAMES.items()}
_METADATA: Final = "__metadata__"
_DTYPES: Final = "dtypes"
_MOST_HEADER_NBYTES: Final = 100_000_000  # as the format says


class Entry(NamedTuple):
    """One tensor of a file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of its elements."""
        return self.dtype.itemsize * math.prod(self.shape)


def write_tensors(
    path: Path, entries: Sequence[Entry], metadata: Mapping[str, str], arrays: Iterable[np.ndarray[Any, Any]]
) -> None:
    """Write a file.

    Args:
        path: of the file.
        entries: what is in it.
        metadata: of the file.
        arrays: the elements of all entries, in their order; those of one may come in several arrays.

    Raises:
        BadMessage: there are more tensors than a file of this format can name.
    """
    others = {each.name: each.dtype.name for each in entries if each.dtype.name not in _NAMES}
    header: dict[str, Any] = {_METADATA: {**metadata, **({_DTYPES: json.dumps(others)} if others else {})}}
    end = 0
    for each in entries:
        kind, shape = _NAMES.get(each.dtype.name), each.shape
        if kind is None:
            kind, shape = "U8", (*shape, each.dtype.itemsize)
        header[each.name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + each.nbytes]}
        end += each.nbytes
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MOST_HEADER_NBYTES:
        raise BadMessage(
            f"{len(entries)} tensors are more than a safetensors file can name; write them in several parts",
            detail="tensors",
        )
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if file.tell() != 8 + len(text) + end:
            raise AssertionError(f"{file.tell()} bytes were written of {8 + len(text) + end}")


class TensorFile:
    """A file, mapped.

    Attributes:
        path: of the file.
        metadata: of the file.

    Raises:
        BadMessage: it is no safetensors file, or is cut.
        FileNotFoundError: it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, tuple[Entry, int]] = {}
        path.stat()
        try:
            self._payload = self._read(np.memmap(path, np.uint8, "r"))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise BadMessage(f"{path} is no safetensors file, or is cut", detail=str(path)) from error

    def _read(self, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nbytes = int.from_bytes(data[:8].tobytes(), "little")
        if not 2 <= nbytes <= min(_MOST_HEADER_NBYTES, data.size - 8):
            raise ValueError("there is no header")
        payload = data[8 + nbytes :]
        header = json.loads(data[8 : 8 + nbytes].tobytes())
        self.metadata = msgspec.convert(header.pop(_METADATA, {}), dict[str, str])
        others = msgspec.json.decode(self.metadata.get(_DTYPES, "{}"), type=dict[str, str])
        for name, given in header.items():
            dtype, shape = by_name(_OF_NAMES[given["dtype"]]), tuple(given["shape"])
            start, end = given["data_offsets"]
            if not all(type(each) is int and each >= 0 for each in (*shape, start, end)):
                raise ValueError("a size or an offset is no number")
            if name in others:
                dtype = by_name(others[name])
                if given["dtype"] != "U8" or shape[-1:] != (dtype.itemsize,):
                    raise ValueError("a tensor has another size than its dtype")
                shape = shape[:-1]
            entry = Entry(name, dtype, shape)
            if end - start != entry.nbytes or end > payload.size:
                raise ValueError("a tensor is not within the file")
            self._entries[name] = entry, start
        return payload

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor: a view of the file, or a copy where the file has it at an odd place."""
        entry, start = self._entries[name]
        data = self._payload[start : start + entry.nbytes]
        if data.ctypes.data % entry.dtype.itemsize:
            data = data.copy()
        return from_buffer(data.data, entry.dtype, entry.shape, 0, "numpy")
