"""The options that the executors of kinds ``"native"`` and ``"torch"`` give to their runners."""

from __future__ import annotations

from typing import Any

import msgspec

from .interface import Algorithm

__all__ = ["TENSORS", "NativeOptions", "options_of"]

TENSORS = "tr_run"


class NativeOptions(msgspec.Struct):
    """``options`` of a :class:`Work`.

    Attributes:
        outputs: names of the tensors that the algorithm returns.
        is_reused: whether the process is kept for the next run.
        is_opened: whether a check opens the model, and does not only find out its kind.
    """

    outputs: list[str]
    is_reused: bool = False
    is_opened: bool = False


def options_of(algorithm: Algorithm) -> dict[str, Any]:
    """The options of an algorithm, as :class:`Work` carries them."""
    options: dict[str, Any] = msgspec.to_builtins(
        NativeOptions(list(algorithm.outputs), algorithm.is_reused, algorithm.bundle is not None)
    )
    return options
