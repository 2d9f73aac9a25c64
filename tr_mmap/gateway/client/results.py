"""What runs and tasks gave, read from responses: their tensors are arrays, or tensors of torch. Asks nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import msgspec
import numpy as np

from ...tsr.dtypes import by_name
from ...tsr.tensors import as_torch
from .. import api
from ..errors import BadRequest
from ..payloads import decode_inputs
from .answers import Answer
from .failures import GatewayError, error_of

__all__ = [
    "ENDED",
    "EventReader",
    "Framework",
    "Result",
    "in_framework",
    "read_result",
    "result_of",
    "with_tensors",
]

Framework: TypeAlias = Literal["numpy", "torch"]
ENDED: Final = frozenset({"success", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a run gave.

    Attributes:
        value: its output: JSON's values, an array, or a tensor; several outputs are a dictionary by name.
        stdout: what it printed, cut at a limit.
        execution_time_ms: how long it ran, by its own process.
        request_id: under which the gateway's log knows it; empty of a task.
    """

    value: Any
    stdout: str = ""
    execution_time_ms: float = 0.0
    request_id: str = ""

    def __getitem__(self, name: str) -> Any:
        """One of several outputs."""
        return self.value[name]


class EventReader:
    """Reads the lines of a stream of events.

    Args:
        framework: of the tensors in results.
    """

    def __init__(self, framework: Framework) -> None:
        self._framework = framework

    def take(self, line: str) -> api.TaskInfo | None:
        """The state that a line says, if it says one."""
        if not line.startswith("data:"):
            return None
        try:
            info = msgspec.json.decode(line.removeprefix("data:").strip(), type=api.TaskInfo)
        except msgspec.MsgspecError as error:
            raise GatewayError(f"an event is no gateway's: {error}", status=200) from error
        return with_tensors(info, self._framework)


def result_of(info: api.TaskInfo) -> Result:
    """The result of a task that has ended.

    Raises:
        TRException: it failed, or was cancelled.
    """
    if info.error is not None:
        raise error_of(info.error)
    return Result(info.result, info.stdout, info.execution_time_ms)


def read_result(answer: Answer, framework: Framework) -> Result:
    """The result of a run, of its response."""
    said, binary = answer.split(api.ExecuteResult)
    return Result(_decoded(said.result, binary, framework), said.stdout, said.execution_time_ms, said.request_id)


def with_tensors(info: api.TaskInfo, framework: Framework) -> api.TaskInfo:
    """The same task, its result with tensors."""
    info.result = _decoded(info.result, memoryview(b""), framework)
    return info


def _decoded(result: Any, binary: memoryview, framework: Framework) -> Any:
    """The result with its tensors as arrays, or as tensors of torch: it is one, or they are in it by name."""
    whole = _tensor(result, binary, framework)
    if whole is result and isinstance(result, dict):
        return {name: _tensor(value, binary, framework) for name, value in result.items()}
    return whole


def _tensor(value: Any, binary: memoryview, framework: Framework) -> Any:
    try:
        array = decode_inputs({"": value}, binary)[""]
    except BadRequest:  # the gateway's tensors are right: it is an object of the algorithm that has their fields
        return value
    return in_framework(array, framework) if isinstance(array, np.ndarray) else array


def in_framework(array: np.ndarray[Any, Any], framework: Framework) -> Any:
    """The array, or a tensor of torch in its memory."""
    if framework == "numpy":
        return array
    if not array.flags.writeable:  # torch has no read-only tensors
        array = array.copy()
    return as_torch(array, by_name(str(array.dtype)))
