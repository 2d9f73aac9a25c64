"""The routes of dependencies."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from . import api
from .calls import Call, json_response
from .route import PREFIX, Route
from .service import Service

__all__ = ["DEPENDENCY_ROUTES"]


async def _list_dependencies(service: Service, call: Call) -> Response:
    used_by: dict[str, list[str]] = {}
    for each in service.registry.all():
        if each.environment is not None:
            used_by.setdefault(each.environment.environment.hash, []).append(each.name)
    return json_response(call, await service.dependencies.list(used_by))


async def _make_environment(service: Service, call: Call) -> Response:
    body, _ = await call.body(api.MakeEnvironmentBody)
    return json_response(call, await service.dependencies.make(body.packages), 201)


DEPENDENCY_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        f"{PREFIX}/python/dependencies",
        "execute",
        _list_dependencies,
        "List the environments of packages, and what may be installed.",
        result=api.DependencyList,
    ),
    Route(
        "POST",
        f"{PREFIX}/python/dependencies",
        "admin",
        _make_environment,
        "Make an environment of packages ahead. Nothing of them is executed.",
        api.MakeEnvironmentBody,
        api.EnvironmentInfo,
        201,
        (422, 503),
        {"packages": {"packages": ["humanize==4.17.0"]}},
    ),
)
