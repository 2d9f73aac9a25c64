"""Runs algorithms that are not trusted, on tensors. Only the gateway and the command line import this room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ..errors import MissingPackage, OutOfSpace
    from .box import Sandbox
    from .bundles import Bundle
    from .errors import AlgorithmError, DeadlineExceeded, LimitExceeded, NotAllowed, RunCancelled, SandboxBroken
    from .interface import Algorithm, Allow, ComputeRequest, ComputeResponse, Executor, Health, Limits, Mount, Resources

__all__ = [
    "Algorithm",
    "AlgorithmError",
    "Allow",
    "Bundle",
    "ComputeRequest",
    "ComputeResponse",
    "DeadlineExceeded",
    "Executor",
    "Health",
    "LimitExceeded",
    "Limits",
    "MissingPackage",
    "Mount",
    "NotAllowed",
    "OutOfSpace",
    "Resources",
    "RunCancelled",
    "Sandbox",
    "SandboxBroken",
]

_ERRORS: Final = {
    "AlgorithmError",
    "DeadlineExceeded",
    "LimitExceeded",
    "NotAllowed",
    "RunCancelled",
    "SandboxBroken",
}
_HOMES: Final = {
    "Bundle": ".bundles",
    "Sandbox": ".box",
    "MissingPackage": "..errors",
    "OutOfSpace": "..errors",
    **dict.fromkeys(_ERRORS, ".errors"),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: a gateway's client needs the errors, and none of the rest."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES.get(name, ".interface"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
