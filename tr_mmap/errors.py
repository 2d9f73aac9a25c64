"""The one family of errors. Every error of the library is a :class:`TRException`.

Each is also the standard exception that fits, has its details as fields, survives pickling, and has a message that says
what is wrong and what to do. This module never imports another module of the package.
"""

from __future__ import annotations

import enum
import errno
from typing import Any

__all__ = [
    "BadKey",
    "BadMessage",
    "BadTag",
    "Busy",
    "Fault",
    "HostilePath",
    "MissingPackage",
    "MissingTag",
    "OutOfSpace",
    "RemoteError",
    "RemoteOutOfSpace",
    "RequestCancelled",
    "ResponseTimeout",
    "ScriptNotFound",
    "SemaphoresUnavailable",
    "SessionBusy",
    "SessionInUse",
    "SessionNotStarted",
    "StaleTensor",
    "SystemLimit",
    "TRException",
    "TSRFormatError",
    "UnexpectedResponse",
    "UnknownCommand",
    "UnsupportedTensor",
    "WorkerDied",
]


def _rebuild(cls: type[TRException], message: str, fields: dict[str, Any]) -> TRException:
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    for name, value in fields.items():
        setattr(error, name, value)
    return error


class TRException(Exception):
    """Base of every error raised by tr_mmap.

    Args:
        message: one line that says what is wrong and what to do.
        **fields: the details, readable as attributes.
    """

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        for name, value in fields.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> Any:
        fields = dict(self.__dict__)
        if isinstance(self, OSError):
            fields["errno"] = self.errno  # not in the dictionary
        return (_rebuild, (type(self), self.message, fields))


class Fault(enum.StrEnum):
    """What is wrong with a TSR file. Closed: every refusal of the reader is one of these."""

    TOO_SHORT = "too_short"  # fewer bytes than the header needs
    BAD_MAGIC = "bad_magic"  # the first four bytes are those of no layout
    BAD_VERSION = "bad_version"  # a layout that is not known
    BAD_HEADER_SIZE = "bad_header_size"  # not the size that the layout has
    BAD_FLAGS = "bad_flags"  # a flag that this version does not know
    BAD_DTYPE = "bad_dtype"  # no element type of this layout has this code
    BAD_NDIM = "bad_ndim"  # negative, or more dimensions than the layout has
    BAD_DIMS = "bad_dims"  # negative, or not what the layout prescribes for unused ones
    BAD_COUNT = "bad_count"  # element count differs from the product of the dims
    BAD_PAYLOAD_SIZE = "bad_payload_size"  # payload bytes differ from count times itemsize
    BAD_OFFSET = "bad_offset"  # the payload begins where the layout does not allow it
    BAD_RESERVED = "bad_reserved"  # a field that must be zero is not
    TOO_LARGE = "too_large"  # beyond what this machine can address
    HEADER_CHECKSUM = "header_checksum"  # the header's bytes do not match its checksum
    PAYLOAD_CHECKSUM = "payload_checksum"  # the payload's bytes do not match the checksum in the header
    NO_CHECKSUM = "no_checksum"  # the payload was to be verified, and the file has no checksum of it
    UNPUBLISHED = "unpublished"  # seq is 0: still being written
    TORN = "torn"  # the two copies of seq differ
    TRUNCATED = "truncated"  # the file ends before the payload does
    TRAILING_BYTES = "trailing_bytes"  # the file goes on after the payload
    SEALED = "sealed"  # encrypted, and no key was given
    NOT_SEALED = "not_sealed"  # a key was given, and the file is not encrypted: any program may have written it
    SEAL_BROKEN = "seal_broken"  # encrypted under another key, or changed since
    UNREPRESENTABLE = "unrepresentable"  # the writer was given a tensor that this layout cannot hold


class TSRFormatError(TRException, ValueError):
    """A TSR file with a defect, or a tensor that a layout cannot hold.

    Attributes:
        fault: which defect.
        path: the file, or None where bytes were given.
    """

    fault: Fault
    path: str | None

    def __init__(self, message: str, *, fault: Fault, path: str | None = None) -> None:
        super().__init__(message, fault=fault, path=path)


