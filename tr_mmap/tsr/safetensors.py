"""The header of a safetensors file: bytes in, entries out. Never opens files, never reads elements.

A file has three parts: the size of the header (8 bytes, little-endian), the header (a JSON object), and the elements of
all tensors (in C order, little-endian). The header maps the name of each tensor to its ``dtype``, its ``shape`` and its
``data_offsets``, which are its first byte and the byte after its last one, counted from the header's end. The name
``__metadata__`` maps to an object whose values are texts. Each byte after the header belongs to exactly one tensor
(https://github.com/huggingface/safetensors).

This reader refuses whatever is ambiguous: a name or a field that comes twice, an unknown field, a size or an offset
that is not a whole number.
"""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

from ..errors import TRException
from ..wire.header import MAX_NDIM
from .dtypes import DType, by_name

__all__ = [
    "MOST_HEADER_NBYTES",
    "NAMES",
    "SIZE_NBYTES",
    "SafetensorsError",
    "SafetensorsFault",
    "SafetensorsHeader",
    "TensorEntry",
    "parse_header",
    "parse_size",
]

SIZE_NBYTES: Final = 8
MOST_HEADER_NBYTES: Final = 100_000_000  # as the format says
NAMES: Final = {  # our dtypes that every release of the format has, and their names there
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_OF_NAMES: Final = {name: ours for ours, name in NAMES.items()}
_METADATA: Final = "__metadata__"
_FIELDS: Final = {"dtype", "shape", "data_offsets"}
_MOST: Final = 1 << 63  # above every size and offset


class SafetensorsFault(enum.StrEnum):
    """What is wrong with a file."""

    SHORT = "short"
    """The file ends before its header, or before its tensors do."""
    SIZE = "size"
    """The size of the header is below 2 bytes, or above the limit."""
    JSON = "json"
    """The header is not a JSON object, or a name comes twice in it."""
    METADATA = "metadata"
    """``__metadata__`` is not an object whose values are texts."""
    ENTRY = "entry"
    """A tensor's entry does not have exactly ``dtype``, ``shape`` and ``data_offsets``."""
    DTYPE = "dtype"
    """This reader does not know the dtype."""
    SHAPE = "shape"
    """The shape is not a list of sizes, or has more dimensions than a tensor may have."""
    OFFSETS = "offsets"
    """``data_offsets`` are not two offsets, or do not span the bytes that dtype and shape need."""
    OVERLAP = "overlap"
    """A byte belongs to two tensors."""
    GAP = "gap"
    """A byte belongs to no tensor."""


class SafetensorsError(TRException, ValueError):
    """A file that is no safetensors file.

    Attributes:
        fault: what is wrong.
    """

    fault: SafetensorsFault

    def __init__(self, message: str, *, fault: SafetensorsFault) -> None:
        super().__init__(message, fault=fault)


class TensorEntry(NamedTuple):
    """One tensor.

    Attributes:
        name: its name.
        dtype: of its elements.
        shape: sizes in elements, outermost first.
        start, end: of its bytes, counted from the header's end.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The content of a header.

    Attributes:
        entries: the tensors, in the order of their bytes.
        metadata: texts by name.
    """

    entries: tuple[TensorEntry, ...]
    metadata: dict[str, str]


def parse_size(raw: bytes, file_nbytes: int, most_nbytes: int = MOST_HEADER_NBYTES) -> int:
    """The size of a header in bytes.

    Args:
        raw: the first 8 bytes of a file, or fewer if it has no more.
        file_nbytes: size of the file.
        most_nbytes: the largest size that is accepted.

    Raises:
        SafetensorsError: SIZE, or SHORT: the file has no room for such a header.
    """
    if len(raw) < SIZE_NBYTES:
        raise _error("SHORT", f"the file has {len(raw)} bytes, and no room for the size of a header")
    nbytes = int.from_bytes(raw[:SIZE_NBYTES], "little")
    if nbytes < 2 or nbytes > most_nbytes:
        raise _error("SIZE", f"the header would have {nbytes} bytes, and one has 2 to {most_nbytes}")
    if nbytes > file_nbytes - SIZE_NBYTES:
        raise _error("SHORT", f"the header would end {nbytes + SIZE_NBYTES - file_nbytes} bytes behind the file")
    return nbytes


def parse_header(text: bytes, payload_nbytes: int) -> SafetensorsHeader:
    """Parse a header, and check all of it.

    Args:
        text: the header, as many bytes as its size.
        payload_nbytes: bytes of the file after the header.

    Raises:
        SafetensorsError: it is not a header, or does not fit a file of this size; ``fault`` says why.
    """
    header = _parse(text)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise _error("METADATA", "the header's __metadata__ is not an object whose values are texts")
    entries = sorted((_entry(name, said) for name, said in header.items()), key=lambda each: (each.start, each.end))
    end, before = 0, ""
    for each in entries:
        if each.start < end:
            raise _error("OVERLAP", f"the tensors {before!r:.200} and {each.name!r:.200} have bytes in common")
        if each.start > end:
            raise _error("GAP", f"{each.start - end} bytes before the tensor {each.name!r:.200} belong to none")
        end, before = each.end, each.name
    if end > payload_nbytes:
        raise _error("SHORT", f"the tensor {before!r:.200} would end {end - payload_nbytes} bytes behind the file")
    if end < payload_nbytes:
        raise _error("GAP", f"{payload_nbytes - end} bytes at the end of the file belong to no tensor")
    return SafetensorsHeader(tuple(entries), metadata)


def _error(fault: str, text: str) -> SafetensorsError:
    return SafetensorsError(text, fault=SafetensorsFault[fault])


def _parse(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):  # as the format says
        raise _error("JSON", "the header does not begin with {")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # a name that comes twice is a ValueError, too
        raise _error("JSON", f"the header is no JSON that can be taken: {error}") from None
    assert isinstance(header, dict)  # it begins with {
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _entry(name: str, said: Any) -> TensorEntry:
    if not isinstance(said, dict) or said.keys() != _FIELDS:
        raise _error("ENTRY", f"the header does not say dtype, shape and data_offsets of {name!r:.200}, and no more")
    given, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    ours = _OF_NAMES.get(given) if isinstance(given, str) else None
    if ours is None:
        raise _error("DTYPE", f"{name!r:.200} has the dtype {given!r:.80}; known are {', '.join(_OF_NAMES)}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)) or len(shape) > MAX_NDIM:
        raise _error("SHAPE", f"the shape of {name!r:.200} is {shape!r:.80}, and one has {MAX_NDIM} sizes at most")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _error("OFFSETS", f"the data_offsets of {name!r:.200} are {offsets!r:.80}")
    start, end = offsets
    dtype = by_name(ours)
    nbytes = dtype.itemsize * math.prod(shape)
    if end - start != nbytes:
        raise _error("OFFSETS", f"{name!r:.200} has {end - start} bytes, and {given} of shape {shape} has {nbytes}")
    return TensorEntry(name, dtype, tuple(shape), start, end)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST
