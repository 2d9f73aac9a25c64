"""What each kind of algorithm is: where its code stands, which sandbox runs it, and within which limits. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ..sandbox import Limits
from .api import Requirements
from .boxes import BoxKey
from .config import Config
from .errors import BadRequest, Forbidden
from .registry import Kind

__all__ = ["KINDS", "AlgorithmKind", "check_enabled", "key_of"]


@dataclass(frozen=True, slots=True)
class AlgorithmKind:
    """One kind.

    Attributes:
        box: the kind of the sandbox that runs it.
        field: of a registration, which has its code.
    """

    box: str
    field: str


KINDS: Final[dict[Kind, AlgorithmKind]] = {
    "python": AlgorithmKind("contained", "code"),
    "torch": AlgorithmKind("torch", "code"),
    "wasm": AlgorithmKind("wasm", "wasm"),
    "native": AlgorithmKind("native", "library"),
}


def check_enabled(config: Config, kind: Kind) -> None:
    """
    Raises:
        Forbidden: the configuration does not let algorithms of a kind run.
    """
    if not (config.python.wasm.enabled if kind == "wasm" else config.python.enabled):
        raise Forbidden(f"algorithms of kind {kind!r} are not enabled here")


def key_of(
    config: Config,
    kind: Kind,
    requirements: Requirements | None = None,
    timeout_ms: float | None = None,
    packages: tuple[str, ...] = (),
) -> BoxKey:
    """The sandbox of an algorithm; of a kind that has no wishes, the usual one.

    Args:
        config: of the gateway.
        kind: of the algorithm.
        requirements: that it has.
        timeout_ms: of its runs.
        packages: directories of packages that it imports.

    Raises:
        BadRequest: it may not have so much.
    """
    return BoxKey(KINDS[kind].box, _limits(config, kind, requirements, timeout_ms), packages=packages)


def _limits(config: Config, kind: Kind, requirements: Requirements | None, timeout_ms: float | None) -> Limits:
    sandbox, wasm = config.sandbox, config.python.wasm
    cores = sandbox.cpu_cores
    if kind == "wasm":
        memory_mb, wall_ms, most_mb = wasm.max_memory_mb, 1000 * wasm.max_execution_time, wasm.max_memory_mb
        memory_option, time_option = "[python.wasm] max_memory_mb", "[python.wasm] max_execution_time"
    else:
        memory_mb, wall_ms, most_mb = sandbox.memory_mb, sandbox.wall_ms, sandbox.most_memory_mb
        memory_option, time_option = "[sandbox] most_memory_mb", "[sandbox] wall_ms"
    if requirements is not None:
        memory_mb = requirements.memory_mb or memory_mb
        cores = requirements.cpu_cores or cores
    what = f"a run of kind {kind!r} may have"
    if memory_mb > most_mb:
        raise BadRequest(f"{what} memory_mb={most_mb} here, and not {memory_mb}; see {memory_option}")
    if cores > sandbox.most_cpu_cores:
        raise BadRequest(
            f"{what} cpu_cores={sandbox.most_cpu_cores} here, and not {cores}; see [sandbox] most_cpu_cores"
        )
    if timeout_ms is not None and timeout_ms > wall_ms:
        raise BadRequest(f"{what} timeout_ms={wall_ms:g} here, and not {timeout_ms:g}; see {time_option}")
    wall = timeout_ms or wall_ms
    options: dict[str, Any] = {"stack_nbytes": wasm.max_stack_size_mb << 20} if kind == "wasm" else {}
    return Limits(
        memory_nbytes=memory_mb << 20,
        wall_ms=wall,
        cpu_ms=min(sandbox.cpu_ms, wall) * cores if kind != "wasm" else wall,
        output_nbytes=sandbox.output_mb << 20,
        cpu_cores=cores,
        **options,
    )