class UnsupportedTensor(TRException, TypeError):
    """A value that is not a tensor, or one whose dtype or layout has no TSR form."""


class BadTag(TRException, ValueError):
    """A tag that may not name a tensor. Attributes: tag."""

    tag: str

    def __init__(self, message: str, *, tag: str) -> None:
        super().__init__(message, tag=tag)


class BadKey(TRException, ValueError):
    """The given value is not a key of 32 bytes. The error does not store the value, so no log shows it."""


class MissingPackage(TRException, ImportError):
    """A package that only this feature needs is not installed. Attributes: package."""

    package: str

    def __init__(self, message: str, *, package: str) -> None:
        super().__init__(message, package=package)


class MissingTag(TRException, KeyError):
    """There is no tensor of that tag. Attributes: tag."""

    tag: str

    def __init__(self, message: str, *, tag: str) -> None:
        super().__init__(message, tag=tag)


class StaleTensor(TRException, LookupError):
    """The segment no longer holds the tensor that the message named. Attributes: name (of its file), seq (wanted)."""

    name: str
    seq: int

    def __init__(self, message: str, *, name: str, seq: int) -> None:
        super().__init__(message, name=name, seq=seq)


class OutOfSpace(TRException, OSError):
    """There is no room for a tensor, on the file system or in the pool's budget.

    Attributes:
        needed_nbytes: bytes that were needed.
        free_nbytes: bytes that were free.
        is_budget: whether the pool's budget is used up, and not the file system's room.
    """

    needed_nbytes: int
    free_nbytes: int
    is_budget: bool = False

    def __init__(self, message: str, *, needed_nbytes: int, free_nbytes: int, is_budget: bool = False) -> None:
        super().__init__(message, needed_nbytes=needed_nbytes, free_nbytes=free_nbytes, is_budget=is_budget)
        self.errno = errno.ENOSPC


class SystemLimit(TRException, OSError):
    """A limit of the system or of this process was reached, other than room for a tensor.

    Attributes:
        limit: which one: ``"vm.max_map_count"``, ``"RLIMIT_NOFILE"``, ``"RLIMIT_FSIZE"``, ``"RLIMIT_AS"``,
            ``"RLIMIT_DATA"``, ``"ARG_MAX"`` (a worker's arguments and environment), ``"RLIMIT_NPROC"`` (processes and
            threads of this user), ``"pids"`` (those of the control group or the system); or, of the whole system,
            ``"fs.file-max"``, ``"vm.overcommit_memory"``, ``"address space"``, ``"file size"`` (of this file system).
        errno: of the system call that failed.
    """

    limit: str

    def __init__(self, message: str, *, limit: str, code: int) -> None:
        super().__init__(message, limit=limit)
        self.errno = code


class SemaphoresUnavailable(TRException, OSError):
    """This system has no POSIX semaphores that the default channel could use. Attributes: reason."""

    reason: str

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, reason=reason)


class HostilePath(TRException, PermissionError):
    """A path that a session must not trust, or that is no regular file. Attributes: path, reason."""

    path: str
    reason: str

    def __init__(self, message: str, *, path: str, reason: str) -> None:
        super().__init__(message, path=path, reason=reason)


class ScriptNotFound(TRException, FileNotFoundError):
    """The worker's script is not a readable file. Attributes: path."""

    path: str

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message, path=path)


class SessionInUse(TRException, FileExistsError):
    """Another live process owns the session. Attributes: session_id, pid (of the owner; 0 if unknown)."""

    session_id: str
    pid: int

    def __init__(self, message: str, *, session_id: str, pid: int) -> None:
        super().__init__(message, session_id=session_id, pid=pid)


class SessionNotStarted(TRException, RuntimeError):
    """The session has no running worker: call start(), or use it as a context manager."""


