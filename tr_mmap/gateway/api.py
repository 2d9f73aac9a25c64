"""The bodies of requests and responses: what is documented, and stable. Types only."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

__all__ = [
    "IDEMPOTENCY_KEY",
    "NAME",
    "PREFIX",
    "AlgorithmInfo",
    "AlgorithmList",
    "DependencyList",
    "EnvironmentInfo",
    "ErrorBody",
    "ExecuteBody",
    "ExecuteResult",
    "Health",
    "MakeEnvironmentBody",
    "Name",
    "PackageInfo",
    "RegisterBody",
    "Requirements",
    "SchedulerStatus",
    "TaskInfo",
    "TaskStarted",
    "WorkerInfo",
    "WorkerList",
]

PREFIX: Final = "/api/v1"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
"""A header: requests that have the same one are one request, sent again."""

NAME: Final = r"^(?!.*\n)[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$"
"""Of algorithms, models and stores: one component of a path. What is in front says that ``$`` is the end, before which
Python would let a line break pass."""

Name = Annotated[str, Meta(pattern=NAME, examples=["double"])]
Code = Annotated[str, Meta(max_length=1 << 20)]  # its syntax tree takes 250 times as much, for a while
Base64 = Annotated[str, Meta(max_length=(128 << 20) // 3 * 4 + 4)]  # of as much as one subject may have registered
Function = Annotated[str, Meta(max_length=256)]
Outputs = Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(min_length=1, max_length=256)]
Packages = Annotated[tuple[str, ...], Meta(max_length=64)]
Milliseconds = Annotated[float, Meta(gt=0, le=86_400_000)]


class _Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a client sends: what it cannot mean is refused."""


class Requirements(_Body):
    """What one run of an algorithm needs.

    Attributes:
        cpu_cores: on how many cores its threads run.
        memory_mb: that it may allocate.
    """

    cpu_cores: Annotated[int, Meta(ge=1)] | None = None
    memory_mb: Annotated[int, Meta(ge=1)] | None = None


class RegisterBody(_Body):
    """An algorithm to be registered.

    Attributes:
        name: by which it is executed.
        kind: what it is.
        code: Python source, of kind ``python`` and ``torch``.
        wasm: a module of WebAssembly, as base64.
        library: a shared library, as base64.
        function: which is called; else the one of the algorithm's name, ``process``, or the only one.
        dependencies: packages that it imports, perhaps with versions.
        resource_requirements: else those of the configuration.
        timeout_ms: of one run; else that of the configuration.
        reuse: whether its process may serve its next run too, of the same subject.
        idempotent: whether a run may be tried again that failed without a fault of its own.
        outputs: names of the tensors that a library or a module gives, in their order.
        model: the name of a model, which it gets as the input ``model``.
        sha256: of its code, in hexadecimal; another is refused.
    """

    name: Name
    kind: Literal["python", "wasm", "native", "torch"] = "python"
    code: Code | None = None
    wasm: Base64 | None = None
    library: Base64 | None = None
    function: Function | None = None
    dependencies: Packages = ()
    resource_requirements: Requirements | None = None
    timeout_ms: Milliseconds | None = None
    reuse: bool = False
    idempotent: bool = True
    outputs: Outputs = ("output",)
    model: Name | None = None
    sha256: Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")] | None = None


class ExecuteBody(_Body):
    """A run.

    Attributes:
        algorithm: the name of a registered one, or of a worker; or else
        code: Python source.
        function: of the code, which is called; of a worker, its command.
        inputs: by name: values, and tensors in one of their forms. A worker gets them in their order: tensors as
            tensors, texts and numbers as words.
        priority: the higher, the sooner, among one's own runs.
        timeout_ms: from the request's arrival to the run's end, waiting included.
        tensors: how the result's tensors are given in JSON. As ``list``, those that have too many numbers, infinity or
            NaN are ``base64`` nevertheless.
    """

    algorithm: Name | None = None
    code: Code | None = None
    function: Function | None = None
    inputs: dict[str, Any] = {}
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    timeout_ms: Milliseconds | None = None
    tensors: Literal["list", "base64"] = "list"


