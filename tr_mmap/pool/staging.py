"""Copies a request's tensors into shared memory in the thread that submits it. Sends nothing.

So the dispatcher only names them, and large copies of several threads run at once. The program's array is not needed
any more: one that makes a new array for each request gets the same warm memory again and again. If the dispatcher
copied it later, the system would have to clear new pages for each array, which takes several times as long as the copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ..errors import TRException
from ..tsr.dtypes import DType
from ..tsr.tensors import is_plain_torch, to_array
from .worker import State, Worker

__all__ = ["Staging", "large_tensor"]

_LEAST_NBYTES: Final = 1 << 16  # to copy less takes the dispatcher no time
_MOST_WAITING: Final = 8  # requests for each worker; those that come later are copied when a worker gets them
_MOST_NBYTES: Final = 1 << 28  # of shared memory for requests that no worker has
_DTYPE_KINDS: Final = "biufcV"  # V: bfloat16 and its like


class Staging:
    """Where the tensors of one pool's requests are copied to.

    Args:
        workers: those that are not dead.
        queue: the requests that no worker has.
    """

    def __init__(self, workers: Sequence[Worker], queue: Sequence[Any]) -> None:
        self._workers = workers
        self._queue = queue
        self._turns = itertools.count()

    def staged(self, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
        """The tensors of a request, with copies in shared memory in place of those that are large. Any thread.

        A tensor stays what it is if it lies in shared memory already, if it is of a kind that may be refused, or if
        there is no room: then the dispatcher deals with it.
        """
        waiting = len(self._queue)
        found: list[Any] | None = None
        for place, tensor in enumerate(tensors):
            known = large_tensor(tensor) if _is_own(tensor) else None
            if known is None:
                continue
            worker = self._next_worker(waiting)
            if worker is None or waiting * known[1].nbytes > _MOST_NBYTES:
                break
            try:
                if not worker.place_of_loans():
                    break
                loan = worker.loaned_copy(*known)
            except (TRException, OSError):  # the worker has died, or there is no room
                break
            if found is None:
                found = list(tensors)
            found[place] = loan
        return tensors if found is None else tuple(found)

    def _next_worker(self, waiting: int) -> Worker | None:
        ready = [each for each in list(self._workers) if each.state is State.READY]
        if not ready or waiting >= _MOST_WAITING * len(ready):
            return None
        return ready[next(self._turns) % len(ready)]


def _is_own(tensor: Any) -> bool:
    """Whether a tensor may lie in this program's own memory: no file, no shared memory."""
    if type(tensor) is not np.ndarray:
        return is_plain_torch(tensor)
    while type(base := tensor.base) is np.ndarray:
        tensor = base
    return base is None


def large_tensor(tensor: Any) -> tuple[DType, np.ndarray[Any, Any]] | None:
    """The dtype and the elements of a large tensor whose memory can be copied as it is; else None."""
    if type(tensor) is np.ndarray:
        if tensor.dtype.kind not in _DTYPE_KINDS or not tensor.dtype.isnative:
            return None
    elif not is_plain_torch(tensor):
        return None
    if tensor.nbytes < _LEAST_NBYTES:
        return None
    try:
        dtype, source = to_array(tensor)
    except TRException:  # whoever sends it has the same error
        return None
    return (dtype, source) if source.flags.c_contiguous else None
