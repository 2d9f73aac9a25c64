"""One class for each server of algorithms over HTTP, all behind the interface of :mod:`.base`."""

from .base import ServerPeer
from .others import BentoMl, LitServe, RayServe
from .ours import Ours
from .triton import Triton

__all__ = ["SERVERS", "ServerPeer"]

SERVERS: dict[str, type[ServerPeer]] = {each.key: each for each in (Ours, Triton, LitServe, BentoMl, RayServe)}
