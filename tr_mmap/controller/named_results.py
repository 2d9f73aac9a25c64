"""Results by their names, as documents of the original framework take them: ``recv_tensor``. Sends no request.

Each tensor of an answer has a name: ``result_<i>`` by its place, or what a worker in the legacy dialect calls it. A
worker may also write a file of another name into the session's directory (``write_tsr_file``).
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Final

import numpy as np

from ..base import system
from ..base.fork_safety import this_process
from ..base.identifiers import check_tag, is_plain_tag, is_result_name, tensor_file
from ..errors import MissingTag
from ..protocol.messages import Response
from ..tsr import load
from ..tsr.tensors import as_torch, to_array
from ..wire.names import RESULT_PREFIX
from .dispatcher import Dispatcher
from .pending import Pending
from .results import Result

__all__ = ["NamedResults"]

_LOOK_S: Final = 0.01  # how often to look for a file that no answer announces


class NamedResults(threading.local):
    """What one thread may still take by name of the last answer that it took.

    Attributes:
        rest: tensors that were received, by name.
        refused: the answer that has no tensor of the name asked for. It waits to be taken in another way until this
            thread's next ``send_request``, which drops it: else it would be taken for the answer to that request.
    """

    def __init__(self) -> None:
        self.rest: dict[str, Any] = {}
        self.refused: Pending | None = None

    def forget(self, dispatcher: Dispatcher) -> None:
        """Forget the last answer, because this thread sends another request."""
        refused, self.refused = self.refused, None
        if refused is not None:
            dispatcher.drop_claim(refused)
        self.rest = {}

    def note(self, result: Result) -> None:
        """Keep the tensors of an answer whose text was taken: the program may still ask for them by name."""
        response, tensors = result
        self.rest = dict(zip(_names(response, len(tensors)), tensors, strict=True))

    def receive(self, dispatcher: Dispatcher, tag: str, timeout_s: float, directory: str, framework: str) -> Any:
        """The tensor of a name; see ``PythonSession.recv_tensor``."""
        if not is_plain_tag(tag):
            check_tag(tag)  # raises
        deadline_s = time.monotonic() + timeout_s
        worker = dispatcher.resources.worker  # kept: another thread that notices its death sets that attribute to None
        if not dispatcher.has_own_claim():
            found = self._take_kept(tag, framework)
            while found is None and not dispatcher.has_claim():
                found = _take_file(directory, tag, framework)
                remaining_s = deadline_s - time.monotonic()
                if remaining_s <= 0 or (worker or dispatcher.worker()).is_over():
                    break
                if found is None:
                    time.sleep(min(_LOOK_S, remaining_s))
            if found is not None:
                return found
        response, tensors = dispatcher.take(timeout_s, worker=worker, deadline_s=deadline_s)
        named = dict(zip(_names(response, len(tensors)), tensors, strict=True))
        found = _pop(named, tag)
        if found is None:
            found = _take_file(directory, tag, framework)
        if found is None:
            self.refused = dispatcher.give_back((response, tensors))
            has = f"its tensors are {', '.join(named)}" if named else f"its text is {response.result[:200]!r}"
            raise MissingTag(
                f"the answer to {response.command!r} has no tensor {tag!r}: {has}; the answer can still be taken",
                tag=tag,
            )
        self.rest, self.refused = named, None
        return found

    def _take_kept(self, tag: str, framework: str) -> Any:
        found = _pop(self.rest, tag)
        if found is not None:
            if framework == "torch" and isinstance(found, np.ndarray):  # received by the fast path
                dtype, array = to_array(found)
                return as_torch(array.copy(), dtype)
            return found
        return None


def _names(response: Response, count: int) -> list[str]:
    """The names of an answer's tensors. The fast path leaves ``response.tensors`` empty; then ``count`` are named."""
    if not response.tensors:
        return [f"{RESULT_PREFIX}_{number}" for number in range(count)]
    return [ref.tag or f"{RESULT_PREFIX}_{number}" for number, ref in enumerate(response.tensors)]


def _pop(named: dict[str, Any], tag: str) -> Any:
    """Take out the tensor of a name; ``"result"`` also names the only one. None if there is none."""
    if tag == RESULT_PREFIX and tag not in named and len(named) == 1:
        return named.popitem()[1]
    return named.pop(tag, None)


def _take_file(directory: str, tag: str, framework: str) -> Any:
    """The tensor of a file that the worker has written under a name of its own; None if there is none."""
    name = tensor_file(tag)
    path = os.path.join(directory, name)
    if is_result_name(name):  # files of that form are the worker's segments
        return None
    try:
        if system.status(path).st_nlink > 1:  # a tag of our own: its file has a name elsewhere, too
            return None
    except OSError:
        return None
    taken = os.path.join(directory, tensor_file(f".received_{os.getpid()}_{threading.get_ident()}"))
    owner = this_process.mark
    try:
        system.rename(path, taken)  # so that no other thread takes it, and no later write reaches it
    except FileNotFoundError:
        return None
    try:
        tensor = load(taken, framework=framework)
    except BaseException:
        system.rename(taken, path, owner=owner)
        raise
    system.unlink(taken, owner=owner)
    return tensor
