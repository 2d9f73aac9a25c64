"""A run as a request asks for it: the body, and its inputs as what they are. Opens nothing, runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .api import ExecuteBody
from .payloads import body_nbytes, decode_inputs

__all__ = ["Asked"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run is to do.

    Attributes:
        body: of the request.
        inputs: of it, decoded.
        nbytes: of memory that they keep.
    """

    body: ExecuteBody
    inputs: dict[str, Any]
    nbytes: int

    @classmethod
    def of(cls, body: ExecuteBody, binary: memoryview) -> Asked:
        """
        Args:
            body: of the request.
            binary: its binary part, perhaps an empty one.

        Raises:
            BadRequest: an input is a tensor, and a wrong one.
        """
        return cls(body, decode_inputs(body.inputs, binary), body_nbytes(binary))
