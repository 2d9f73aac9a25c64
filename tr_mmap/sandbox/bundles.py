"""Bundles: several tensors in one piece of sealed memory, as one input of a run. An example are a model's weights.

The tensors are copied once, when the bundle is made. Each run maps that memory in place; nobody can write it any more.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from ..tsr.tensors import to_array
from . import memory
from .checks import check_text
from .messages import TensorSpec
from .room import check_room

__all__ = ["Bundle"]


class Bundle:
    """Tensors by name. An algorithm gets a dictionary of read-only arrays, or of tensors if its kind is ``"torch"``.

    The memory is released with the last reference to the bundle. A run that goes on holds a reference.

    Args:
        tensors: by name: numpy arrays, torch tensors.

    Raises:
        UnsupportedTensor: a tensor has a dtype that TSR lacks.
        OutOfSpace: the machine has less memory than that.
        OSError: a tensor lies in a file that was truncated, or no descriptor is left.

    Attributes:
        fd: descriptor of the memory.
        nbytes: size of the memory.
        specs: the tensors' names, dtypes, shapes and offsets.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.specs, pieces, end = _lay_out(tensors)
        check_room(end, "a bundle of tensors")
        self.fd = memory.copy_in(pieces, end)
        weakref.finalize(self, os.close, self.fd).atexit = False
        self.nbytes = os.fstat(self.fd).st_size

    @staticmethod
    def nbytes_of(tensors: Mapping[str, Any]) -> int:
        """How much memory a bundle of these tensors takes."""
        return max(_lay_out(tensors)[2], mmap.PAGESIZE)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors."""
        return tuple(each.name for each in self.specs)

    def check_code(self) -> None:
        """Refuse a bundle that cannot be an algorithm's code.

        Raises:
            ValueError: it is not one array of uint8.
        """
        if len(self.specs) != 1 or self.specs[0].dtype != "uint8":
            raise ValueError("code that is given as a bundle is one array of uint8 in it, and nothing else")

    def __repr__(self) -> str:
        return f"<Bundle of {len(self.specs)} tensors, {self.nbytes} bytes>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a bundle is memory of this process, and cannot be pickled; give its tensors")


def _lay_out(tensors: Mapping[str, Any]) -> tuple[list[TensorSpec], list[tuple[int, np.ndarray[Any, Any]]], int]:
    """Place tensors one after the other. Returns their descriptions, their offsets and arrays, and where they end."""
    specs: list[TensorSpec] = []
    pieces: list[tuple[int, np.ndarray[Any, Any]]] = []
    end = 0
    for name, tensor in tensors.items():
        check_text("a tensor's name", name)
        dtype, array = to_array(tensor)
        offset = -(-end // memory.ALIGNMENT) * memory.ALIGNMENT
        end = offset + array.nbytes
        specs.append(TensorSpec(name, dtype.name, array.shape, offset))
        pieces.append((offset, array))
    return specs, pieces, end
