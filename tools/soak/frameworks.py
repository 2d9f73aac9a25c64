"""Tensors of numpy or torch with the same bytes, given to a session in every way that there is. Checks nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tr_mmap import PythonSession

__all__ = ["bytes_of", "give", "scribble", "tensor_of"]

_SCRIBBLED: Final = 9


def bytes_of(tensor: Any) -> np.ndarray[Any, Any]:
    """A tensor as an array of the same bytes. A bfloat16, which numpy lacks, as int16."""
    if isinstance(tensor, np.ndarray):
        return tensor
    import torch

    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def tensor_of(array: np.ndarray[Any, Any], framework: str) -> Any:
    """The array, or a torch tensor in its memory."""
    if framework == "numpy":
        return array
    import torch

    return torch.from_numpy(array)


def scribble(tensor: Any) -> None:
    """Store into all of a torch tensor. Nobody else may see it."""
    import torch

    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.fill_(_SCRIBBLED)


def give(
    session: PythonSession, array: np.ndarray[Any, Any], framework: str, choice: random.Random
) -> tuple[Any, Callable[[], object]]:
    """A tensor with an array's bytes for a session, and what is to be called when it has been sent.

    For numpy it is the array or a loan. For torch it is plain, not contiguous, a loan, an inference tensor, or one that
    requires grad; and when a loan has been sent, it may be stored into.
    """
    if framework == "numpy":
        if choice.random() < 0.5:
            return array, _nothing
        loan = session.empty(array.shape, array.dtype)
        loan[...] = array
        return loan, _nothing
    import torch

    plain = tensor_of(array, framework)
    if plain.dtype == torch.int16:
        plain = plain.view(torch.bfloat16)
    kind = choice.choice(["plain", "strided", "loan", "loan", "loan for inference", "parameter"])
    if kind == "strided":
        return torch.stack([plain, plain], -1)[..., 0], _nothing
    if kind == "parameter" and (plain.is_floating_point() or plain.is_complex()):
        return torch.nn.Parameter(plain), _nothing
    if "loan" in kind:
        with torch.inference_mode("inference" in kind):
            loan = session.empty(plain.shape, plain.dtype)
            loan.copy_(plain)
        return loan, (lambda: scribble(loan)) if choice.random() < 0.5 else _nothing
    return plain, _nothing


def _nothing() -> None:
    pass
