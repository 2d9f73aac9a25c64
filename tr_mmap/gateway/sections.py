"""The sections of a gateway's configuration: which options there are, their defaults, and what each is. Types only."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

__all__ = [
    "AuthConfig",
    "DependenciesConfig",
    "ModelsConfig",
    "PythonConfig",
    "SandboxConfig",
    "SchedulerConfig",
    "Section",
    "ServerConfig",
    "SharedMemoryConfig",
    "StoreConfig",
    "WasmConfig",
    "WorkerConfig",
]

_Positive = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(gt=0, le=1e9)]  # no timer knows inf


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section: what it does not know is refused."""


class ServerConfig(Section, frozen=True):
    """``[server]``: where the gateway listens, and what it takes.

    Attributes:
        host: an address or a name of this machine. Beyond loopback it needs ``tls_certificate``, or
            ``allow_plain_http``.
        port: 0 for one that is free.
        tls_certificate: path of a certificate chain (PEM).
        tls_key: path of its key (PEM).
        allow_plain_http: whether tokens may cross a network unencrypted, for example behind a proxy that does TLS.
        allowed_hosts: more names that requests may have in ``Host``; those of loopback and ``host`` are always
            allowed, with any port.
        allowed_origins: web pages whose scripts may send requests: values of ``Origin``, as
            ``"https://example.org"``.
        max_body_mb: the largest body of a request.
        header_timeout_s: how long the headers of a request may take to arrive.
        body_timeout_s: how long the body of a request may take to arrive, and how long a client may read nothing of
            its response.
        max_connections: how many connections may be open at once; one more is answered 503.
        trusted_proxies: addresses or networks (``"10.0.0.0/8"``) of proxies whose ``X-Forwarded-For`` and
            ``X-Forwarded-Proto`` are believed.
        drain_s: how long runs may go on when the gateway ends.
        access_log: whether the log has a line for each request.
        metrics_need_token: whether ``/metrics`` asks for a token with the scope ``metrics`` or ``admin``.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 3000
    tls_certificate: str | None = None
    tls_key: str | None = None
    allow_plain_http: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_mb: _Positive = 256
    header_timeout_s: _Seconds = 10.0
    body_timeout_s: _Seconds = 30.0
    max_connections: _Positive = 512
    trusted_proxies: tuple[str, ...] = ()
    drain_s: _Seconds = 10.0
    access_log: bool = True
    metrics_need_token: bool = True


class AuthConfig(Section, frozen=True):
    """``[auth]``: who may do what.

    Attributes:
        key_file: path of the key that signs tokens; ``tr-mmap token`` makes it.
        audience: only tokens that were made for this audience are valid here.
        requests_per_minute: how many requests each token may make; 0 for no limit.
        burst: how many requests of a token may come at once.
        failures_per_minute: how many invalid tokens each client address may send; 0 for no limit. Tokens that were
            valid before are accepted beyond it.
        failures_burst: how many invalid tokens of an address may come at once.
        audit_log: path of a file that gets a line for each request that changes something or was refused.
    """

    key_file: str | None = None
    audience: str = "tr-mmap"
    requests_per_minute: Annotated[float, Meta(ge=0)] = 60.0
    burst: _Positive = 10
    failures_per_minute: Annotated[float, Meta(ge=0)] = 30.0
    failures_burst: _Positive = 20
    audit_log: str | None = None


class WasmConfig(Section, frozen=True):
    """``[python.wasm]``: algorithms of kind ``wasm``.

    Attributes:
        enabled: whether they can be registered.
        runtime: the engine that runs them.
        max_memory_mb: the most memory of one run.
        max_execution_time: the most time of one run, in seconds.
        max_stack_size_mb: the largest stack of one run.
    """

    enabled: bool = True
    runtime: Literal["wasmtime"] = "wasmtime"
    max_memory_mb: _Positive = 512
    max_execution_time: _Seconds = 30.0
    max_stack_size_mb: _Positive = 8


class DependenciesConfig(Section, frozen=True):
    """``[python.dependencies]``: packages of algorithms.

    Attributes:
        manager: the program that resolves and installs packages.
        cache_dir: the directory for the environments.
        auto_install: whether a registration may have its dependencies installed; only together with ``allow``.
        allow: names of the packages that may be installed; the packages that these need must be listed too.
        wheel_dir: a directory of wheels to install from, instead of a package index.
        max_cache_mb: the most that all environments may take. For a new one, the gateway removes those that no
            algorithm uses, the one that was not used for longest first.
        install_timeout_s: how long one installation may take.
    """

    manager: Literal["uv"] = "uv"
    cache_dir: str = "python_cache"
    auto_install: bool = False
    allow: tuple[str, ...] = ()
    wheel_dir: str | None = None
    max_cache_mb: _Positive = 4096
    install_timeout_s: _Seconds = 300.0


class ModelsConfig(Section, frozen=True):
    """``[python.models]``: a directory of models, with a directory for each, and in it one for each version.

    Attributes:
        model_dir: the directory of the models.
        auto_scan: whether the gateway looks at the directory again from time to time.
        scan_interval_seconds: how often it looks.
        max_memory_mb: the most that all models in memory may take; those that were not used for longest are unloaded.
        reuse: whether the process of a model that runs by itself may serve the next run of the same subject too. Then
            the model need not be opened again; the next run finds what a run left in imported modules.
    """

    model_dir: str | None = None
    auto_scan: bool = True
    scan_interval_seconds: _Seconds = 60.0
    max_memory_mb: _Positive = 4096
    reuse: bool = False


class PythonConfig(Section, frozen=True):
    """``[python]``: algorithms in Python.

    Attributes:
        enabled: whether they can be registered.
        version: the version that the interpreter must have, as ``"3.11"``; with another one the gateway does not
            start.
        use_wasm_sandbox: asks for CPython inside WebAssembly, which this version does not have: the kernel contains
            the algorithms in either case, and the start says so.
        python_path: the interpreter of their processes, which must have ``tr_mmap`` of this version: a path, or a
            name that is on ``PATH``; empty for the gateway's own.
    """

    enabled: bool = True
    version: str = ""
    use_wasm_sandbox: bool = False
    python_path: str = ""
    wasm: WasmConfig = field(default_factory=WasmConfig)
    dependencies: DependenciesConfig = field(default_factory=DependenciesConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)


class SchedulerConfig(Section, frozen=True):
    """``[scheduler]``: which runs go on, and which wait.

    Attributes:
        max_workers: how many runs of one kind are under way at once; 0 for as many as there are processors, but at
            least two.
        queue_size: how many runs of one kind may wait.
        queue_mb: the most that the bodies of all waiting requests may take together.
        max_per_token: how many runs of one subject may wait or be under way, of all its tokens and all kinds together.
        ageing_s: each time that a run has waited so long, it counts as one priority higher.
        default_deadline_s: the time limit of a request that names none, from its arrival.
        retries: how often a run is tried again if something outside ended its process.
        breaker_failures: after how many failures in a row an algorithm is blocked for a while, for the subject whose
            runs failed; 0 for never.
        breaker_s: how long it is blocked.
        max_tasks: how many tasks are kept, including those that have ended. While so many have not ended, one more is
            answered 503.
        keep_tasks_s: how long a task that has ended is kept.
        keep_tasks_mb: the most that the results of tasks that have ended may take; beyond it, the oldest task of the
            subject with most is dropped.
    """

    max_workers: Annotated[int, Meta(ge=0)] = 0
    queue_size: _Positive = 256
    queue_mb: _Positive = 1024
    max_per_token: _Positive = 64
    ageing_s: _Seconds = 1.0
    default_deadline_s: _Seconds = 60.0
    retries: Annotated[int, Meta(ge=0)] = 2
    breaker_failures: Annotated[int, Meta(ge=0)] = 5
    breaker_s: _Seconds = 10.0
    max_tasks: _Positive = 10_000
    keep_tasks_s: _Seconds = 3600.0
    keep_tasks_mb: _Positive = 256


class SandboxConfig(Section, frozen=True):
    """``[sandbox]``: limits of one run; an algorithm may ask for others, up to ``most_memory_mb`` and
    ``most_cpu_cores``.

    Attributes:
        memory_mb: the most memory that a run may allocate.
        wall_ms: the most time that a run may take, and the most that an algorithm may ask for as ``timeout_ms``.
        cpu_ms: the most processor time, for each core; give as much as ``wall_ms`` to algorithms that compute all the
            time.
        output_mb: the most that results, and printed text, may take.
        cpu_cores: on how many cores its threads run.
        most_memory_mb: the most memory that an algorithm may ask for.
        most_cpu_cores: the most cores that an algorithm may ask for.
        required_layers: the layers without which the gateway does not start; empty for the sandbox's own list.
        preload: modules that are imported before an algorithm begins.
        max_sandboxes: how many sandboxes with different limits are kept; each has two waiting processes. Beyond it,
            the gateway ends the one that was not used for longest, of the subject whose algorithms have most.
    """

    memory_mb: _Positive = 512
    wall_ms: _Seconds = 5000.0
    cpu_ms: _Seconds = 5000.0
    output_mb: _Positive = 64
    cpu_cores: _Positive = 1
    most_memory_mb: _Positive = 2048
    most_cpu_cores: _Positive = 4
    required_layers: tuple[str, ...] = ()
    preload: tuple[str, ...] = ("numpy",)
    max_sandboxes: _Positive = 8


class SharedMemoryConfig(Section, frozen=True):
    """``[sharedmemory]``: tensors that clients on this machine pass by name.

    Attributes:
        enabled: asks for that, which this version does not have: clients send tensors in a binary part, and the start
            says so.
    """

    enabled: bool = False


class StoreConfig(Section, frozen=True):
    """``[store]``: stores of records under ``/api/v1/store/{name}``.

    Attributes:
        dir: the directory that has a directory for each store; without it, the gateway offers none.
        create: whether a token with the scope ``admin`` may make new ones.
    """

    dir: str | None = None
    create: bool = True


class WorkerConfig(Section, frozen=True):
    """``[workers.NAME]``: a program of yours that answers commands in plain sessions. It is trusted, and not contained.

    Attributes:
        script: path of the worker's script; ``"default"`` for the one that ships with the package.
        count: how many processes run it, each with one request at a time.
        commands: the commands that requests may name; empty for all.
        idempotent: whether a request is sent again if its worker ended before it answered.
        python: its interpreter; empty for the gateway's own.
        start_timeout_s: how long it may take until it is ready.
    """

    script: str
    count: _Positive = 1
    commands: tuple[str, ...] = ()
    idempotent: bool = False
    python: str = ""
    start_timeout_s: _Seconds = 60.0
