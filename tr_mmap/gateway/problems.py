"""Which status of HTTP an error has, and what its body says. No error names what is inside of the gateway."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from ..errors import (
    BadMessage,
    MissingPackage,
    OutOfSpace,
    RemoteError,
    SessionNotStarted,
    SystemLimit,
    TRException,
    UnsupportedTensor,
    WorkerDied,
)
from ..sandbox import AlgorithmError, DeadlineExceeded, LimitExceeded, NotAllowed, RunCancelled, SandboxBroken
from ..store import (
    EmbedderMismatch,
    NoSuchRecord,
    RecordExists,
    StoreBusy,
    StoreClosed,
    VersionConflict,
    WrongShape,
)
from . import errors
from .api import ErrorBody
from .wording import in_own_words, limit_of, missing_module

__all__ = ["describe", "headers_of", "status_of"]

# The first that fits counts.
_STATUS: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (errors.Unauthorized, 401),
    (errors.Forbidden, 403),
    (errors.MethodNotAllowed, 405),
    (errors.NotFound, 404),
    (errors.TooSlow, 408),
    (errors.HeadersTooLarge, 431),
    (errors.Conflict, 409),
    (errors.TooLarge, 413),
    (errors.RateLimited, 429),
    (errors.QuotaExceeded, 429),
    (errors.Busy, 503),
    (errors.BadModel, 422),
    (errors.KeyReused, 422),
    (errors.UnsupportedMediaType, 415),
    (errors.BadRequest, 400),
    (errors.BadDependency, 422),
    (DeadlineExceeded, 504),
    (RunCancelled, 409),
    (LimitExceeded, 422),
    (NotAllowed, 422),
    (AlgorithmError, 422),
    (MissingPackage, 422),
    (UnsupportedTensor, 400),
    (NoSuchRecord, 404),
    (RecordExists, 409),
    (VersionConflict, 409),
    (EmbedderMismatch, 409),
    (WrongShape, 400),
    (BadMessage, 400),
    (errors.StoreFull, 507),
    (StoreBusy, 503),
    (StoreClosed, 503),
    (OutOfSpace, 503),
    (MemoryError, 503),
    (SystemLimit, 503),
    (SandboxBroken, 503),
    (WorkerDied, 503),
    (SessionNotStarted, 503),
    (RemoteError, 422),
    (msgspec.ValidationError, 400),
    (msgspec.DecodeError, 400),
)
_TOLD: Final = (
    "limit",
    "value",
    "rule",
    "detail",
    "type",
    "traceback",
    "command",
    "error_type",
    "stdout",
    "limit_nbytes",
    "package",
    "retry_after_s",
    "id",
    "expected",
    "found",
    "option",
)
_MOST_TEXT: Final = 64 << 10
_INTERNAL: Final = "the gateway has a fault of its own, which its log describes under this request's id"
_HIDDEN: Final = {
    SandboxBroken: "the sandbox could not run it; try again, and see the gateway's log",
    OutOfSpace: "the machine has too little memory for it now; try again",
    MemoryError: "the machine has too little memory for it now; try again",
    StoreClosed: "the store was closed meanwhile; try again",
    SystemLimit: "the gateway has met a limit of its system; try again",
    WorkerDied: "the worker has ended before it answered, and is started again; see the gateway's log",
    SessionNotStarted: "the worker was ended with the gateway; try again",
}


def status_of(error: BaseException) -> int:
    """The status of an error's response."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def describe(error: BaseException, request_id: str) -> ErrorBody:
    """The body of an error's response."""
    status = status_of(error)
    if status == 500:
        return ErrorBody(error=_INTERNAL, status_code=500, type="InternalError", request_id=request_id)
    text = next((text for kind, text in _HIDDEN.items() if isinstance(error, kind)), "") or in_own_words(error)
    if isinstance(error, RemoteError):  # a trusted program's files are none of a client's business
        text = text.removesuffix(f"\n\n{error.remote_traceback}")
    details = {name: _plain(getattr(error, name)) for name in _TOLD if getattr(error, name, None) not in (None, "")}
    if any(isinstance(error, kind) for kind in _HIDDEN):
        details = {}
    if isinstance(error, errors.BadDependency):
        details["package"] = error.package  # also where it is none's fault
    if isinstance(error, errors.BadModel):
        details = {"name": error.name, "is_lasting": error.is_lasting}
    if isinstance(error, LimitExceeded):
        details["limit"], details["value"] = limit_of(error)
    body = ErrorBody(
        error=text[:_MOST_TEXT],
        status_code=status,
        type=_type_of(error),
        request_id=request_id,
    )
    missing = missing_module(error)
    if missing:
        body.type = MissingPackage.__name__
        details["package"] = missing
    if details:
        body.details = details
    return body


def _type_of(error: BaseException) -> str:
    """The name of a type that the package's own clients know."""
    if isinstance(error, MemoryError):
        return OutOfSpace.__name__
    return type(error).__name__ if isinstance(error, TRException) else "BadRequest"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value[:_MOST_TEXT] if isinstance(value, str) else value


def headers_of(error: BaseException) -> dict[str, str]:
    """The headers that an error's response has beside the usual ones."""
    if isinstance(error, errors.Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, errors.Busy):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    return {"retry-after": "1"} if status_of(error) == 503 else {}
