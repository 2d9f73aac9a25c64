"""The errors of runs. Each is a :class:`TRException`, and the standard exception that fits."""

from __future__ import annotations

from concurrent.futures import CancelledError

from ..errors import TRException

__all__ = ["AlgorithmError", "DeadlineExceeded", "LimitExceeded", "NotAllowed", "RunCancelled", "SandboxBroken"]


class LimitExceeded(TRException, RuntimeError):
    """The algorithm needed more than one of its limits. It was ended.

    Attributes:
        limit: the field of :class:`Limits`, for example ``"memory_nbytes"``.
        value: what that limit was.
        stdout: what the algorithm had printed, cut as that of a response.
    """

    limit: str
    value: float
    stdout: str = ""

    def __init__(self, message: str, *, limit: str, value: float) -> None:
        super().__init__(message, limit=limit, value=value)


class _TooLate(TRException, TimeoutError):
    """The first base of DeadlineExceeded, so that TimeoutError's ``__new__`` makes it, and not RuntimeError's."""


class DeadlineExceeded(_TooLate, LimitExceeded):
    """The deadline of a request came before its end.

    ``limit`` is ``"deadline_s"``. ``value`` is the deadline by ``time.monotonic``; from a gateway, which has a clock of
    its own, it is how many seconds the request had.
    """


class NotAllowed(TRException, PermissionError):
    """The algorithm tried what it was not granted.

    Attributes:
        rule: what refused it: ``"read"``, ``"write"``, ``"net"``, ``"processes"``, ``"syscalls"``, ``"clock"`` or
            ``"random"``.
        detail: what it tried, as far as it is known, for example a path.
        traceback: the algorithm's own.
        stdout: what it had printed, cut as that of a response.
    """

    rule: str
    detail: str
    traceback: str
    stdout: str = ""

    def __init__(self, message: str, *, rule: str, detail: str = "", traceback: str = "") -> None:
        super().__init__(message, rule=rule, detail=detail, traceback=traceback)


class AlgorithmError(TRException, RuntimeError):
    """The algorithm raised an exception, returned something that cannot be a result, or ended its process.

    Attributes:
        type: name of the exception's class, for example ``"ValueError"``.
        traceback: the algorithm's own frames.
        stdout: what it had printed, cut as that of a response.
    """

    type: str
    traceback: str
    stdout: str = ""

    def __init__(self, message: str, *, type: str, traceback: str = "") -> None:
        super().__init__(message, type=type, traceback=traceback)


class RunCancelled(TRException, CancelledError):
    """The run was cancelled by :meth:`Sandbox.cancel`, and its process was ended.

    Attributes:
        request_id: of its request.
    """

    request_id: str

    def __init__(self, message: str, *, request_id: str) -> None:
        super().__init__(message, request_id=request_id)


class SandboxBroken(TRException, RuntimeError):
    """The sandbox itself cannot go on: a layer is missing, its own processes were ended from outside, or
    somebody truncated the file of an input.

    Attributes:
        layers: the required layers that this machine does not have.
    """

    layers: tuple[str, ...]

    def __init__(self, message: str, *, layers: tuple[str, ...] = ()) -> None:
        super().__init__(message, layers=layers)
