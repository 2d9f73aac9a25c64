"""Algorithms, models and tasks over HTTP. Nothing else in the package imports this room.

Its server needs the extra ``gateway``; its client needs httpx only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .client import (
        AsyncClient,
        AsyncRemoteStore,
        AsyncTask,
        Client,
        ClientClosed,
        ConnectionLost,
        GatewayError,
        RemoteRecord,
        RemoteStore,
        Result,
        Task,
        TensorInfo,
        Unreachable,
    )
    from .config import Config
    from .gateway import Gateway

__all__ = [
    "AsyncClient",
    "AsyncRemoteStore",
    "AsyncTask",
    "Client",
    "ClientClosed",
    "Config",
    "ConnectionLost",
    "Gateway",
    "GatewayError",
    "RemoteRecord",
    "RemoteStore",
    "Result",
    "Task",
    "TensorInfo",
    "Unreachable",
]

_PLACES: Final = {"Config": "config", "Gateway": "gateway"}  # the others are the client's


def __dir__() -> list[str]:
    """Those that were imported, and those that will be."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Each name is imported when it is first used, so that a client needs no server's packages."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f".{_PLACES.get(name, 'client')}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        from ..errors import MissingPackage

        raise MissingPackage(
            f"{name} needs httpx, which is not installed: pip install 'tr_mmap[client]'", package="httpx"
        ) from error
