"""The routes of models, and the functions that answer them."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from .calls import Call, json_response
from .model_api import LoadBody, ModelInfo, ModelList
from .route import PREFIX, Route
from .service import Service

__all__ = ["MODEL_ROUTES"]


async def _list_models(service: Service, call: Call) -> Response:
    return json_response(call, service.models.infos())


async def _get_model(service: Service, call: Call) -> Response:
    return json_response(call, service.models.info(call.part("name")))


async def _load_model(service: Service, call: Call) -> Response:
    body, _ = await call.body(LoadBody, is_needed=False)
    return json_response(call, await service.models.load(call.part("name"), body.version))


MODEL_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        f"{PREFIX}/python/models",
        "execute",
        _list_models,
        "List the models, their versions, and what could not be loaded.",
        result=ModelList,
    ),
    Route(
        "GET",
        f"{PREFIX}/python/models/{{name}}",
        "execute",
        _get_model,
        "Describe one model.",
        result=ModelInfo,
        errors=(404,),
    ),
    Route(
        "POST",
        f"{PREFIX}/python/models/{{name}}",
        "admin",
        _load_model,
        "Load a model, or load it anew, and serve it. If that fails, the version that is served stays.",
        LoadBody,
        ModelInfo,
        errors=(404, 422, 503),
        examples={"greatest": {}, "version": {"version": 1}},
        needs_body=False,
    ),
)
