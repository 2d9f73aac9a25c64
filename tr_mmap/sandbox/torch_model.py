"""The executor of kind ``"torch"``: models and Python source on torch tensors, always contained.

The host opens no model: a contained process reads its content, pickles too. The host imports torch only if its caller
has imported it, and returns torch tensors if the caller gave some.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np

from ..tsr import dtypes
from ..tsr.tensors import as_torch, as_unguarded_torch
from .contained import ContainedExecutor, Done
from .host import Host, Margin
from .inputs import Inputs
from .interface import Algorithm, Allow, ComputeRequest, ComputeResponse
from .kept import Kept
from .messages import Answer
from .native_messages import options_of

__all__ = ["TORCH_MARGIN", "TorchExecutor"]

TORCH_MARGIN: Final = Margin(has_private_inputs=True)


class TorchExecutor(ContainedExecutor):
    """See the module's docstring. Threads may use it at once.

    Args:
        name: of the kind.
        runner: the module of ``runners/`` that runs it.
        host: makes its processes; closed with it.
    """

    maps_ahead = False  # inputs are mapped privately, for each run

    def __init__(self, name: str, runner: str, host: Host, *_: Allow | Kept) -> None:
        super().__init__(name, runner, host)

    def _runner_options(self, algorithm: Algorithm, inputs: Inputs) -> dict[str, Any]:  # noqa: ARG002 - as the others have it
        return options_of(algorithm)

    def _check_options(self, algorithm: Algorithm) -> dict[str, Any]:
        return options_of(algorithm)

    def _respond(self, request: ComputeRequest, outputs: dict[str, Any], done: Done, inputs: Inputs) -> ComputeResponse:
        """Results are torch tensors if one of the inputs is; else they are arrays."""
        response = super()._respond(request, outputs, done, inputs)
        if _has_torch(request):
            # If the process is kept, or the buffer is bytes, the caller's stores into a tensor must not reach them.
            is_own = not request.algorithm.is_reused and not self._must_copy
            response.outputs = _with_torch(outputs, done.answer, is_own=is_own)
        return response


def _has_torch(request: ComputeRequest) -> bool:
    torch = sys.modules.get("torch")
    values = request.inputs.values() if request.arguments is None else request.arguments
    return torch is not None and any(isinstance(each, torch.Tensor) for each in values)


def _with_torch(outputs: dict[str, Any], answer: Answer, *, is_own: bool) -> dict[str, Any]:
    """The outputs with torch tensors instead of arrays: in the same memory with ``is_own``, else copies."""
    found = dict(outputs)
    for spec in answer.tensors:
        array, dtype = outputs[spec.name], dtypes.by_name(spec.dtype)
        found[spec.name] = as_unguarded_torch(array, dtype) if is_own else as_torch(np.array(array), dtype)
    return found
