"""Tensors in JSON bodies, and beside them. Opens nothing, runs nothing.

In a request's ``inputs``, and in a ``result``, a tensor is an object in one of three forms::

    {"dtype": "float32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}     lists; null is NaN
    {"dtype": "float32", "shape": [2, 2], "base64": "AACAPw..."}        its bytes, little-endian, in C order
    {"dtype": "float32", "shape": [2, 2], "offset": 0, "nbytes": 16}    its bytes lie in the binary part of the body

A body with a binary part has the content type ``application/octet-stream``, and a header ``TR-JSON-Length`` that says
how many of its bytes are JSON; the binary part follows them.

An input that is an object with ``dtype`` is a tensor. One that has not exactly the fields of a form is refused, so that
a typing error in a field's name is told to the client, and not found by the algorithm. Everything else in ``inputs``
stays what JSON makes of it.
"""

from __future__ import annotations

import binascii
import functools
import itertools
import math
import operator
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np

from ..errors import UnsupportedTensor
from ..tsr.dtypes import by_name
from .base64_text import from_base64
from .errors import BadRequest
from .number_lists import NotNumbers, array_of_lists, shaped

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
_FIELDS: Final = ("dtype", "shape", "data", "base64", "offset", "nbytes")
_MOST_NAMED: Final = 3  # fields, in an error
_IN_LISTS: Final = frozenset("biuf")  # kinds of numpy whose elements JSON has
_MOST_IN_LISTS: Final = 1 << 18  # numbers, and lists of them, of all tensors of a response
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
    if isinstance(value, dict) and "dtype" in value:
        raise BadRequest(f"{where} has a dtype, and is no tensor: {_why_no_tensor(value)}")
    return value


def _why_no_tensor(value: dict[str, Any]) -> str:
    """What is wrong with the fields of an object that has a dtype."""
    unknown = [each for each in value if each not in _FIELDS]
    if unknown:
        fault = f"a tensor has no {', '.join(map(reprlib.repr, unknown[:_MOST_NAMED]))}"
    else:
        fault = f"it has {', '.join(each for each in _FIELDS if each in value)}"
    return f"{fault}; one has dtype, shape, and its elements as data, as base64, or as offset and nbytes"


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
        raise bad(f"there is no dtype {reprlib.repr(value['dtype'])}; float32 is one") from None
    shape = value["shape"]
    if isinstance(shape, list) and len(shape) > _MOST_NDIM:
        raise bad(f"it has {len(shape)} dimensions, and a tensor has {_MOST_NDIM} at most")
    if not isinstance(shape, list) or not all(type(each) is int and 0 <= each < 1 << 48 for each in shape):
        raise bad(f"a shape is a list of sizes, as [2, 3], and not {reprlib.repr(shape)}")
    try:
        if "data" in value:
            if dtype.kind not in _IN_LISTS:
                raise bad(f"elements of {dtype} cannot be given as lists; give base64")
            return array_of_lists(value["data"], dtype, tuple(shape))
        return shaped(_from_bytes(value, binary, dtype, shape, bad), tuple(shape))
    except NotNumbers as error:
        raise bad(str(error)) from None


def _from_bytes(
    value: dict[str, Any],
    binary: memoryview,
    dtype: np.dtype[Any],
    shape: list[int],
    bad: Callable[[str], BadRequest],
) -> np.ndarray[Any, Any]:
    """The elements, one after another."""
    nbytes = math.prod(shape) * dtype.itemsize
    if "base64" in value:
        try:
            raw: Any = from_base64(value["base64"])
        except ValueError:
            raise bad("its bytes are no base64") from None
    else:
        offset, said = value["offset"], value["nbytes"]
        if type(offset) is not int or type(said) is not int or offset < 0 or said < 0:
            raise bad("offset and nbytes are numbers of bytes")
        if offset > len(binary) or said > len(binary) - offset:
            raise bad(f"it ends behind the body, whose binary part has {len(binary)} bytes")
        raw = binary[offset : offset + said]
    if len(raw) != nbytes:
        raise bad(f"it has {len(raw)} bytes, and {dtype} of shape {shape} has {nbytes}")
    array = np.frombuffer(raw, np.uint8)
    if array.ctypes.data % dtype.itemsize:  # a binary part of other people's making
        array = array.copy()
    return array.view(dtype)


class TensorEncoder:
    """Puts the tensors of one response into a form; those of the form ``binary`` into a binary part.

    Lists are made in single calls that keep all other threads waiting, and take 30 times the memory. So there are only
    so many of them, and of numbers in them; tensors that have more are given as ``base64``.
    """

    def __init__(self, form: TensorForm) -> None:
        self._form = form
        self._part = BinaryPart()
        self._left = _MOST_IN_LISTS

    @property
    def pieces(self) -> list[Any]:
        """Of the binary part, in their order."""
        return self._part.pieces

    def encode(self, array: np.ndarray[Any, Any]) -> dict[str, Any]:
        """What JSON says of an array."""
        said: dict[str, Any] = {"dtype": _name_of(array.dtype), "shape": list(array.shape)}
        if self._form == "binary":
            said |= self._part.add(array)
        elif self._form == "list" and self._may_be_list(array):
            self._left -= _objects_of(array.shape)
            said["data"] = array.tolist()
        else:
            said["base64"] = binascii.b2a_base64(_bytes_of(array), newline=False).decode()
        return said

    def _may_be_list(self, array: np.ndarray[Any, Any]) -> bool:
        return _objects_of(array.shape) <= self._left and array.dtype.kind in _IN_LISTS and not _has_no_number(array)


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


def _objects_of(shape: tuple[int, ...]) -> int:
    """How many lists and numbers an array is. An array without an element may be many lists."""
    return sum(itertools.accumulate(shape, operator.mul, initial=1))


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
