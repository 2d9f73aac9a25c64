"""What is asked of a gateway, and what its responses say: requests and results as plain values. Sends nothing.

Each function makes one :class:`Ask`. Both clients send it, and return what its ``read`` makes of the response.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from ...sandbox.code_texts import is_path
from ...sandbox.values import plain
from ...tsr.framework_names import check_framework_name, check_installed
from .. import api
from ..errors import BadRequest
from ..model_api import ModelInfo, ModelList
from ..payloads import BINARY, JSON, BinaryPart
from .answers import Answer
from .asks import Ask, as_form, as_part, is_tensor_here, is_torch_tensor, post, with_body
from .failures import GatewayError
from .results import ENDED, EventReader, Framework, Result, read_result, result_of, with_tensors
from .sources import source_of

__all__ = [
    "Algorithm",
    "Code",
    "Inputs",
    "algorithm_named",
    "algorithms",
    "cancel",
    "compute",
    "dependencies",
    "execute",
    "follow",
    "follow_to_end",
    "health",
    "load_model",
    "make_environment",
    "models",
    "register",
    "scheduler_status",
    "task_info",
    "unregister",
    "workers",
]

Code: TypeAlias = "str | Path | Callable[..., Any]"
Algorithm: TypeAlias = "str | api.AlgorithmInfo"
Inputs: TypeAlias = "Mapping[str, Any] | None"

_PYTHON: Final = f"{api.PREFIX}/python"
_GRACE_S: Final = 5.0  # for a run's response, after its own time
_SILENCE_S: Final = 60.0  # a stream of events says something every 15 s


# -- algorithms ------------------------------------------------------------------------------------------------------


def register(
    name: str | Callable[..., Any],
    code: Code | None,
    *,
    kind: str | None,
    wasm: bytes | Path | None,
    library: bytes | Path | None,
    memory_mb: int | None,
    cpu_cores: int | None,
    with_key: bool,
    **fields: Any,
) -> Ask[api.AlgorithmInfo]:
    """Register an algorithm."""
    if callable(name):
        name, code = _called(name), name if code is None else code
    body: dict[str, Any] = {"name": name, "kind": kind or _kind_of(wasm, library)}
    if callable(code):
        fields["function"] = fields["function"] or _called(code)
    body["code"] = None if code is None else _text_of(code)
    for field_name, given in (("wasm", wasm), ("library", library)):
        if given is not None:
            body[field_name] = binascii.b2a_base64(_bytes_of(field_name, given), newline=False).decode()
    if memory_mb is not None or cpu_cores is not None:
        body["resource_requirements"] = {"memory_mb": memory_mb, "cpu_cores": cpu_cores}
    body |= fields
    return post(f"{_PYTHON}/algorithms", _said(body), lambda answer: answer.json(api.AlgorithmInfo), with_key)


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a body that were given, as JSON has them.

    Raises:
        BadRequest: JSON has no such value.
    """
    try:
        return {name: plain(value, name) for name, value in fields.items() if value is not None}
    except (TypeError, ValueError) as error:
        raise BadRequest(str(error)) from None


