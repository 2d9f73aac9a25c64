"""Asks a gateway over HTTP: algorithms, runs and tasks, from Python. Needs httpx, and no package of the server's.

``messages`` builds requests and reads responses, ``attempts`` says when one is sent again; neither does I/O.
:class:`Client` and :class:`AsyncClient` only carry them to the gateway and back.
"""

from __future__ import annotations

from .async_client import AsyncClient, AsyncTask
from .failures import ConnectionLost, GatewayError, Unreachable
from .results import Result
from .sync_client import Client, Task

__all__ = [
    "AsyncClient",
    "AsyncTask",
    "Client",
    "ConnectionLost",
    "GatewayError",
    "Result",
    "Task",
    "Unreachable",
]
