"""The default worker: hello, echo, add, sub, mul, matmul, square, relu, sum, info. Needs numpy only.

``python -m tr_mmap.worker`` runs it.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import msgspec
import numpy as np

from .functions import Server

__all__ = ["server"]

Array = np.ndarray[Any, Any]

server = Server(framework="numpy")


@server.command("hello")
def hello(name: str = "world") -> str:
    return f"Hello {name.title()}"


@server.command("echo")
def echo(*tensors: Array) -> tuple[Array, ...]:
    return tensors


@server.command("add")
def add(a: Array, b: Array) -> Any:
    return np.add(a, b)


@server.command("sub")
def sub(a: Array, b: Array) -> Any:
    return np.subtract(a, b)


@server.command("mul")
def mul(a: Array, b: Array) -> Any:
    return np.multiply(a, b)


@server.command("matmul")
def matmul(a: Array, b: Array) -> Any:
    return np.matmul(a, b)


@server.command("square")
def square(x: Array) -> Any:
    return np.square(x)


@server.command("relu")
def relu(x: Array) -> Any:
    return np.maximum(x, x.dtype.type(0))


@server.command("sum")
def total(x: Array) -> Any:
    return np.sum(x)


@server.command("info")
def info() -> str:
    """What a worker is, as JSON: versions and pid."""
    fields = {"pid": os.getpid(), "python": platform.python_version(), "numpy": np.__version__}
    torch = sys.modules.get("torch")
    if torch is not None:
        fields["torch"] = torch.__version__
    return msgspec.json.encode(fields).decode()
