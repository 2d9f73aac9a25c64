"""What can go wrong with an algorithm, by kind. Each is a :class:`TRException`, and the standard one that fits."""

from __future__ import annotations

from concurrent.futures import CancelledError

from ..errors import TRException

__all__ = ["AlgorithmError", "DeadlineExceeded", "LimitExceeded", "NotAllowed", "RunCancelled", "SandboxBroken"]


class LimitExceeded(TRException, RuntimeError):
    """The algorithm needed more than its limits give it. It was ended; nothing of it is left.

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
    """What the next one is beside; first of its bases, so that it is made as a TimeoutError is."""


class DeadlineExceeded(_TooLate, LimitExceeded):
    """The deadline of a request came before its end. ``limit`` is ``"deadline_s"``, and ``value`` what it was, by
    ``time.monotonic``; of a gateway, whose clock nobody else has, how many seconds the request was there.
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
    """The algorithm raised an exception, gave what is no result, or ended its process.

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
