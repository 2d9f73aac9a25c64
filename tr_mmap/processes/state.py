"""What a process does at this moment: running, waiting, stopped or ended. Signals none."""

from __future__ import annotations

from typing import Literal, TypeAlias

from ..base import system
from ..wire.words import PROCESS_ENDED, PROCESS_RUNNING, PROCESS_STOPPED, PROCESS_UNKNOWN, PROCESS_WAITING
from .identity import ON_LINUX, Identity

__all__ = ["ProcessState", "state_of"]

ProcessState: TypeAlias = Literal["running", "waiting", "stopped", "ended", "unknown"]

_MAX_TASKS = 256  # threads that are looked at; one that runs is nearly always among them


def state_of(process: Identity) -> ProcessState:
    """What a process does now; "unknown" where the system does not say, or no descriptor is left to ask it.

    ``running``: at least one of its threads uses a processor, or is about to. ``waiting``: all sleep. ``stopped``: by a
    signal (SIGSTOP, Ctrl-Z) or by a debugger.
    """
    if not process.is_alive():
        return PROCESS_ENDED
    letters = _letters_of(process.pid) if ON_LINUX else ""
    if not letters:
        return PROCESS_UNKNOWN
    if "R" in letters:
        return PROCESS_RUNNING
    return PROCESS_STOPPED if letters[0] in "Tt" else PROCESS_WAITING


def _letters_of(pid: int) -> str:
    """The state letter of each thread as in proc(5), the main thread's first; "" if they cannot be read."""
    try:
        tasks = sorted(system.list_dir(f"/proc/{pid}/task"), key=lambda name: (name != str(pid), name))
    except OSError:
        return ""
    return "".join(filter(None, (_letter_of(f"/proc/{pid}/task/{task}/stat") for task in tasks[:_MAX_TASKS])))


def _letter_of(path: str) -> str:
    try:
        text = system.peek(path, 4096)
        return text[text.rindex(b")") + 2 :][:1].decode()  # the name in parentheses may hold parentheses itself
    except (OSError, ValueError):  # that thread has ended
        return ""
