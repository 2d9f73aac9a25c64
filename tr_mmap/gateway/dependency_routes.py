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
    return json_response(call, await service.dependencies.list(lambda hash_: _used_by(service, hash_)))


async def _make_environment(service: Service, call: Call) -> Response:
    body, _ = await call.body(api.MakeEnvironmentBody)
    info, is_new = await service.dependencies.make(body.packages, lambda hash_: _used_by(service, hash_))
    return json_response(call, info, 201 if is_new else 200)


def _used_by(service: Service, hash_: str) -> list[str]:
    """The algorithms that use the environment of a hash."""
    return [
        each.name
        for each in service.registry.all()
        if each.environment is not None and each.environment.environment.hash == hash_
    ]


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
        "Make an environment of packages ahead, unless it is there. Nothing of them is executed.",
        api.MakeEnvironmentBody,
        api.EnvironmentInfo,
        201,
        (200, 422, 503),
        {"packages": {"packages": ["humanize==4.17.0"]}},
    ),
)
