"""A device beside the CPU that every build of torch has: ``lazy``, whose tensors are computed when they are looked at.

Their data is in no memory that a program can reach, so it has to be copied from there and back, as that of a GPU.
"""

from __future__ import annotations

import torch

__all__ = ["DEVICE", "begin", "on_device"]

DEVICE = "lazy:0"
_begun: list[bool] = []


def begin() -> None:
    """Make this process have the device."""
    if not _begun:
        import torch._lazy
        import torch._lazy.ts_backend

        torch._lazy.ts_backend.init()
        _begun.append(True)


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor there."""
    begin()
    return tensor.to(DEVICE)
