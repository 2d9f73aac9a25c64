"""Tensors in JSON bodies, and beside them. Opens nothing, runs nothing.

In a request's ``inputs``, and in a ``result``, a tensor is an object in one of three forms::

    {"dtype": "float32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}     lists; null is NaN
    {"dtype": "float32", "shape": [2, 2], "base64": "AACAPw..."}        its bytes, little-endian, in C order
    {"dtype": "float32", "shape": [2, 2], "offset": 0, "nbytes": 16}    its bytes lie in the binary part of the body

A body with a binary part has the content type ``application/octet-stream``, and a header ``TR-JSON-Length`` that says
how many of its bytes are JSON; the binary part follows them. Everything else in ``inputs`` stays what JSON makes of it.
"""

from __future__ import annotations

import binascii
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np

from ..errors import UnsupportedTensor
from ..tsr.dtypes import by_name
from .errors import BadRequest

if TYPE_CHECKING:
    from ..sandbox import ComputeResponse

__all__ = [
    "ALIGNMENT",
    "BinaryPart",
    "BINARY",
    "JSON",
    "JSON_LENGTH",
    "Done",
    "TensorEncoder",
    "TensorForm",
    "body_nbytes",
    "decode_inputs",
    "decode_tensor",
    "encode",
    "encode_results",
    "is_tensor",
    "split_body",
]

BINARY: Final = "application/octet-stream"
JSON: Final = "application/json"
JSON_LENGTH: Final = "tr-json-length"
ALIGNMENT: Final = 64  # of tensors in a binary part, so that they can be used where they lie
TensorForm = Literal["list", "base64", "binary"]

_FORMS: Final = ({"dtype", "shape", "data"}, {"dtype", "shape", "base64"}, {"dtype", "shape", "offset", "nbytes"})
_FIELDS: Final = frozenset().union(*_FORMS)
_IN_LISTS: Final = frozenset("biuf")  # kinds of numpy whose elements JSON has
_MOST_NDIM: Final = 16


@dataclass(frozen=True, slots=True)
class Done:
    """What a run gave, as a response says it.

    Attributes:
        result: JSON.
        stdout: what it printed.
        execution_time_ms: how long it ran.
        pieces: of the binary part, in their order.
    """

    result: msgspec.Raw
    stdout: str
    execution_time_ms: float
    pieces: list[Any] = field(default_factory=list)


class BinaryPart:
    """The binary part of a body that is being made.

    Attributes:
        pieces: of it, in their order; arrays are not copied.
        nbytes: of all of them.
    """

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.nbytes = 0

    def add(self, array: np.ndarray[Any, Any]) -> dict[str, int]:
        """Add the elements of an array. Returns the fields that say where they lie."""
        padding = -self.nbytes % ALIGNMENT
        self.pieces += [bytes(padding), _bytes_of(array)]
        said = {"offset": self.nbytes + padding, "nbytes": array.nbytes}
        self.nbytes += padding + array.nbytes
        return said


def encode(response: ComputeResponse, form: TensorForm) -> Done:
    """A run's results, as a response says them. May take long: not to be called in a loop's thread."""
    return encode_results(response.outputs, response.stdout, response.execution_time_ms, form)


def encode_results(outputs: Mapping[str, Any], stdout: str, execution_time_ms: float, form: TensorForm) -> Done:
    """The same, of results by name."""
    result, pieces = encode_outputs(outputs, form)
    raw = msgspec.Raw(msgspec.json.encode(result))
    return Done(raw, stdout, round(execution_time_ms, 3), pieces)


def split_body(body: memoryview, content_type: str, json_length: str | None) -> tuple[memoryview, memoryview]:
    """The JSON of a body, and its binary part.

    Raises:
        BadRequest: the header that says where one ends is missing, or wrong.
    """
    if content_type.partition(";")[0].strip().lower() != BINARY:
        return body, body[:0]
    if json_length is None or not (json_length.isascii() and json_length.isdigit()) or len(json_length) > 12:
        raise BadRequest(f"a body of type {BINARY} needs the header TR-JSON-Length, a number of bytes")
    length = int(json_length)
    if length > len(body):
        raise BadRequest(f"TR-JSON-Length is {length}, and the body has {len(body)} bytes")
    return body[:length], body[length:]


def body_nbytes(binary: memoryview) -> int:
    """Of the whole body whose binary part this is, perhaps an empty one: inputs lie in it, or were made of it."""
    return len(binary.obj) if isinstance(binary.obj, bytes | bytearray) else binary.nbytes


def decode_inputs(values: Mapping[str, Any], binary: memoryview) -> dict[str, Any]:
    """The inputs of a run: values, and arrays. An array of the binary part lies in it.

    Raises:
        BadRequest: a tensor is none.
    """
    return {name: _decode_input(f"the input {name!r}", value, binary) for name, value in values.items()}


def _decode_input(where: str, value: Any, binary: memoryview) -> Any:
    if is_tensor(value):
        return decode_tensor(where, value, binary)
    if isinstance(value, dict) and "dtype" in value and len(value) > 1 and value.keys() <= _FIELDS:
        raise BadRequest(
            f"{where} has {', '.join(value)}, and is nearly a tensor: one has dtype, shape, and its elements as data, "
            "as base64, or as offset and nbytes"
        )
    return value