def _called(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", function))


def _kind_of(wasm: object, library: object) -> str:
    return "wasm" if wasm is not None else "native" if library is not None else "python"


def _text_of(code: Code) -> str:
    if isinstance(code, Path):
        return code.read_text(encoding="utf-8")
    if not isinstance(code, str):
        return source_of(code)
    if is_path(code):
        line = code.strip()
        raise BadRequest(
            f"the code is {line!r:.200}, which looks like the path of a file: give Path({line!r:.200}), or the text of "
            "the file"
        )
    return code


def _bytes_of(field: str, given: bytes | Path) -> bytes:
    """What a module or a library is."""
    if isinstance(given, Path):
        return given.read_bytes()
    if not isinstance(given, bytes | bytearray | memoryview):
        raise BadRequest(f"{field} is {given!r:.80}; give the bytes of the file, or its path as a Path")
    return bytes(given)


def algorithms() -> Ask[list[api.AlgorithmInfo]]:
    """All that are registered."""
    return Ask("GET", f"{_PYTHON}/algorithms", lambda answer: answer.json(api.AlgorithmList).algorithms)


def algorithm_named(name: str) -> Ask[api.AlgorithmInfo]:
    """One of them."""
    return Ask("GET", f"{_PYTHON}/algorithms/{as_part(name)}", lambda answer: answer.json(api.AlgorithmInfo))


def unregister(name: Algorithm) -> Ask[api.AlgorithmInfo]:
    """Forget one."""
    path = f"{_PYTHON}/algorithms/{as_part(_name_of(name))}"
    return Ask("DELETE", path, lambda answer: answer.json(api.AlgorithmInfo), is_repeatable=False)


def models() -> Ask[list[ModelInfo]]:
    """The models."""
    return Ask("GET", f"{_PYTHON}/models", lambda answer: answer.json(ModelList).models)


def load_model(name: str, version: int | None) -> Ask[ModelInfo]:
    """Load one."""
    body = _said({"version": version})
    path = f"{_PYTHON}/models/{as_part(name)}"
    return with_body("POST", path, body, lambda answer: answer.json(ModelInfo), is_repeatable=True)


def dependencies() -> Ask[api.DependencyList]:
    """What may be installed, and what is."""
    return Ask("GET", f"{_PYTHON}/dependencies", lambda answer: answer.json(api.DependencyList))


def make_environment(packages: tuple[str, ...] | list[str]) -> Ask[api.EnvironmentInfo]:
    """Install packages; the same ones again are the same environment."""
    body = _said({"packages": packages})
    return with_body(
        "POST",
        f"{_PYTHON}/dependencies",
        body,
        lambda answer: answer.json(api.EnvironmentInfo),
        is_repeatable=True,
    )


# -- runs ------------------------------------------------------------------------------------------------------------


def execute(
    algorithm: Algorithm | None,
    code: Code | None,
    inputs: Inputs,
    *,
    framework: Framework | None,
    with_key: bool,
    **fields: Any,
) -> Ask[Result]:
    """Run an algorithm, or code, and wait for it."""
    body, part, kind = _run(algorithm, code, inputs, framework, fields)
    ask = post(f"{_PYTHON}/execute", body, lambda answer: read_result(answer, kind), with_key, part)
    ask.headers["accept"] = f"{BINARY}, {JSON}"
    timeout_ms = body.get("timeout_ms")
    if timeout_ms is not None and not isinstance(timeout_ms, int | float):
        raise BadRequest(f"timeout_ms={timeout_ms!r:.80} is no number of milliseconds")
    return ask if timeout_ms is None else replace(ask, timeout_s=timeout_ms / 1000 + _GRACE_S)


def compute(
    algorithm: Algorithm | None,
    code: Code | None,
    inputs: Inputs,
    *,
    framework: Framework | None,
    with_key: bool,
    **fields: Any,
) -> tuple[Ask[str], Framework]:
    """Start a task, whose id is the result; and the framework of its tensors."""
    body, part, kind = _run(algorithm, code, inputs, framework, fields)
    body["tensors"] = "base64"  # the lists of JSON would lose bits
    path = f"{api.PREFIX}/compute"
    return post(path, body, lambda answer: answer.json(api.TaskStarted).task_id, with_key, part), kind


def task_info(task_id: str, framework: Framework) -> Ask[api.TaskInfo]:
    """The state of a task."""
    return Ask("GET", _task(task_id), lambda answer: with_tensors(answer.json(api.TaskInfo), framework))


def cancel(task_id: str, framework: Framework) -> Ask[api.TaskInfo]:
    """Cancel a task."""
    return Ask(
        "PUT",
        f"{_task(task_id)}/cancel",
        lambda answer: with_tensors(answer.json(api.TaskInfo), framework),
        is_repeatable=False,
    )


def follow(task_id: str) -> Ask[None]:
    """The stream of a task's events; :class:`EventReader` reads it while it comes."""
    return Ask("GET", f"{_task(task_id)}/events", lambda _: None, silence_s=_SILENCE_S)


def follow_to_end(task_id: str, framework: Framework) -> Ask[Result]:
    """The result of a task, once it has ended: what the last of its events says."""

    def read(answer: Answer) -> Result:
        if answer.status != 200:
            raise answer.error()
        reader = EventReader(framework)
        last = None
        for line in bytes(answer.body).decode("utf-8", "replace").split("\n"):
            last = reader.take(line) or last
        if last is None or last.status not in ENDED:
            raise GatewayError("the events of the task ended before it did", status=answer.status)
        return result_of(last)

    awaited = f"the task {task_id} has not ended {{within}}; it goes on: ask for its result again, or cancel it"
    return Ask("GET", f"{_task(task_id)}/events", read, silence_s=_SILENCE_S, awaited=awaited)


# -- the gateway -----------------------------------------------------------------------------------------------------


def workers() -> Ask[list[api.WorkerInfo]]:
    """The trusted workers."""
    return Ask("GET", f"{api.PREFIX}/workers", lambda answer: answer.json(api.WorkerList).workers)


def scheduler_status() -> Ask[api.SchedulerStatus]:
    """What waits, and what goes on."""
    return Ask("GET", f"{api.PREFIX}/scheduler/status", lambda answer: answer.json(api.SchedulerStatus))


def health() -> Ask[api.Health]:
    """Whether it serves; one that is about to end says so, and refuses nothing."""

    def read(answer: Answer) -> api.Health:
        try:
            return msgspec.json.decode(answer.body, type=api.Health)
        except msgspec.MsgspecError:
            raise answer.error() from None

    return Ask("GET", "/healthz", read, may_retry=False)


# -- bodies ----------------------------------------------------------------------------------------------------------


def _name_of(algorithm: Algorithm) -> str:
    return algorithm.name if isinstance(algorithm, api.AlgorithmInfo) else algorithm


def _task(task_id: str) -> str:
    return f"{api.PREFIX}/task/{as_part(task_id)}"


def _run(
    algorithm: Algorithm | None, code: Code | None, inputs: Inputs, framework: Framework | None, fields: dict[str, Any]
) -> tuple[dict[str, Any], BinaryPart, Framework]:
    """The body of a run, its binary part, and the framework of its results."""
    part = BinaryPart()
    said, has_torch = {}, False
    if inputs is not None and not isinstance(inputs, Mapping):
        raise BadRequest(f"the inputs are a {type(inputs).__name__}; they are a dictionary: values and tensors by name")
    for name, value in (inputs or {}).items():
        if not isinstance(name, str):
            raise BadRequest(f"the name of an input is {name!r:.80}; it is a text")
        has_torch = has_torch or is_torch_tensor(value)
        if is_tensor_here(value):
            said[name] = as_form(value, part)
        else:
            try:
                said[name] = plain(value, f"the input {name!r}")
            except (TypeError, ValueError) as error:
                raise BadRequest(str(error)) from None
    if framework is not None:
        check_framework_name(framework)
        check_installed(framework)
    if callable(code):
        fields["function"] = fields.get("function") or _called(code)
    run = {
        "algorithm": None if algorithm is None else _name_of(algorithm),
        "code": None if code is None else _text_of(code),
        **fields,
    }
    kind: Framework = framework or ("torch" if has_torch else "numpy")
    return {**_said(run), "inputs": said}, part, kind
