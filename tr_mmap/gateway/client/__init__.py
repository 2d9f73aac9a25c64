"""Asks a gateway over HTTP: algorithms, runs, tasks and stores. Needs httpx, and no package of the server's.

``messages`` builds requests and reads responses, ``attempts`` says when one is sent again; neither does I/O.
:class:`Client` and :class:`AsyncClient` only carry them to the gateway and back.
"""

from __future__ import annotations

from .async_client import AsyncClient
from .async_store import AsyncRemoteStore
from .async_task import AsyncTask
from .failures import ClientClosed, ConnectionLost, GatewayError, Unreachable
from .records import RemoteRecord, TensorInfo
from .results import Result
from .sync_client import Client
from .sync_store import RemoteStore
from .sync_task import Task

__all__ = [
    "AsyncClient",
    "AsyncRemoteStore",
    "AsyncTask",
    "Client",
    "ClientClosed",
    "ConnectionLost",
    "GatewayError",
    "RemoteRecord",
    "RemoteStore",
    "Result",
    "Task",
    "TensorInfo",
    "Unreachable",
]
