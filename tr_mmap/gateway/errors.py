"""What the gateway refuses, by kind. Each is a :class:`TRException`; :mod:`.problems` says its status in HTTP."""

from __future__ import annotations

from ..errors import TRException

__all__ = [
    "AlreadyDone",
    "BadConfig",
    "BadModel",
    "BadDependency",
    "BadRequest",
    "Busy",
    "CircuitOpen",
    "Conflict",
    "Forbidden",
    "HeadersTooLarge",
    "InstallFailed",
    "KeyInUse",
    "KeyReused",
    "MethodNotAllowed",
    "NotFound",
    "Overloaded",
    "QuotaExceeded",
    "RateLimited",
    "RegistryFull",
    "StoreFull",
    "TooLarge",
    "TooSlow",
    "Unauthorized",
    "UnsupportedMediaType",
]


class BadConfig(TRException, ValueError):
    """A configuration file, or an option, that cannot be used.

    Attributes:
        key: of the option, for example ``"server.port"``; empty if it is the file itself.
        path: of the file; empty if there is none.
    """

    key: str
    path: str

    def __init__(self, message: str, *, key: str = "", path: str = "") -> None:
        super().__init__(message, key=key, path=path)


class BadModel(TRException, ValueError):
    """A model that cannot be loaded: its files are missing or damaged, or of a kind that is refused.

    Attributes:
        name: of the model.
        is_lasting: whether the same files would give the same again, whatever else changes.
    """

    name: str
    is_lasting: bool

    def __init__(self, message: str, *, name: str, is_lasting: bool = True) -> None:
        super().__init__(message, name=name, is_lasting=is_lasting)


class BadRequest(TRException, ValueError):
    """A request whose body or headers are wrong."""


class BadDependency(TRException, ValueError):
    """A package that may not be installed, or cannot be.

    Attributes:
        package: its name; what was declared if that has none; empty if it is not one package's fault.
    """

    package: str

    def __init__(self, message: str, *, package: str = "") -> None:
        super().__init__(message, package=package)


class TooLarge(TRException, ValueError):
    """A request that is larger than the gateway takes.

    Attributes:
        limit_nbytes: the most that it takes.
    """

    limit_nbytes: int

    def __init__(self, message: str, *, limit_nbytes: int) -> None:
        super().__init__(message, limit_nbytes=limit_nbytes)


class HeadersTooLarge(TooLarge):
    """A request whose headers are larger than the gateway takes."""


class TooSlow(TRException, TimeoutError):
    """A request that did not arrive in time."""


class UnsupportedMediaType(TRException, ValueError):
    """A body that is encoded in a way that the gateway does not take, compressed say."""


class Unauthorized(TRException, PermissionError):
    """There is no token, or none that is valid now."""


class Forbidden(TRException, PermissionError):
    """The token is valid, and does not grant this."""


class NotFound(TRException, LookupError):
    """There is nothing of that name or id, or it belongs to another token's subject."""


class MethodNotAllowed(NotFound):
    """There is something at that path, and not with that method of HTTP."""


class Conflict(TRException, RuntimeError):
    """The request contradicts what is there."""


class RegistryFull(Conflict):
    """There is no room for another algorithm before one is unregistered."""


class StoreFull(TRException, OSError):
    """A store has no room for what was to be kept."""


class AlreadyDone(Conflict):
    """A task that is to be cancelled has ended."""


class Busy(TRException, RuntimeError):
    """The gateway cannot take the request now.

    Attributes:
        retry_after_s: when to try again, in seconds from now.
    """

    retry_after_s: float

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class Overloaded(Busy):
    """A queue is full, or the gateway is about to end."""


class RateLimited(Busy):
    """The token has made too many requests."""


class QuotaExceeded(Busy):
    """The subject of the token has too many runs that wait or go on already, of all its tokens together."""


class CircuitOpen(Busy):
    """An algorithm has failed too often, and is not run for a while."""


class InstallFailed(Busy):
    """Packages could not be installed, for no fault of theirs: the installer was ended, or there is no room."""


class KeyReused(BadRequest):
    """An idempotency key that another request had before; a new request needs a new key."""


class KeyInUse(Conflict, Busy):
    """The request with the same idempotency key still goes on; its response is there once it has ended."""
