"""One request to a gateway, as plain values: its path, its body, its tensors. Sends nothing, knows no route."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np

from ...tsr.tensors import is_little_endian, to_array
from ..api import IDEMPOTENCY_KEY
from ..errors import BadRequest
from ..payloads import ALIGNMENT, BINARY, JSON, JSON_LENGTH, BinaryPart
from .answers import Answer

__all__ = [
    "Ask",
    "Buffer",
    "as_form",
    "as_part",
    "is_tensor_here",
    "is_torch_tensor",
    "post",
    "with_body",
]

_T = TypeVar("_T")

Buffer: TypeAlias = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Ask(Generic[_T]):
    """One request.

    Attributes:
        method: of HTTP.
        path: below the gateway's address.
        read: what the response is, for the caller; raises the gateway's errors.
        pieces: of the body, in their order; tensors are not copied.
        headers: beside those of every request.
        may_retry: whether it may be sent again after the gateway has refused it for now.
        is_repeatable: whether also when its response was lost.
        timeout_s: how long the call may take at least, because a run may; None for the client's own bound.
        silence_s: how long the gateway may send nothing; None for as long as the call may take.
        awaited: what has not come if the call's time is over after the gateway has begun to answer, and what to do;
            empty if a response comes all at once.
    """

    method: str
    path: str
    read: Callable[[Answer], _T]
    pieces: tuple[Buffer, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    may_retry: bool = True
    is_repeatable: bool = True
    timeout_s: float | None = None
    silence_s: float | None = None
    awaited: str = ""

    @property
    def what(self) -> str:
        """What it is, for errors."""
        return f"{self.method} {self.path.partition('?')[0]}"


def as_part(name: str) -> str:
    """A name as a part of a path."""
    if not isinstance(name, str) or name in ("", ".", ".."):
        raise BadRequest(f"{name!r:.80} is no name")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        raise BadRequest(f"{name!r:.80} has half a surrogate pair, which UTF-8 lacks") from None


def with_body(
    method: str,
    path: str,
    body: dict[str, Any],
    read: Callable[[Answer], _T],
    part: BinaryPart | None = None,
    *,
    is_repeatable: bool,
) -> Ask[_T]:
    """A request with a body: JSON, and the binary part if there is one."""
    headers = {"content-type": JSON}
    text = msgspec.json.encode(body)
    pieces: list[Buffer] = [text]
    if part is not None and part.pieces:
        text = text.ljust(-(-len(text) // ALIGNMENT) * ALIGNMENT)  # so that the gateway can use tensors where they lie
        headers |= {"content-type": BINARY, JSON_LENGTH: str(len(text))}
        pieces = [text, *part.pieces]
    return Ask(method, path, read, tuple(pieces), headers, is_repeatable=is_repeatable)


def post(
    path: str,
    body: dict[str, Any],
    read: Callable[[Answer], _T],
    with_key: bool,
    part: BinaryPart | None = None,
) -> Ask[_T]:
    """A request with a body, and with a key of its own if it may be sent again."""
    ask = with_body("POST", path, body, read, part, is_repeatable=with_key)
    if with_key:
        ask.headers[IDEMPOTENCY_KEY] = uuid.uuid4().hex
    return ask


def is_tensor_here(value: object) -> bool:
    """Whether a value is an array of numpy, or a tensor of torch."""
    return is_torch_tensor(value) or isinstance(value, np.ndarray | np.generic)


def is_torch_tensor(value: object) -> bool:
    """Whether a value is a tensor of torch, which need not be installed."""
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def as_form(tensor: Any, part: BinaryPart) -> dict[str, Any]:
    """What JSON says of a tensor, whose bytes are added to the binary part.

    Raises:
        UnsupportedTensor: it is none, or one that the gateway does not have.
    """
    dtype, array = to_array(tensor)
    if not is_little_endian(array):
        array = array.astype(array.dtype.newbyteorder("<"))
    return {"dtype": dtype.name, "shape": list(array.shape), **part.add(array)}
