"""The options of a transfer, in the form that the manifest carries them. Checks nothing."""

from __future__ import annotations

import msgspec

__all__ = ["TransferOptions"]


class TransferOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a side keeps its tensors. The manifest carries it to the worker, under the key ``store``.

    Attributes:
        budget_nbytes: most bytes of tensors to hold in shared memory; None for no limit but the file system's.
        block_ms: at the budget, how many milliseconds to wait for the peer to release views before OutOfSpace.
        checksum: whether to store a CRC-32 of each tensor's bytes, and compare it when the tensor is received.
    """

    budget_nbytes: int | None = None
    block_ms: float = 0.0
    checksum: bool = False
