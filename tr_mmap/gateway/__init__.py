"""Algorithms, models and tasks over HTTP. Nothing else in the package imports this room.

Its server needs the extra ``gateway``; its client does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .gateway import Gateway

__all__ = ["Config", "Gateway"]

_PLACES = {"Config": "config", "Gateway": "gateway"}


def __getattr__(name: str) -> Any:
    """Each name is imported when it is first used, so that a client needs no server's packages."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
