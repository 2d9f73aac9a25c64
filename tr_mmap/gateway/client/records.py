"""The records of a gateway's store, read from responses: as a store of this machine gives them. Asks nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from ...store.records import Hit, Page, Record
from ..errors import BadRequest
from ..payloads import decode_tensor
from ..store_api import RecordInfo, RecordPage, SearchResult
from .answers import Answer
from .failures import GatewayError
from .results import Framework, in_framework

__all__ = ["RemoteRecord", "TensorInfo", "read_first", "read_hits", "read_page", "read_record", "read_tensor"]


class TensorInfo(msgspec.Struct, frozen=True):
    """A tensor that was not asked for.

    Attributes:
        dtype: its name.
        shape: its sizes.
    """

    dtype: str
    shape: tuple[int, ...]


class RemoteRecord(Record, eq=False):
    """A :class:`tr_mmap.store.Record` that a gateway has sent.

    Attributes:
        vector: an array, or a tensor of torch, in the memory that the response was received into; None if the record
            has none; a :class:`TensorInfo` if it was not asked for.
        tensors: the same, by name.
    """

    vector: Any = None
    tensors: dict[str, Any] = msgspec.field(default_factory=dict)


_PLAIN: Final = tuple(name for name in RecordInfo.__struct_fields__ if name not in ("vector", "tensors"))


def read_record(answer: Answer, framework: Framework) -> RemoteRecord:
    """The record that a response has."""
    info, binary = answer.split(RecordInfo)
    return _record(info, binary, framework)


def read_first(answer: Answer, framework: Framework) -> RemoteRecord | None:
    """The first of the records that a response has."""
    page, binary = answer.split(RecordPage)
    return _record(page.records[0], binary, framework) if page.records else None


def read_page(answer: Answer, framework: Framework) -> Page:
    """The records that a response has, and where the next ones are."""
    page, binary = answer.split(RecordPage)
    return Page([_record(each, binary, framework) for each in page.records], page.cursor)


def read_hits(answer: Answer, framework: Framework) -> list[Hit]:
    """What a search has found."""
    found, binary = answer.split(SearchResult)
    return [Hit(_record(each.record, binary, framework), each.score, each.distance) for each in found.hits]


def read_tensor(answer: Answer, framework: Framework) -> Any:
    """The tensor whose bytes are a response."""
    if answer.status != 200:
        raise answer.error()
    try:
        shape = [int(each) for each in answer.headers["tr-shape"].split(",") if each]
        said = {"dtype": answer.headers["tr-dtype"], "shape": shape, "offset": 0, "nbytes": len(answer.body)}
    except (KeyError, ValueError) as error:
        raise GatewayError(f"the response is no tensor of a gateway's: {error}", status=answer.status) from error
    return _tensor(said, answer.body, framework)


def _record(info: RecordInfo, binary: memoryview, framework: Framework) -> RemoteRecord:
    return RemoteRecord(
        **{name: getattr(info, name) for name in _PLAIN},
        vector=None if info.vector is None else _tensor(info.vector, binary, framework),
        tensors={name: _tensor(each, binary, framework) for name, each in info.tensors.items()},
    )


def _tensor(said: Mapping[str, Any], binary: memoryview, framework: Framework) -> Any:
    try:
        if said.keys() == {"dtype", "shape"}:
            return msgspec.convert(said, TensorInfo)
        array: np.ndarray[Any, Any] = decode_tensor("a tensor", dict(said), binary)
    except (KeyError, BadRequest, msgspec.ValidationError) as error:
        raise GatewayError(f"the response is no gateway's: {error}", status=200) from error
    return in_framework(array, framework)
