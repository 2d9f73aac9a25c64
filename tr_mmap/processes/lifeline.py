"""What ends a worker that cannot end itself: the kernel, when the controller is gone. Needs no Python at that moment.

A worker watches its controller from a thread. A handler in native code that holds the interpreter's lock stops that
thread too, and could keep an orphan for ever. So the controller holds one end of a pipe, of which the worker inherits
the other, in asynchronous mode (``O_ASYNC``, fcntl(2)): when the last holder of the first end is gone, however it went,
the kernel sends the worker a signal. Its handler is libc's ``alarm`` itself, which gets the signal's number for its
seconds; SIGALRM then ends the process by its default action.

The signal is SIGSTKFLT, 16, which no kernel sends by itself: so 16 seconds, in which the thread has long done better
if it could. Linux only. A worker that handles or blocks SIGALRM, or whose controller left a fork behind that lives, is
ended by the next sweep instead.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final

from ..base import system
from ..wire.names import LIFELINE_FD_VARIABLE

__all__ = ["GRACE_S", "Lifeline", "hold"]

GRACE_S: Final = 16  # a signal's number, see above
_ON_LINUX: Final = sys.platform == "linux"


class Lifeline:
    """The controller's end. Cut by :meth:`cut`, by the end of the process, or when it is forgotten."""

    def __init__(self) -> None:
        self._reading = self._writing = -1
        if _ON_LINUX:
            self._reading, self._writing = system.make_pipe()

    @contextmanager
    def handed_over(self) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
        """What a worker that is started now needs to hold it: environment variables, and descriptors to pass."""
        if self._reading < 0:
            yield {}, ()
            return
        try:
            yield {LIFELINE_FD_VARIABLE: str(self._reading)}, (self._reading,)
        finally:
            reading, self._reading = self._reading, -1
            if reading >= 0:
                system.close(reading)

    def cut(self) -> None:
        """Let go; what still holds the other end then has :data:`GRACE_S` seconds."""
        writing, self._writing = self._writing, -1
        if writing >= 0:
            system.close(writing)

    def __del__(self) -> None:
        for fd in (self._reading, self._writing):
            try:
                if fd >= 0:
                    system.close(fd)
            except OSError:
                pass  # it is closed all the same


def hold(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Take the worker's end, if its controller passed one; whether this process now ends with its controller."""
    number = environ.pop(LIFELINE_FD_VARIABLE, "")  # our children are not to hold it
    if not _ON_LINUX or not re.fullmatch("[0-9]{1,9}", number):
        return False
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(GRACE_S, ctypes.cast(libc.alarm, ctypes.c_void_p))  # first: by default the signal ends us at once
    try:
        has_hung_up = system.hear_hangup(int(number), GRACE_S)
    except OSError:
        return False  # no pipe, or none of our controller's: there are other ways to end
    if has_hung_up:
        libc.alarm(GRACE_S)
    return True
