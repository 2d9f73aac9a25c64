"""The lifeline: a pipe by which the kernel ends a worker whose controller is gone. Runs no Python at that moment.

A worker watches its controller from a thread. If a handler in native code holds the interpreter's lock, that thread
cannot run either, and the worker could stay as an orphan for ever. So the controller holds the write end of a pipe, and
the worker inherits the read end and puts it into asynchronous mode (``O_ASYNC``, fcntl(2)). When the last process that
holds the write end is gone, for any reason, the kernel sends the worker a signal. The signal's handler is libc's
``alarm`` itself, for which the signal's number is a number of seconds. SIGALRM then ends the process by its default
action.

The signal is SIGSTKFLT, 16, because no kernel sends it by itself. So the worker gets 16 seconds. If the watch thread
can run, it ends the worker long before. Linux only. The next sweep ends a worker that handles or blocks SIGALRM, or
whose controller left a living forked child behind.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final

from ..base import system
from ..wire.names import LIFELINE_FD_VARIABLE
from .identity import ON_LINUX

__all__ = ["GRACE_S", "Lifeline", "hold"]

GRACE_S: Final = 16  # a signal's number, see above


class Lifeline:
    """The controller's end of the pipe. :meth:`cut`, the end of the process and the object's own end close it."""

    _reading = _writing = -1

    def __init__(self) -> None:
        if ON_LINUX:
            self._reading, self._writing = system.make_pipe()

    @contextmanager
    def handed_over(self) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
        """What the worker that is started in this block needs: environment variables, and descriptors to pass."""
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
        """Close the controller's end; a worker that still holds the other end then has :data:`GRACE_S` seconds."""
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
    """Take the worker's end, if the controller passed one. Returns whether this process now ends with it."""
    number = environ.pop(LIFELINE_FD_VARIABLE, "")  # our children must not hold it
    if not ON_LINUX or not re.fullmatch("[0-9]{1,9}", number):
        return False
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(GRACE_S, ctypes.cast(libc.alarm, ctypes.c_void_p))  # first: by default the signal ends us at once
    try:
        has_hung_up = system.signal_on_hangup(int(number), GRACE_S)
    except OSError:
        return False  # no pipe, or not our controller's: the watch thread or a sweep ends us
    if has_hung_up:
        libc.alarm(GRACE_S)
    return True