def is_tensor(value: Any) -> bool:
    """Whether a value of JSON is a tensor in one of the three forms."""
    return isinstance(value, dict) and value.keys() in _FORMS


def decode_tensor(where: str, value: dict[str, Any], binary: memoryview) -> np.ndarray[Any, Any]:
    """The array that a tensor's form says. One of the binary part lies in it.

    Args:
        where: it is, for errors.
        value: one of the three forms.
        binary: part of the body.

    Raises:
        BadRequest: it is none.
    """

    def bad(why: str) -> BadRequest:
        return BadRequest(f"{where}: {why}")

    try:
        dtype = by_name(value["dtype"]).numpy
    except (TypeError, UnsupportedTensor):
        raise bad(f"there is no dtype {value['dtype']!r:.80}; float32 is one") from None
    shape = value["shape"]
    if not isinstance(shape, list) or not all(type(each) is int and 0 <= each < 1 << 48 for each in shape):
        raise bad(f"a shape is a list of sizes, as [2, 3], and not {shape!r:.80}")
    if len(shape) > _MOST_NDIM:
        raise bad(f"it has {len(shape)} dimensions, and a tensor has {_MOST_NDIM} at most")
    nbytes = math.prod(shape) * dtype.itemsize
    if "data" in value:
        return _from_lists(value["data"], dtype, tuple(shape), bad)
    if "base64" in value:
        try:
            raw: Any = binascii.a2b_base64(value["base64"], strict_mode=True)
        except (TypeError, ValueError, binascii.Error):
            raise bad("its bytes are no base64") from None
    else:
        offset, said = value["offset"], value["nbytes"]
        if type(offset) is not int or type(said) is not int or offset < 0 or said < 0:
            raise bad("offset and nbytes are numbers of bytes")
        if offset > len(binary) or said > len(binary) - offset:
            raise bad(f"it ends {offset + said - len(binary)} bytes behind the body")
        raw = binary[offset : offset + said]
    if len(raw) != nbytes:
        raise bad(f"it has {len(raw)} bytes, and {dtype} of shape {shape} has {nbytes}")
    array = np.frombuffer(raw, np.uint8)
    if array.ctypes.data % dtype.itemsize:  # a binary part of other people's making
        array = array.copy()
    return array.view(dtype).reshape(shape)


def _from_lists(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], bad: Any) -> np.ndarray[Any, Any]:
    if dtype.kind not in _IN_LISTS:
        raise bad(f"elements of {dtype} cannot be given as lists; give base64")
    try:
        given = np.array(data)
        if given.dtype.kind == "O" and dtype.kind == "f":
            given = np.array(_without_null(data))
        if given.dtype.kind not in _IN_LISTS and given.size:
            raise bad("its data are not lists of numbers, or not all of one length")
        # numpy takes whole numbers for floats, and rounds them, if some are small and some above 2**63.
        array = np.array(data, dtype) if given.dtype.kind == "f" and dtype.kind in "iu" else given.astype(dtype)
    except (TypeError, ValueError, OverflowError):
        raise bad("its data are not lists of numbers, or not all of one length") from None
    if dtype.kind in "iu" and not np.array_equal(array, given):
        raise bad(f"a number of it is none of {dtype}")
    if array.size == 0 and math.prod(shape) == 0:  # lists cannot say every shape without an element
        return array.reshape(shape)
    if array.shape != shape:
        raise bad(f"its data have the shape {list(array.shape)}, and not {list(shape)}")
    return array


def _without_null(data: Any) -> Any:
    if isinstance(data, list):
        return [_without_null(each) for each in data]
    return math.nan if data is None else data


class TensorEncoder:
    """Puts tensors into a form; those of the form ``binary`` into a binary part."""

    def __init__(self, form: TensorForm) -> None:
        self._form = form
        self._part = BinaryPart()

    @property
    def pieces(self) -> list[Any]:
        """Of the binary part, in their order."""
        return self._part.pieces

    def encode(self, array: np.ndarray[Any, Any]) -> dict[str, Any]:
        """What JSON says of an array."""
        said: dict[str, Any] = {"dtype": _name_of(array.dtype), "shape": list(array.shape)}
        if self._form == "binary":
            said |= self._part.add(array)
        elif self._form == "list" and array.dtype.kind in _IN_LISTS and not _has_no_number(array):
            said["data"] = array.tolist()
        else:
            said["base64"] = binascii.b2a_base64(_bytes_of(array), newline=False).decode()
        return said


def encode_outputs(outputs: Mapping[str, Any], form: TensorForm) -> tuple[Any, list[Any]]:
    """What a response has as its result, and the pieces of its binary part.

    The only output, or the one of the name ``output``, is the result; several are an object of them.
    """
    encoder = TensorEncoder(form)
    encoded = {
        name: encoder.encode(value) if isinstance(value, np.ndarray) else value for name, value in outputs.items()
    }
    return (encoded["output"] if encoded.keys() == {"output"} else encoded), encoder.pieces


@functools.cache  # numpy takes longer for it than for most arithmetic
def _name_of(dtype: np.dtype[Any]) -> str:
    return str(dtype)


def _has_no_number(array: np.ndarray[Any, Any]) -> bool:
    """Whether an element is infinite or NaN, which JSON lacks."""
    return array.dtype.kind == "f" and not np.isfinite(array).all()


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
