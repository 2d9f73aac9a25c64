"""Where senders had their tensors: the name of the device, and the way back to it. A payload is always in CPU memory.

Never imports torch: only its tensors can be on another device, and then it is imported.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, Final

import numpy as np

from ..errors import UnsupportedTensor
from ..wire.header import DEVICE_NBYTES

__all__ = ["device_of", "received_from", "sender_device"]

_CPU: Final = "cpu"
# By the id of a received tensor, of those only that their senders did not have in CPU memory.
_remembered: Final[dict[int, tuple[weakref.ref[Any], str]]] = {}


def device_of(tensor: Any) -> str:
    """The device of a tensor that is to be sent, as torch writes it; "" for CPU memory, and what has no device.

    A name that a header has no room for, or that is not ASCII, is not told.
    """
    if isinstance(tensor, np.ndarray):
        return ""
    torch: Any = sys.modules.get("torch")
    is_tensor = torch is not None and isinstance(tensor, getattr(torch, "Tensor", ()))
    name = "" if not is_tensor or tensor.is_cpu else str(tensor.device)
    return name if name.isascii() and len(name) <= DEVICE_NBYTES else ""


def received_from(device: str, tensor: Any, *, moves_back: bool) -> Any:
    """A tensor that was received in CPU memory, and that its sender had on a device.

    Args:
        device: as :func:`device_of` says it.
        tensor: an array, or a torch tensor.
        moves_back: whether a torch tensor is put on the device that has that name here.

    Raises:
        UnsupportedTensor: this process has no such device, or the device has no room.
    """
    if moves_back and not isinstance(tensor, np.ndarray):
        try:
            tensor = tensor.to(device)
        except MemoryError:
            raise
        except Exception as error:  # each kind of device has errors of its own, some of many lines
            del tensor  # else a traceback that is kept would keep it
            reason = (str(error).splitlines() or [""])[0][:200]
            raise UnsupportedTensor(
                f"the sender had this tensor on {device}, and it cannot be put there in this process "
                f'({type(error).__name__}: {reason}); without device="same" it is received in CPU memory'
            ) from error
    _remember(tensor, device)
    return tensor


def _remember(tensor: Any, device: str) -> None:
    key = id(tensor)

    def forget(reference: weakref.ref[Any]) -> None:
        found = _remembered.get(key)
        if found is not None and found[0] is reference:
            _remembered.pop(key, None)

    _remembered[key] = weakref.ref(tensor, forget), device


def sender_device(tensor: Any) -> str:
    """Where the sender of a received tensor had it, as torch writes it: ``"cuda:0"``, say.

    A payload is always in CPU memory. A receiver that wants the tensor on that device calls ``tensor.to(...)``, or has
    said ``device="same"``.

    Args:
        tensor: a received tensor itself, not a view or a copy of it.

    Returns:
        ``"cpu"`` if the sender had it in CPU memory, and for a tensor that was not received.
    """
    found = _remembered.get(id(tensor))
    return found[1] if found is not None and found[0]() is tensor else _CPU
