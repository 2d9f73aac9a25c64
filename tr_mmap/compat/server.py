"""``TechRenaissanceServer`` as the original's programs know it: ``get_tensors(…, 1)`` serves both of their habits.

The first documents of the original give a list of one tensor there, its later programs the tensor itself. Imports torch
only for tensors in that framework.
"""

from __future__ import annotations

from typing import Any, Literal

from ..errors import BadMessage
from ..worker.server import TechRenaissanceServer as Base

__all__ = ["TechRenaissanceServer"]


class TechRenaissanceServer(Base):
    """A worker, see :class:`tr_mmap.TechRenaissanceServer`.

    Attributes:
        one_tensor: what ``get_tensors(…, 1)`` gives. ``"both"``: a torch tensor that is also unpacked and indexed as a
            list of one, see :class:`tr_mmap.compat.one_tensor.OneTensor`; of numpy's arrays, a list, because only
            programs written for tr_mmap ask for these. ``"tensor"``: the tensor. ``"list"``: a list of one.
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
