"""The bodies of requests and responses of models. Types only."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

__all__ = ["LoadBody", "ModelInfo", "ModelList", "ModelState"]

ModelState = Literal["loaded", "available", "loading", "failed"]


class LoadBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """Which version of a model is served.

    Attributes:
        version: that is loaded and served, until this is asked for again; null for the greatest that there is.
    """

    version: Annotated[int, Meta(ge=1, le=999_999_999)] | None = None


class ModelInfo(Struct, kw_only=True):
    """A model.

    Attributes:
        name: of its directory.
        versions: that there are.
        served: the one that runs get; null if none could be loaded.
        is_chosen: whether somebody has asked for it; else it is the greatest that could be loaded.
        state: ``loaded``; ``available`` for what the next run that needs it loads; ``loading``; ``failed``.
        format: of its weights.
        nbytes: that it takes of memory now.
        is_algorithm: whether it can be executed by its name.
        error: why a version could not be loaded; null if the served one is the one that should be.
    """

    name: str
    versions: tuple[int, ...]
    served: int | None
    is_chosen: bool
    state: ModelState
    format: Literal["safetensors", "onnx", "pt2", "torchscript"] | None
    nbytes: int
    is_algorithm: bool
    error: str | None


class ModelList(Struct):
    """All that there are."""

    models: list[ModelInfo]
