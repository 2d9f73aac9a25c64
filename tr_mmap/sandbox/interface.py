"""The types that users and executors exchange: limits, grants, algorithms, requests, responses. Runs nothing."""

from __future__ import annotations

import dataclasses
import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

from .steps import Steps

if TYPE_CHECKING:
    from .bundles import Bundle

__all__ = [
    "COPIED",
    "DISK_NBYTES",
    "IN_PLACE",
    "Algorithm",
    "Allow",
    "ComputeRequest",
    "ComputeResponse",
    "Executor",
    "Health",
    "Limits",
    "Mount",
    "Resources",
    "Tensor",
    "check_path",
]

Tensor = np.ndarray[Any, Any]

IN_PLACE: Final = "in place"
COPIED: Final = "copied"

DISK_NBYTES: Final = 16 << 20
"""Size of a private directory by default."""

_EXAMPLES = {"_nbytes": "; give bytes, as 256 << 20 for 256 MiB"}
_MOST_NBYTES: Final = 1 << 44  # more than machines have; sums of a few still fit into an address
_MOST_FUEL: Final = (1 << 63) - 1
_TOO_MUCH = frozenset({"/", "/etc", "/proc", "/sys", "/dev"})
_NEVER = ("/proc/", "/sys/", "/dev/")  # nothing beneath these is granted
_SHARED_MEMORY = "/dev/shm/"  # except this, which has files of users


@dataclass(frozen=True)
class Limits:
    """What one run may use at most.

    Attributes:
        memory_nbytes: bytes of memory that it allocates; inputs and outputs are not counted.
        wall_ms: milliseconds from the moment when its process gets the job.
        cpu_ms: milliseconds of processor time of all its threads together.
        stack_nbytes: bytes of its main thread's stack.
        output_nbytes: bytes of its results, tensors and values together; and bytes of what it prints.
        cpu_cores: on how many cores its threads run; None for all.
        disk_nbytes: bytes of ``/tmp``, which only this run sees. None: 16 MiB if the layer ``mount_namespace`` is
            active, else there is no ``/tmp``; a number above 0 is refused without that layer.
        processes: must be 1.
        threads: how many threads its process has.
        fuel: for kind ``"wasm"``: about how many instructions; None for no such limit.

    Raises:
        ValueError: a limit is not a number above 0 (only ``disk_nbytes`` may be 0), or is more than machines have, or
            ``processes`` is not 1.
    """

    memory_nbytes: int = 512 << 20
    wall_ms: float = 5000.0
    cpu_ms: float = 5000.0
    stack_nbytes: int = 8 << 20
    output_nbytes: int = 64 << 20
    cpu_cores: int | None = 1
    disk_nbytes: int | None = None
    processes: int = 1
    threads: int = 64
    fuel: int | None = None

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is None and each.name in ("cpu_cores", "disk_nbytes", "fuel"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"the limit {each.name}={value!r} is no number{_EXAMPLES.get(each.name[-7:], '')}")
            if each.name not in ("wall_ms", "cpu_ms") and not isinstance(value, int):
                raise ValueError(
                    f"the limit {each.name}={value!r} is no whole number{_EXAMPLES.get(each.name[-7:], '')}"
                )
            if value < 0 or (value == 0 and each.name != "disk_nbytes"):
                raise ValueError(f"the limit {each.name}={value!r} lets nothing run; give a number above 0")
            most = {"_nbytes": _MOST_NBYTES, "fuel": _MOST_FUEL}.get(each.name[-7:], math.inf)
            if value > most:
                raise ValueError(f"the limit {each.name}={value!r} is none; give at most {most}")
        if self.processes != 1:
            raise ValueError(
                f"the limit processes={self.processes} cannot be kept: an algorithm is one process; raise threads, or "
                "submit several runs"
            )


@dataclass(frozen=True)
class Mount:
    """A file or directory of the host that the algorithms see.

    Attributes:
        host_path: its absolute path on the host.
        path: the absolute path by which the algorithms see it. If that differs from ``host_path``, the layer
            ``mount_namespace`` is needed.
        readonly: whether they may only read it. What they write is not limited in total; one file may have at most
            ``memory_nbytes``, or twice ``output_nbytes`` if that is more.

    Raises:
        TypeError: ``readonly`` is neither True nor False.
        ValueError: a path is not absolute, or must not be granted; see :func:`check_path`.
    """

    host_path: str
    path: str
    readonly: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.readonly, bool):
            raise TypeError(f"Mount(readonly=...) takes True or False, and not {self.readonly!r:.80}")
        object.__setattr__(self, "host_path", check_path(self.host_path))
        object.__setattr__(self, "path", check_path(self.path, is_of_host=False))


