"""How both sides of a session keep their tensors."""

from __future__ import annotations

import msgspec

__all__ = ["TransferOptions"]


class TransferOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a side keeps its tensors. The manifest carries it to the worker, under the key ``store``.

    Attributes:
        budget_nbytes: most bytes of tensors to hold in shared memory; None for no limit of ours.
        block_ms: at the budget, how long to wait for the other side to release some before it is an error.
        checksum: whether to store a CRC-32 of each tensor's bytes, and compare it on receipt.
    """

    budget_nbytes: int | None = None
    block_ms: float = 0.0
    checksum: bool = False
