"""What annotations with torch in them mean: a word or a tensor, or an error when the function is registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from test_annotations import bound

from tr_mmap import BadMessage, Server

ConstrainedArray = TypeVar("ConstrainedArray", np.ndarray, torch.Tensor)


class Network(torch.nn.Module):
    pass


def scale(x: Any, k: float | None = None) -> Any:
    return x, k


def scale_by_name(x: Any, *, k: float) -> Any:
    return x, k


def arrays(x: np.ndarray, y: torch.Tensor | None = None, z: torch.Tensor | object = 1) -> Any:
    return x, y, z


def constrained(x: ConstrainedArray, y: ConstrainedArray | None = None) -> Any:
    return x, y


@pytest.mark.parametrize(
    ("function", "parameters", "result"),
    [
        (arrays, "a", ("tensor a", None, 1)),
        (arrays, "a b 7", ("tensor a", "tensor b", "tensor 7")),
        (constrained, "a b", ("tensor a", "tensor b")),
        (torch.inference_mode()(scale), "a 2.5", ("tensor a", 2.5)),
        (torch.no_grad()(scale_by_name), "a 2.5", ("tensor a", 2.5)),
    ],
)
def test_torch_s_tensors_are_tensors_and_its_decorators_hide_no_annotation(
    function: Callable[..., Any], parameters: str, result: Any
) -> None:
    assert bound(function, parameters) == result


def a_dtype(x: Any, dtype: torch.dtype) -> Any: ...
def a_device(x: Any, device: torch.device | None = None) -> Any: ...
def a_size(x: Any, size: torch.Size) -> Any: ...
def a_module(x: Any, net: torch.nn.Module) -> Any: ...
def a_network(x: Any, net: Network) -> Any: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (a_dtype, "dtype: torch.dtype is neither a tensor nor a word.*write dtype: str$"),
        (a_device, "write device: str$"),
        (a_size, "write size: str$"),
        (a_module, "write net: str$"),
        (a_network, "write net: str$"),
    ],
)
def test_what_torch_has_that_is_no_tensor_is_refused_when_it_is_registered(
    function: Callable[..., Any], words: str
) -> None:
    with pytest.raises(BadMessage, match=words):
        Server().command("do")(function)