class AlgorithmInfo(Struct, kw_only=True):
    """A registered algorithm, or a model that can be executed by its name.

    Attributes:
        model: the name of the model that it gets as the input ``model``; of a model, its own.
        is_model: whether nobody has registered it: it is a model of ``[python.models] model_dir``.
        environment: the hash of the environment that has its dependencies; null if none was made for it.
    """

    name: str
    version: str
    kind: str
    function: str | None
    dependencies: tuple[str, ...]
    environment: str | None
    resource_requirements: Requirements
    timeout_ms: float
    reuse: bool
    idempotent: bool
    model: str | None
    is_model: bool = False
    owner: str
    registered_at: float
    status: str = "registered"


class AlgorithmList(Struct):
    """All that are registered."""

    algorithms: list[AlgorithmInfo]


class MakeEnvironmentBody(_Body):
    """An environment to be made ahead.

    Attributes:
        packages: as an algorithm would declare them.
    """

    packages: Annotated[Packages, Meta(min_length=1)]


class PackageInfo(Struct):
    """One package of an environment."""

    name: str
    version: str


class EnvironmentInfo(Struct, kw_only=True):
    """An environment.

    Attributes:
        hash: its name; empty if all that was asked for is there without one.
        packages: that it has.
        nbytes: that it takes.
        removed: what packages brought and may not have, by its path.
        used_by: names of algorithms.
    """

    hash: str
    packages: list[PackageInfo]
    nbytes: int
    removed: list[str] = []
    used_by: list[str] = []


class DependencyList(Struct, kw_only=True):
    """All environments, and what may be in them.

    Attributes:
        auto_install: whether any may be made.
        allow: names of packages that may be installed.
    """

    auto_install: bool
    allow: list[str]
    environments: list[EnvironmentInfo]


class ExecuteResult(Struct, kw_only=True):
    """What a run gave.

    Attributes:
        result: its output; several by name.
        stdout: what it printed, cut at a limit.
        execution_time_ms: how long it ran, by its own process.
    """

    result: Any
    status: Literal["success"] = "success"
    stdout: str = ""
    execution_time_ms: float = 0.0
    request_id: str = ""


class ErrorBody(Struct, kw_only=True):
    """What went wrong.

    Attributes:
        error: one line that says what is wrong and what to do.
        status_code: that of the response.
        type: of the error, as Python's client raises it.
        details: the error's fields.
    """

    error: str
    status_code: int
    type: str
    request_id: str = ""
    details: dict[str, Any] | UnsetType = UNSET


class TaskStarted(Struct, kw_only=True):
    """A task that was accepted."""

    task_id: str
    status: str


class TaskInfo(Struct, kw_only=True):
    """A task.

    Attributes:
        status: ``queued``, ``running``, ``success``, ``failed`` or ``cancelled``.
        result: what it gave, once it has ended well.
        error: what went wrong.
        created_at, started_at, ended_at: seconds since 1970; null for not yet.
    """

    task_id: str
    status: str
    algorithm: str | None
    priority: int
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    result: Any = None
    stdout: str = ""
    execution_time_ms: float = 0.0
    error: ErrorBody | None = None


class WorkerInfo(Struct, kw_only=True):
    """A trusted worker.

    Attributes:
        count: how many there are of it.
        alive: of those, how many run now; one that has ended is started again by its next request.
        commands: the only ones that may be named; empty for all that it has.
    """

    name: str
    count: int
    alive: int
    commands: tuple[str, ...]
    idempotent: bool


class WorkerList(Struct):
    """All that are configured."""

    workers: list[WorkerInfo]


class Health(Struct, kw_only=True):
    """Whether the gateway serves."""

    status: Literal["ok", "draining"]
    version: str


class SchedulerStatus(Struct, kw_only=True):
    """What waits and goes on."""

    is_draining: bool
    queues: dict[str, dict[str, int | float]]
    open_breakers: list[str]
    tasks: dict[str, int]
    sandboxes: list[dict[str, Any]]
