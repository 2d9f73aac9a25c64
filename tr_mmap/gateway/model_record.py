"""What is known of one model. Loads nothing."""

from __future__ import annotations

from .errors import BadModel
from .model_api import ModelInfo, ModelState
from .model_files import SOURCE, FoundVersion
from .model_memory import Version

__all__ = ["ModelRecord"]


class ModelRecord:
    """One model.

    Attributes:
        versions: that there are.
        served: the one that runs get.
        chosen: the number that somebody has asked for.
        failed: those that cannot be loaded, as they are now, and why.
        error: why the version that should be served is not.
        is_loading: whether one is being tried.
    """

    def __init__(self) -> None:
        self.versions: tuple[int, ...] = ()
        self.served: Version | None = None
        self.chosen: int | None = None
        self.failed: dict[FoundVersion, str] = {}
        self.error: str | None = None
        self.is_loading = False

    def check_answers(self, found: FoundVersion) -> None:
        """Whether a version can be executed if the one that is served can, as long as there is that one's directory.

        Raises:
            BadModel: it cannot: its ``model.py`` was forgotten, or is still being copied.
        """
        served = self.served
        if served is None or served.own is None or served.found.number not in self.versions:
            return
        if not found.is_algorithm:
            former = served.found.folder
            raise BadModel(
                f"{found.folder} has no {SOURCE} beside its weights, and {former}, which is served, can be executed: "
                f"add it; or remove {former}, if nothing is to be executed by the name {found.name!r} any more",
                name=found.name,
            )

    def info(self, name: str) -> ModelInfo:
        """What clients are told of it."""
        served = self.served
        if served is None:
            state: ModelState = "loading" if self.is_loading else "failed"
        else:
            state = "loaded" if served.nbytes else "available"
        return ModelInfo(
            name=name,
            versions=self.versions,
            served=None if served is None else served.found.number,
            is_chosen=self.chosen is not None,
            state=state,
            format=None if served is None else served.found.weights()[1],
            nbytes=0 if served is None else served.nbytes,
            is_algorithm=served is not None and served.own is not None,
            error=self.error,
        )
