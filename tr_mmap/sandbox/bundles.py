"""Several tensors in one piece of sealed memory, which is one input of a run: a model's weights, say.

They are copied once, when the bundle is made. Each run maps that memory in place, and nobody can write it any more.
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
    """Tensors by name. An algorithm gets them as a dictionary of read-only arrays; of kind ``"torch"``, of tensors.

    The memory is released with the last reference to the bundle. A run that goes on has one.

    Args:
        tensors: by name: numpy arrays, torch tensors.

    Raises:
        UnsupportedTensor: one of them has a dtype that no algorithm can get.
        OutOfSpace: the machine has less memory.
        OSError: a tensor lies in a file that somebody has truncated, or there is no descriptor.

    Attributes:
        fd: descriptor of the memory.
        nbytes: of it.
        specs: what describes the tensors.
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
        """Of the tensors."""
        return tuple(each.name for each in self.specs)

    def check_code(self) -> None:
        """
        Raises:
            ValueError: it is no code of an algorithm.
        """
        if len(self.specs) != 1 or self.specs[0].dtype != "uint8":
            raise ValueError("code that is given as a bundle is one array of uint8 in it, and nothing else")

    def __repr__(self) -> str:
        return f"<Bundle of {len(self.specs)} tensors, {self.nbytes} bytes>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a bundle is memory of this process, and cannot be pickled; give its tensors")


def _lay_out(tensors: Mapping[str, Any]) -> tuple[list[TensorSpec], list[tuple[int, np.ndarray[Any, Any]]], int]:
    """What describes tensors one behind the other; each as an array, with its offset; and where they end."""
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
