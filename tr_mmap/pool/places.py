"""Where results lie: which worker's memory a tensor is in, by its address. Keeps no tensor alive.

A session maps each of its worker's segments once, and uses it again and again, so an address tells the worker for as
long as that lives. If another session's segment is mapped there later, that worker's next result says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from .worker import Worker

__all__ = ["Places"]

_LEAST_NBYTES: Final = 1 << 16  # for less it does not matter
_MOST: Final = 4096  # addresses that are known


class Places:
    """The addresses of results."""

    def __init__(self) -> None:
        self._found: dict[int, Worker] = {}

    def note(self, tensors: Iterable[Any], worker: Worker) -> None:
        """A worker has sent results."""
        for tensor in tensors:
            if tensor.nbytes >= _LEAST_NBYTES:
                if len(self._found) >= _MOST:
                    self._found.clear()
                self._found[_address_of(tensor)] = worker

    def forget(self, worker: Worker) -> None:
        """A worker has ended. Its results live on, but no request can go to it."""
        for address, home in list(self._found.items()):
            if home is worker:
                del self._found[address]

    def home_of(self, arguments: Iterable[Any]) -> Worker | None:
        """The worker that has sent most bytes of the arguments; None if there is none."""
        found: dict[Worker, int] = {}
        if not self._found:
            return None
        for each in arguments:
            if type(each) is np.ndarray:
                if each.base is None or each.nbytes < _LEAST_NBYTES:
                    continue
            elif not hasattr(each, "untyped_storage"):
                continue
            worker = self._found.get(_address_of(each))
            if worker is not None:
                found[worker] = found.get(worker, 0) + each.nbytes
        return max(found, key=lambda each: found[each]) if found else None


def _address_of(tensor: Any) -> int:
    """Where the memory of a tensor begins, of which it may be a part."""
    if isinstance(tensor, np.ndarray):
        while isinstance(tensor.base, np.ndarray):
            tensor = tensor.base
        address: int = tensor.__array_interface__["data"][0]
        return address
    pointer: int = tensor.untyped_storage().data_ptr()
    return pointer