@dataclass(frozen=True)
class Allow:
    """What the algorithms are granted, beside their own inputs.

    Attributes:
        read: paths of files and directories, with all beneath, that they may read.
        env: variables of their environment.
        syscalls: names of further system calls that they may make.
        mounts: files and directories of the host, each at a path of its own.
        net: whether they may use the network by IPv4 and IPv6: all of it, and the host's own ports too.
        clock: the time, and waiting, for kind ``"wasm"``; other kinds always have it.
        random: random bytes, for kind ``"wasm"``; other kinds always have them.

    Raises:
        TypeError: ``net``, ``clock`` or ``random`` is neither True nor False, or something else has a wrong type.
        ValueError: a path is not absolute or must not be granted, or a value cannot be granted.
    """

    read: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    syscalls: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    net: bool = False
    clock: bool = False
    random: bool = False

    def __post_init__(self) -> None:
        for name in ("net", "clock", "random"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"Allow({name}=...) takes True or False, and not {getattr(self, name)!r:.80}")
        for name in ("read", "syscalls", "mounts"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(f"Allow({name}=...) takes several, and {value!r} is one text: give ({value!r},)")
            object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "read", tuple(map(check_path, self.read)))
        for mount in self.mounts:
            if not isinstance(mount, Mount):
                raise ValueError(f"Allow(mounts=...) takes Mount(host_path, path), and not {mount!r}")
        for call in self.syscalls:
            if not isinstance(call, str):
                raise TypeError(f"Allow(syscalls=...) takes names, and not {call!r:.80}")
        if not isinstance(self.env, Mapping):
            raise TypeError(f"Allow(env=...) takes texts by name, as {{'MODE': 'fast'}}, and not {self.env!r:.80}")
        for name, text in self.env.items():
            if not isinstance(name, str) or not isinstance(text, str) or "\0" in name + text or "=" in name or not name:
                raise ValueError(
                    f"Allow(env=...) takes texts by name, as {{'MODE': 'fast'}}, and not {{{name!r}: {text!r}}}"
                )
        if any("socket" in each for each in self.syscalls):
            raise ValueError("sockets are not granted by the name of a system call; see Allow(net=True)")


def check_path(given: str | os.PathLike[str], *, is_of_host: bool = True) -> str:
    """Check that a path may be granted, and return it as a text.

    Raises:
        ValueError: it is not absolute and normalised; or it is, or leads to, a place with passwords, processes or
            devices.
    """
    path = os.fspath(given)
    if not isinstance(path, str):
        raise ValueError(f"{path!r} is no text; see os.fsdecode")
    if not os.path.isabs(path) or os.path.normpath(path) != path or path[:2] == "//" or "\0" in path:
        raise ValueError(f"{path!r} is no absolute path without '.', '..' and '//' in it; see os.path.abspath")
    for each in (path, os.path.realpath(path) if is_of_host else path):  # which may be a symbolic link
        if each in _TOO_MUCH or (each.startswith(_NEVER) and not each.startswith(_SHARED_MEMORY)):
            leads = "" if each == path else f", to which {path} leads,"
            raise ValueError(
                f"{each}{leads} is too much to grant: it has passwords, processes or devices; name what you need"
            )
    return path


@dataclass(frozen=True)
class Algorithm:
    """One registered algorithm.

    Attributes:
        name: the name by which it was registered.
        code: its source or its module.
        function: the function that is called; None if the code itself reads ``inputs`` and sets ``output``.
        is_reused: whether its process may serve its next run too.
        outputs: names of the tensors that a compiled algorithm or a model returns.
        dependencies: packages that it needs.
        owner: the user that it belongs to; a process that is kept serves no other owner's run.
        bundle: has the code as its only tensor, of uint8, so that no run copies it; ``code`` is empty then.
    """

    name: str
    code: bytes
    function: str | None
    is_reused: bool = False
    outputs: tuple[str, ...] = ("output",)
    dependencies: tuple[str, ...] = ()
    owner: str = ""
    bundle: Bundle | None = None

    def __hash__(self) -> int:  # few algorithms have the same name and function; hashing the code would take long
        return hash((self.name, self.function))


