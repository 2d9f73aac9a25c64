"""Move large tensors between two processes without copying them.

``PythonSession`` starts a worker and exchanges tensors with it; ``Server`` and ``TechRenaissanceServer`` are the
worker's side; ``save``, ``load`` and their like handle TSR files. This module computes nothing. It imports a room
when one of its names is first used, so that a program loads only the side that it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from . import aio, errors, native
    from .controller.pytorch_session import PyTorchSession
    from .controller.session import PythonSession
    from .controller.stats import SessionStats, WorkerState
    from .errors import (
        BadKey,
        BadMessage,
        BadTag,
        Busy,
        Fault,
        HostilePath,
        MissingPackage,
        MissingTag,
        OutOfSpace,
        RemoteError,
        RemoteOutOfSpace,
        RequestCancelled,
        ResponseTimeout,
        ScriptNotFound,
        SemaphoresUnavailable,
        SessionBusy,
        SessionInUse,
        SessionNotStarted,
        StaleTensor,
        SystemLimit,
        TRException,
        TSRFormatError,
        UnexpectedResponse,
        UnknownCommand,
        UnsupportedTensor,
        WorkerDied,
    )
    from .pool.pool import SessionPool
    from .pool.stats import PoolWorkerStats, SessionPoolStats
    from .sessions.workspace import SweepReport, sweep
    from .shm.stats import PoolStats, ReaderStats
    from .tsr import Header, from_file, load, memmap, read_header, save
    from .tsr.devices import sender_device
    from .worker.functions import Server
    from .worker.server import TechRenaissanceServer

__version__ = "0.1.0"

__all__ = [
    "PythonSession",
    "PyTorchSession",
    "SessionPool",
    "Server",
    "TechRenaissanceServer",
    "Header",
    "from_file",
    "load",
    "memmap",
    "read_header",
    "save",
    "sender_device",
    "sweep",
    "PoolStats",
    "ReaderStats",
    "SessionStats",
    "SweepReport",
    "WorkerState",
    "PoolWorkerStats",
    "SessionPoolStats",
    "aio",
    "errors",
    "native",
    "BadKey",
    "BadMessage",
    "BadTag",
    "Busy",
    "Fault",
    "HostilePath",
    "MissingPackage",
    "MissingTag",
    "OutOfSpace",
    "RemoteError",
    "RemoteOutOfSpace",
    "RequestCancelled",
    "ResponseTimeout",
    "ScriptNotFound",
    "SemaphoresUnavailable",
    "SessionBusy",
    "SessionInUse",
    "SessionNotStarted",
    "StaleTensor",
    "SystemLimit",
    "TRException",
    "TSRFormatError",
    "UnexpectedResponse",
    "UnknownCommand",
    "UnsupportedTensor",
    "WorkerDied",
]

_HOMES: Final = {
    "PythonSession": "controller.session",
    "PyTorchSession": "controller.pytorch_session",
    "Server": "worker.functions",
    "TechRenaissanceServer": "worker.server",
    "Header": "tsr",
    "from_file": "tsr",
    "load": "tsr",
    "memmap": "tsr",
    "read_header": "tsr",
    "save": "tsr",
    "sender_device": "tsr.devices",
    "sweep": "sessions.workspace",
    "PoolStats": "shm.stats",
    "ReaderStats": "shm.stats",
    "SessionStats": "controller.stats",
    "SweepReport": "sessions.workspace",
    "WorkerState": "controller.stats",
    "PoolWorkerStats": "pool.stats",
    "SessionPool": "pool.pool",
    "SessionPoolStats": "pool.stats",
}
_ROOMS: Final = ("aio", "errors", "native")  # rooms that programs name: ``tr_mmap.native.IS_COMPILED``


def __getattr__(name: str) -> Any:
    import importlib

    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
