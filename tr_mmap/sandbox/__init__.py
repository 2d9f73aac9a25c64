"""Runs algorithms that are not trusted, on tensors. Nothing else in the package imports this room."""

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
