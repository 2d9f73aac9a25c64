"""What the executors of kinds ``"native"`` and ``"torch"`` and their runners say to each other, beside the usual."""

from __future__ import annotations

from typing import Any

import msgspec

from .interface import Algorithm

__all__ = ["TENSORS", "NativeOptions", "options_of"]

TENSORS = "tr_run"


class NativeOptions(msgspec.Struct):
    """Behind :class:`Work`.

    Attributes:
        outputs: names of the tensors that the algorithm gives.
        is_reused: whether the process is kept for the next run.
        is_opened: whether to open a model when it is checked, and not only to look what it is.
    """

    outputs: list[str]
    is_reused: bool = False
    is_opened: bool = False


def options_of(algorithm: Algorithm) -> dict[str, Any]:
    """Those of an algorithm, as :class:`Work` carries them."""
    options: dict[str, Any] = msgspec.to_builtins(
        NativeOptions(list(algorithm.outputs), algorithm.is_reused, algorithm.bundle is not None)
    )
    return options
