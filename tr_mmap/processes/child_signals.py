"""What a child inherits of this process's signals, and how it gets rid of it. Starts nothing."""

from __future__ import annotations

import re
import signal
from typing import Final

from ..base import system

__all__ = ["with_usual_signals"]

# SIGHUP stays ignored if it is, see below. Python itself ignores the other two, and subprocess restores them.
_NOT_RESTORED: Final = frozenset(
    getattr(signal, name) for name in ("SIGHUP", "SIGPIPE", "SIGXFSZ") if hasattr(signal, name)
)
_IGNORED_SIGNALS: Final = re.compile(rb"^SigIgn:\s*([0-9a-f]+)$", re.MULTILINE)
_MAX_STATUS_NBYTES: Final = 1 << 16
# Run by the worker's interpreter where this process's signals are unusual; then it becomes the worker by execv(2). The
# child of a process with threads may run no Python before that, so subprocess's preexec_fn is no way to do it. SIGHUP
# stays ignored if it is: nohup(1) is meant for the children too.
_RESTORE_SIGNALS: Final = """\
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGHUP}:
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
os.execv(sys.argv[1], sys.argv[1:])
"""


def with_usual_signals(program: list[str]) -> list[str]:
    """An interpreter and its arguments, so that no signal is blocked or ignored there, but for what Python ignores."""
    if _has_unusual_signals():
        return [program[0], "-S", "-P", "-c", _RESTORE_SIGNALS, *program]
    return program


def _has_unusual_signals() -> bool:
    """Whether a child would inherit signals that are blocked in this thread, or ignored."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows
        return False
    if signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return True
    judged = signal.valid_signals() - _NOT_RESTORED  # not those that the C library keeps for itself
    if any(signal.getsignal(number) is signal.SIG_IGN for number in judged):
        return True
    # Python does not know what code in C has done to signals since Python's own start.
    try:
        found = _IGNORED_SIGNALS.search(system.peek("/proc/self/status", _MAX_STATUS_NBYTES))
    except OSError:
        return False
    return found is not None and any(int(found[1], 16) >> (number - 1) & 1 for number in judged)
