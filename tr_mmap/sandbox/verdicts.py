"""The error that a run's user gets for the end of a contained process, or for the fault that it reports."""

from __future__ import annotations

import signal
from typing import Final

from .errors import AlgorithmError, LimitExceeded, NotAllowed
from .interface import DISK_NBYTES, Limits
from .messages import Fault
from .zygote import STACK_STATUS

__all__ = ["Died", "ending", "exceeded", "forged", "told"]

_RULES: Final = ("read", "write", "net", "processes", "syscalls", "clock", "random")
_SELF_KEPT: Final = ("memory_nbytes", "output_nbytes", "disk_nbytes")
_CRASHES: Final[dict[int, str]] = {
    signal.SIGSEGV: "native code touched memory that is not its own, or stored into an input",
    signal.SIGBUS: "native code touched memory behind the end of a file",
    signal.SIGABRT: "native code aborted, as failed assertions and exceptions that nobody catches do",
    signal.SIGFPE: "native code divided an integer by 0, or the like",
    signal.SIGILL: "native code came to an instruction that this machine lacks, or to a trap",
}


class Died(Exception):
    """Something outside killed the process, or its zygote has ended. The run may be tried again in another process.

    Attributes:
        had_job: whether the algorithm may have begun.
    """

    def __init__(self, message: str, *, had_job: bool = True) -> None:
        super().__init__(message)
        self.had_job = had_job


def ending(status: int, limits: Limits) -> Exception:
    """The error for a process that has ended in the middle of a run.

    Args:
        status: its exit code, or minus the signal.
        limits: of the run.
    """
    if status == STACK_STATUS:
        return exceeded(limits, "stack_nbytes")
    if status == -signal.SIGKILL:
        return Died("it was killed from outside")
    if status == -signal.SIGSYS:
        text = "it made a system call in another machine's way"
        return NotAllowed(f"{text}; an algorithm may not", rule="syscalls", detail=text)
    if status >= 0:
        how = f"exit status {status}): it ended itself"
    else:
        how = f"{_name_of(-status)}): {_CRASHES.get(-status, 'native code ended it by a signal')}"
    return AlgorithmError(f"the algorithm's process ended in the middle of it ({how}", type="ProcessEnded")


def forged(why: Exception) -> AlgorithmError:
    """The error for an answer that our runner would not give: the algorithm has changed it."""
    return AlgorithmError(f"the algorithm's process gave an answer that is none of ours: {why}", type="ForgedAnswer")


def exceeded(limits: Limits, name: str) -> LimitExceeded:
    """The error for a limit that was reached."""
    value = getattr(limits, name)
    if value is None:  # only disk_nbytes: told() does not pass on other limits that are None
        value = DISK_NBYTES
    return LimitExceeded(
        f"the algorithm needed more than {name}={_shown(value)}; it was ended. Raise that limit if it may have more",
        limit=name,
        value=value,
    )


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def told(fault: Fault, limits: Limits, more: tuple[str, ...]) -> LimitExceeded | NotAllowed | AlgorithmError:
    """The error for a fault that the process reports. It may report anything, so only known limits and rules count.

    Args:
        fault: the report.
        limits: of the run.
        more: further limits that the runner of this kind enforces and reports.
    """
    kept = {name for name in (*_SELF_KEPT, *more) if name != "fuel" or limits.fuel is not None}
    if fault.kind == "limit" and fault.type in kept:
        error = exceeded(limits, fault.type)
        if fault.traceback:
            error.add_note(fault.traceback)
        return error
    if fault.kind == "not_allowed" and fault.rule in _RULES:
        return NotAllowed(fault.message, rule=fault.rule, detail=fault.detail, traceback=fault.traceback)
    return AlgorithmError(fault.message, type=fault.type, traceback=fault.traceback)
