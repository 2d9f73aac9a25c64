"""Models for tests, written byte by byte: safetensors files, and a small one of ONNX. Imports no package of these."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8", "bool": "BOOL", "float16": "F16"}


def header_of(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What a safetensors file says of arrays that lie one behind the other."""
    header: dict[str, Any] = {}
    end = 0
    for name, array in tensors.items():
        offsets = [end, end := end + array.nbytes]
        header[name] = {"dtype": NAMES[str(array.dtype)], "shape": list(array.shape), "data_offsets": offsets}
    return header


def with_header(header: dict[str, Any] | bytes, payload: bytes) -> bytes:
    """A file of a header and elements."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def safetensors_of(**tensors: np.ndarray) -> bytes:
    """A file of arrays."""
    return with_header(header_of(tensors), b"".join(each.tobytes() for each in tensors.values()))


def put(folder: Path, **files: bytes | str) -> None:
    """Files of a version, by name with ``__`` for the dot. A new version comes whole, and so does each later file."""
    if folder.exists():
        for name, content in files.items():
            path = folder / name.replace("__", ".")
            part = path.with_name(f".{path.name}.part")
            part.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(part, path)
        return
    missing = [each for each in (folder, *folder.parents) if not each.exists()][-1]
    new = missing.with_name(f".{missing.name}")
    (new / folder.relative_to(missing)).mkdir(parents=True)
    put(new / folder.relative_to(missing), **files)
    new.rename(missing)


# -- ONNX, which is a message of protobuf ----------------------------------------------------------------------------


def _number(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    raw = value.encode() if isinstance(value, str) else value
    return _number(number << 3 | 2) + _number(len(raw)) + raw


def _tensor(name: str, size: int) -> bytes:
    """What describes float32 of shape (?, size)."""
    shape = _field(1, _field(2, "n")) + _field(1, _field(1, size))
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))


def onnx_of(weights: np.ndarray) -> bytes:
    """A model that gives ``y = x @ weights``."""
    node = _field(1, "x") + _field(1, "w") + _field(2, "y") + _field(4, "MatMul")
    initial = b"".join(_field(1, each) for each in weights.shape) + _field(2, 1) + _field(8, "w")
    initial += _field(9, weights.astype("<f4").tobytes())
    graph = _field(1, node) + _field(2, "graph") + _field(5, initial)
    graph += _field(11, _tensor("x", weights.shape[0])) + _field(12, _tensor("y", weights.shape[1]))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))
