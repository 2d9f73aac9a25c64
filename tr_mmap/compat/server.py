"""``TechRenaissanceServer`` as programs for the original use it.

They use ``get_tensors(…, 1)`` in two ways: the original's first documents say that it returns a list of one tensor, and
its later programs expect the tensor itself. Here the result works as both. Imports torch only for torch tensors.
"""

from __future__ import annotations

from typing import Any, Literal

from ..errors import BadMessage
from ..worker.server import TechRenaissanceServer as Base

__all__ = ["TechRenaissanceServer"]


class TechRenaissanceServer(Base):
    """A worker, see :class:`tr_mmap.TechRenaissanceServer`.

    Attributes:
        one_tensor: what ``get_tensors(…, 1)`` returns. ``"both"``: a torch tensor that can also be unpacked and indexed
            as a list of one, see :class:`tr_mmap.compat.one_tensor.OneTensor`; with numpy, a list, because only
            programs written for tr_mmap ask for arrays. ``"tensor"``: the tensor. ``"list"``: a list of one.
    """

    one_tensor: Literal["both", "tensor", "list"] = "both"

    def get_tensors(self, parameters: str, count: int | None = None) -> Any:
        """As that of :class:`tr_mmap.TechRenaissanceServer`; but see ``one_tensor`` for a ``count`` of 1.

        Raises:
            BadMessage: ``one_tensor`` is none of its three words.
        """
        found = super().get_tensors(parameters, count)
        if count != 1 or found is None:
            return found
        if self.one_tensor == "tensor":
            return found[0]
        if self.one_tensor == "both" and self.framework == "torch":
            from .one_tensor import one_tensor

            return one_tensor(found[0])
        if self.one_tensor not in ("both", "list"):
            raise BadMessage(
                f"one_tensor is {self.one_tensor!r:.80}; it is 'both', 'tensor' or 'list'", detail="one_tensor"
            )
        return found
