"""Records as bodies give them and get them: arrays of a store's records in the forms of :mod:`.payloads`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import numpy as np
from msgspec import UNSET, structs

from ..store import Record
from .errors import BadRequest, NotFound, TooLarge
from .number_lists import are_numbers
from .payloads import TensorEncoder, TensorForm, decode_tensor, is_tensor
from .store_api import RecordBody, RecordInfo, UpdateBody

__all__ = ["RecordForm", "RecordWriter", "changes_of", "fields_of", "tensor_of", "vector_of"]

RecordForm = Literal["none"] | TensorForm
_PLAIN: Final = (
    "id",
    "version",
    "content",
    "user_id",
    "agent_id",
    "run_id",
    "metadata",
    "importance",
    "created_at",
    "updated_at",
    "expires_at",
)


def fields_of(body: RecordBody, binary: memoryview, where: str = "") -> dict[str, Any]:
    """The arguments of the store's ``add``.

    Args:
        body: a record.
        binary: part of the request's body.
        where: the record is, for errors.

    Raises:
        BadRequest: a tensor is none.
    """
    given = {name: getattr(body, name) for name in RecordBody.__struct_fields__}
    given["vector"] = vector_of(body.vector, binary, f"{where}the vector")
    given["tensors"] = _tensors_of(body.tensors, binary, where)
    return given


def changes_of(body: UpdateBody, binary: memoryview) -> dict[str, Any]:
    """The arguments of the store's ``update``.

    Raises:
        BadRequest: a tensor is none.
    """
    given = {name: value for name, value in structs.asdict(body).items() if value is not UNSET}
    given["if_version"] = given.pop("version")
    if "vector" in given:
        given["vector"] = vector_of(given["vector"], binary, "the vector")
    if given.get("tensors") is not None:
        given["tensors"] = _tensors_of(given["tensors"], binary, "")
    return given


def vector_of(value: Any, binary: memoryview, where: str) -> Any:
    """A vector, for the store: what it is not, the store refuses.

    Args:
        value: a list of numbers, or a tensor in one of its forms.
        binary: part of the body.
        where: it is, for errors.

    Raises:
        BadRequest: it is a list or a tensor, and a wrong one.
    """
    if is_tensor(value):
        return decode_tensor(where, value, binary)
    if isinstance(value, dict):
        raise BadRequest(f"{where} is a list of numbers, or a tensor: dtype, shape, and data or base64")
    if isinstance(value, list) and not are_numbers(value):
        raise BadRequest(f"{where}: a vector is an array of real numbers, and has nothing else in it")
    return value


def _tensors_of(values: dict[str, Any], binary: memoryview, where: str) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        if not is_tensor(value):
            raise BadRequest(
                f"{where}the tensor {name!r:.80} has dtype, shape, and one of data, base64, or offset and nbytes"
            )
        found[name] = decode_tensor(f"{where}the tensor {name!r:.80}", value, binary)
    return found


class RecordWriter:
    """Puts records into a response. May take long: not to be used in a loop's thread, if tensors are wanted.

    Args:
        form: of vectors and tensors; ``none`` says their dtype and shape alone.
        most_nbytes: that they may have, all together.
    """

    def __init__(self, form: RecordForm, most_nbytes: int) -> None:
        self._encoder = None if form == "none" else TensorEncoder(form)
        self._most_nbytes = most_nbytes
        self._nbytes = 0

    @property
    def pieces(self) -> Iterable[Any]:
        """Of the binary part, in their order."""
        return () if self._encoder is None else self._encoder.pieces

    def write(self, record: Record) -> RecordInfo:
        """What a response says of a record.

        Raises:
            TooLarge: the tensors of all records so far have too many bytes.
        """
        vector = record.vector
        return RecordInfo(
            **{name: getattr(record, name) for name in _PLAIN},
            vector=None if vector is None else self._said(vector),
            tensors={name: self._said(each) for name, each in record.tensors.items()},
        )

    def _said(self, array: np.ndarray[Any, Any]) -> dict[str, Any]:
        if self._encoder is None:
            return {"dtype": str(array.dtype), "shape": list(array.shape)}
        self._nbytes += array.nbytes
        _check_size(self._nbytes, self._most_nbytes, "ask for fewer records, or for one tensor at a time")
        return self._encoder.encode(array)


def _check_size(nbytes: int, most_nbytes: int, advice: str) -> None:
    if nbytes > most_nbytes:
        text = f"tensors of {nbytes} bytes are more than a response has, {most_nbytes}; {advice}"
        raise TooLarge(text, limit_nbytes=most_nbytes)


def tensor_of(record: Record, name: str, most_nbytes: int) -> np.ndarray[Any, Any]:
    """One tensor of a record.

    Args:
        record: that has it.
        name: of the tensor.
        most_nbytes: that it may have.

    Raises:
        NotFound: it has none of that name.
        TooLarge: it has more bytes.
    """
    try:
        found: np.ndarray[Any, Any] = record.tensors[name]
    except KeyError:
        raise NotFound(f"the record {record.id!r:.80} has no tensor {name!r:.80}") from None
    _check_size(found.nbytes, most_nbytes, "see [server] max_body_mb, or open the store on its machine")
    return found
