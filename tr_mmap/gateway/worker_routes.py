"""The route of trusted workers. They are asked by the route of runs."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from . import api
from .calls import Call, json_response
from .route import PREFIX, Route
from .service import Service

__all__ = ["WORKER_ROUTES"]


async def _list_workers(service: Service, call: Call) -> Response:
    return json_response(call, api.WorkerList(service.workers.all()))


WORKER_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        f"{PREFIX}/workers",
        "execute",
        _list_workers,
        "List the trusted workers, and their commands.",
        result=api.WorkerList,
    ),
)