@dataclass
class ComputeRequest:
    """One run.

    Attributes:
        algorithm: what to run.
        inputs: by name: JSON values, tensors, and bundles of tensors.
        arguments: what the function gets instead; None for ``inputs``.
        id: no two runs have the same id at the same time.
        priority: in a queue, requests of a higher priority come first.
        deadline_s: a moment by ``time.monotonic`` at which the run is ended; None for no deadline.
        is_cancelled: set before an executor is told, so that it does not begin a run that was cancelled before.
        is_unregistered: set when its algorithm is unregistered, so that no process is kept for a next run.
    """

    algorithm: Algorithm
    inputs: Mapping[str, Any]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    priority: int = 0
    deadline_s: float | None = None
    arguments: tuple[Any, ...] | None = None
    is_cancelled: bool = False
    is_unregistered: bool = False


@dataclass
class ComputeResponse:
    """The result of one run.

    Attributes:
        id: of the request.
        outputs: the results by name; tensors are read-only views of memory that no other process changes.
        stdout: what it printed, cut to ``Limits.output_nbytes`` and to 1 MiB.
        execution_time_ms: how long the algorithm ran, as its own process says.
        copied_nbytes: bytes of the inputs that were copied.
        input_places: ``"in place"`` or ``"copied"``, for each input that is a tensor or a bundle.
        output_places: the same for each result that is a tensor. Results are copied if they have at most 64 KiB and
            their process is kept. They are always copied if the process can fork, signal others or pass its memory on
            (by a granted system call, or because the layer ``seccomp`` is missing).
    """

    id: str
    outputs: dict[str, Any]
    stdout: str
    execution_time_ms: float
    copied_nbytes: int = 0
    input_places: dict[str, str] = field(default_factory=dict)
    output_places: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Health:
    """State of an executor.

    Attributes:
        state: ``"loading"`` if the executor needs long to be ready, and its maker has not waited for that.
        layers: the layers that are active.
        detail: why it is not ready, and what to do.
    """

    state: Literal["ready", "loading", "broken", "closed"]
    layers: frozenset[str]
    detail: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether it can run algorithms now."""
        return self.state == "ready"


@dataclass(frozen=True)
class Resources:
    """What one run takes at most, for a scheduler that shares out a machine.

    Attributes:
        memory_nbytes: what the algorithm may allocate, what its runner needs, and its results. Inputs are not included.
        cpu_cores: how many its threads may use at once.
        disk_nbytes: size of its private directory, which is memory.
        processes: how many processes it has.
    """

    memory_nbytes: int
    cpu_cores: int
    disk_nbytes: int
    processes: int = 1


class Executor(Protocol):
    """Runs algorithms of one kind.

    Attributes:
        name: of the kind.
        version: of what runs the algorithms; another version may give other results.
        layers: the active layers.
    """

    name: str
    version: str
    layers: frozenset[str]

    def requirements(self) -> Resources:
        """What one run takes at most."""
        ...

    def prepare(self, algorithm: Algorithm) -> Algorithm:
        """Check an algorithm without executing anything of it. Returns it with the function that was chosen.

        Raises:
            AlgorithmError: it has an error of syntax, or no such function.
        """
        ...

    def execute(self, request: ComputeRequest) -> ComputeResponse:
        """Run a request.

        Raises:
            LimitExceeded, NotAllowed, AlgorithmError: the algorithm failed.
            RunCancelled: it was cancelled.
            SandboxBroken: it could not be run.
        """
        ...

    def steps(self, request: ComputeRequest) -> Steps[ComputeResponse]:
        """As :meth:`execute`, in steps, for a caller that waits for several runs at once."""
        ...

    def cancel(self, request_id: str) -> bool:
        """End a run of this executor; its caller gets RunCancelled. Returns whether there was such a run."""
        ...

    def forget(self, algorithm: Algorithm) -> None:
        """End the processes that are kept for an algorithm."""
        ...

    def health(self) -> Health:
        """State."""
        ...

    def close(self) -> None:
        """End all processes. Idempotent."""
        ...


def replace_limits(limits: Limits, changes: Mapping[str, Any]) -> Limits:
    """The limits with some of them changed."""
    return dataclasses.replace(limits, **changes)
