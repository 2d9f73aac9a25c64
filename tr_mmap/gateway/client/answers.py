"""A response while it arrives, and as it is read. Its tensors lie in the memory that it was received into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import numpy as np

from ...errors import TRException
from ..api import ErrorBody
from ..errors import BadRequest
from ..payloads import ALIGNMENT, JSON, JSON_LENGTH, split_body
from .failures import GatewayError, error_of

__all__ = ["Answer", "Inbox"]

_T = TypeVar("_T")
_MOST_SHOWN: Final = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response.

    Attributes:
        status: of HTTP.
        headers: by name, in any case.
        body: in memory that nobody else has.
    """

    status: int
    headers: Mapping[str, str]
    body: memoryview

    def json(self, kind: type[_T]) -> _T:
        """What its JSON says.

        Raises:
            GatewayError: it is not that.
            TRException: the gateway refuses; the type is its error's.
        """
        return self.split(kind)[0]

    def split(self, kind: type[_T]) -> tuple[_T, memoryview]:
        """What its JSON says, and its binary part; raises as :meth:`json`."""
        if not 200 <= self.status < 300:
            raise self.error()
        try:
            text, binary = split_body(self.body, self.headers.get("content-type", JSON), self.headers.get(JSON_LENGTH))
            return msgspec.json.decode(text, type=kind), binary
        except (msgspec.MsgspecError, BadRequest) as error:
            raise GatewayError(f"the response is no gateway's: {error}", status=self.status) from error

    def error(self) -> TRException:
        """What it says is wrong."""
        try:
            return error_of(msgspec.json.decode(self.body, type=ErrorBody))
        except msgspec.MsgspecError:
            shown = " ".join(bytes(self.body[:_MOST_SHOWN]).decode("utf-8", "replace").split())
            return GatewayError(
                f"the response has the status {self.status}, and is no gateway's: {shown or 'nothing'}",
                status=self.status,
            )

    def retry_after_s(self) -> float | None:
        """When it says that the request may be sent again; None if it does not."""
        said = self.headers.get("retry-after", "")
        return float(said) if said.isascii() and said.isdigit() else None


class Inbox:
    """Takes the bytes of a body, each once, into memory where its tensors can be used as they lie.

    Args:
        status: of the response.
        headers: its headers.
    """

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self._headers = headers
        length = headers.get("content-length", "")
        is_known = length.isascii() and length.isdigit() and "content-encoding" not in headers
        self._place: memoryview | None = self._make(int(length)) if is_known else None
        self._loose = bytearray()  # where the length is not known
        self._nbytes = 0

    def _make(self, nbytes: int) -> memoryview:
        said = self._headers.get(JSON_LENGTH, "")
        json_nbytes = int(said) if said.isascii() and said.isdigit() else 0
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        begin = -(memory.ctypes.data + json_nbytes) % ALIGNMENT
        return memory[begin : begin + nbytes].data

    def take(self, chunk: bytes) -> None:
        """Add what has arrived."""
        if self._place is None:
            self._loose += chunk
        else:
            self._place[self._nbytes : self._nbytes + len(chunk)] = chunk
        self._nbytes += len(chunk)

    def answer(self) -> Answer:
        """All of it, once it is there."""
        if self._place is None:
            self._place = self._make(self._nbytes)
            self._place[:] = self._loose
        return Answer(self._status, self._headers, self._place[: self._nbytes])