class ResponseTimeout(TRException, TimeoutError):
    """The worker did not answer in time; it may still answer later.

    Attributes:
        timeout_ms: how long the call was allowed to take; infinity for no limit.
        command: of the request; "" if there was none.
        pid: of the worker; 0 if unknown.
        state: what the worker's process does: "running", "waiting", "stopped", "ended" or "unknown".
        is_taken_up: whether the worker has begun this request; False while it answers one that somebody wrote by hand;
            None if unknown.
        last_moved_ms: milliseconds since the worker last took a request, used a tensor or answered; None if unknown.
    """

    timeout_ms: float
    command: str
    pid: int
    state: str
    is_taken_up: bool | None
    last_moved_ms: float | None

    def __init__(
        self,
        message: str,
        *,
        timeout_ms: float,
        command: str,
        pid: int = 0,
        state: str = "unknown",
        is_taken_up: bool | None = None,
        last_moved_ms: float | None = None,
    ) -> None:
        super().__init__(
            message,
            timeout_ms=timeout_ms,
            command=command,
            pid=pid,
            state=state,
            is_taken_up=is_taken_up,
            last_moved_ms=last_moved_ms,
        )


class SessionBusy(TRException, RuntimeError):
    """The session cannot take a request now, because this call has interrupted one of its steps.

    A destructor may get this, if it uses the session in whose code it happens to run. ``close`` and ``start`` get it
    if another thread's request has not ended after 10 s. Try again later.
    """


class Busy(TRException, RuntimeError):
    """As many requests are in flight as the session may have, and it was not to wait (``at_limit="fail"``).

    Attributes:
        limit: how many that are.
    """

    limit: int

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message, limit=limit)


class WorkerDied(TRException, ChildProcessError):
    """The worker ended, or did not start.

    Attributes:
        exit_code: its exit status; if negative, minus the signal that killed it; None if unknown.
        log_tail: the last lines of its output; "" if it printed nothing. The tracebacks of errors that it has answered,
            and what it printed before them, are not among these lines.
        attempts: of a pool's request: how many workers have begun it, and ended before they had answered it.
    """

    exit_code: int | None
    log_tail: str
    attempts: int = 1

    def __init__(self, message: str, *, exit_code: int | None, log_tail: str, attempts: int = 1) -> None:
        super().__init__(message, exit_code=exit_code, log_tail=log_tail, attempts=attempts)


class RemoteError(TRException, RuntimeError):
    """A handler in the worker failed.

    Attributes:
        command: the command that failed.
        error_type: the name of the exception's class in the worker.
        remote_traceback: the worker's traceback, or "" where there is none.
    """

    command: str
    error_type: str
    remote_traceback: str

    def __init__(self, message: str, *, command: str, error_type: str, remote_traceback: str) -> None:
        super().__init__(message, command=command, error_type=error_type, remote_traceback=remote_traceback)


class UnknownCommand(RemoteError):
    """The worker has no such command."""


class RequestCancelled(RemoteError):
    """The request was cancelled, and its handler was not called, or has ended because of it.

    A handler that sees ``server.cancelled()`` may raise it, without arguments.
    """

    def __init__(
        self,
        message: str = "the request was cancelled",
        *,
        command: str = "",
        error_type: str = "RequestCancelled",
        remote_traceback: str = "",
    ) -> None:
        super().__init__(message, command=command, error_type=error_type, remote_traceback=remote_traceback)


class RemoteOutOfSpace(OutOfSpace, RemoteError):
    """There was no room for a tensor in the worker. Attributes: those of OutOfSpace and of RemoteError."""

    def __init__(
        self,
        message: str,
        *,
        command: str,
        error_type: str,
        remote_traceback: str,
        needed_nbytes: int,
        free_nbytes: int,
    ) -> None:
        TRException.__init__(
            self,
            message,
            command=command,
            error_type=error_type,
            remote_traceback=remote_traceback,
            needed_nbytes=needed_nbytes,
            free_nbytes=free_nbytes,
        )
        self.errno = errno.ENOSPC


class UnexpectedResponse(TRException, LookupError):
    """The response has no tensor, and the caller waits for one. Attributes: result (the response's text)."""

    result: str

    def __init__(self, message: str, *, result: str) -> None:
        super().__init__(message, result=result)


class BadMessage(TRException, ValueError):
    """A control message or a status that cannot be read or written. Attributes: detail."""

    detail: str

    def __init__(self, message: str, *, detail: str) -> None:
        super().__init__(message, detail=detail)
