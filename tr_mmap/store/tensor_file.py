"""Files of tensors in the safetensors format: written in one pass, read in place. Knows no stores.

A tensor of a dtype that safetensors lacks is written as uint8, with one more dimension: the bytes of an element. The
entry ``dtypes`` of the file's metadata is a JSON object that maps the names of such tensors to their dtypes.
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

from ..errors import BadMessage, UnsupportedTensor
from ..tsr.dtypes import DType, by_name
from ..tsr.safetensors import MOST_HEADER_NBYTES, NAMES, SIZE_NBYTES, parse_header, parse_size
from ..tsr.tensors import from_buffer

__all__ = ["Entry", "TensorFile", "write_tensors"]

_METADATA: Final = "__metadata__"
_DTYPES: Final = "dtypes"


class Entry(NamedTuple):
    """One tensor of a file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.dtype.itemsize * math.prod(self.shape)


def write_tensors(
    path: Path, entries: Sequence[Entry], metadata: Mapping[str, str], arrays: Iterable[np.ndarray[Any, Any]]
) -> None:
    """Write a file.

    Args:
        path: of the file.
        entries: the tensors of the file.
        metadata: of the file.
        arrays: the elements of all entries, in their order; the elements of an entry may come in several arrays.

    Raises:
        BadMessage: there are more tensors than a file of this format can name.
    """
    others = {each.name: each.dtype.name for each in entries if each.dtype.name not in NAMES}
    header: dict[str, Any] = {_METADATA: {**metadata, **({_DTYPES: json.dumps(others)} if others else {})}}
    end = 0
    for each in entries:
        kind, shape = NAMES.get(each.dtype.name), each.shape
        if kind is None:
            kind, shape = "U8", (*shape, each.dtype.itemsize)
        header[each.name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + each.nbytes]}
        end += each.nbytes
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER_NBYTES:
        raise BadMessage(
            f"{len(entries)} tensors are more than a safetensors file can name; write them in several parts",
            detail="tensors",
        )
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if file.tell() != SIZE_NBYTES + len(text) + end:
            raise AssertionError(f"{file.tell()} bytes were written of {8 + len(text) + end}")


class TensorFile:
    """A file, mapped.

    Attributes:
        path: of the file.
        metadata: of the file.

    Raises:
        BadMessage: it is not a safetensors file, or was truncated.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, tuple[Entry, int]] = {}
        path.stat()
        try:
            self._payload = self._read(np.memmap(path, np.uint8, "r"))
        except (ValueError, UnsupportedTensor, msgspec.MsgspecError) as error:
            raise BadMessage(f"{path} is no safetensors file, or is cut", detail=str(path)) from error

    def _read(self, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nbytes = parse_size(data[:SIZE_NBYTES].tobytes(), data.size)
        payload = data[SIZE_NBYTES + nbytes :]
        header = parse_header(data[SIZE_NBYTES : SIZE_NBYTES + nbytes].tobytes(), payload.size)
        self.metadata = header.metadata
        others = msgspec.json.decode(self.metadata.get(_DTYPES, "{}"), type=dict[str, str])
        for name, dtype, shape, start, _ in header.entries:
            if name in others:
                given, dtype = dtype, by_name(others[name])
                if given.name != "uint8" or shape[-1:] != (dtype.itemsize,):
                    raise ValueError("a tensor has another size than its dtype")
                shape = shape[:-1]
            self._entries[name] = Entry(name, dtype, shape), start
        return payload

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor: a view of the file, or a copy if it is not aligned there for its dtype."""
        entry, start = self._entries[name]
        data = self._payload[start : start + entry.nbytes]
        if data.ctypes.data % entry.dtype.itemsize:
            data = data.copy()
        return from_buffer(data.data, entry.dtype, entry.shape, 0, "numpy")
