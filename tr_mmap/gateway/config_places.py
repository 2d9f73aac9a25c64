"""Looks at the directories of a configuration before anything starts, so that one that is not there is named."""

from __future__ import annotations

import os

from .config import Config
from .errors import BadConfig

__all__ = ["check_places"]


def check_places(config: Config) -> None:
    """Refuse a directory that cannot be used. The gateway makes the directories that it writes to by itself.

    Raises:
        BadConfig: one that must be there is not, or is no directory, or cannot be read.
    """
    python = config.python
    _check("python.models.model_dir", python.models.model_dir, "make it, and put the models there")
    _check("python.dependencies.wheel_dir", python.dependencies.wheel_dir, "make it, and put the wheels there")
    if config.store.dir is not None and os.path.lexists(config.store.dir):
        _check("store.dir", config.store.dir, "leave it out if no stores are to be offered")


def _check(option: str, path: str | None, advice: str) -> None:
    if path is None:
        return
    try:
        with os.scandir(path):
            return
    except OSError as error:
        why = f"{path} cannot be read: {error.strerror}; {advice}, or name another directory"
        raise BadConfig(f"{option}: {why}", key=option, path=path) from error
