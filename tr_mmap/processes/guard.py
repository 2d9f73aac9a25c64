"""The controller's side of the guard: a process that ends a legacy worker when the controller is killed.

A worker of ours watches its controller. One that speaks only the legacy dialect does not, so it would serve nobody for
ever. The guard does it from outside (:mod:`.guard_program`). If the guard is killed too, the worker and the files of a
killed controller stay. Linux only.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ..base import system
from ..wire.names import LIFELINE_FD_VARIABLE, LOCK_FD_VARIABLE, SECRET_FD_VARIABLE, WORKER_MARK_VARIABLE
from . import guard_program
from .child import child_class
from .identity import ON_LINUX, Identity

if TYPE_CHECKING:
    from .child import Child

__all__ = ["Guard"]

_PROGRAM: Final = system.absolute(guard_program.__file__)
# Without these, the guard does not count as started by a worker, even if this controller is one.
_NOT_INHERITED: Final = {LIFELINE_FD_VARIABLE, LOCK_FD_VARIABLE, SECRET_FD_VARIABLE, WORKER_MARK_VARIABLE}

_log = logging.getLogger("tr_mmap")


class Guard:
    """The guard of one session. In a forked child of the controller, the methods do nothing.

    Args:
        interpreter: the Python that runs it.
        directory: of the session; need not exist.
        levels: how many directories above the session are removed when they are empty.
        environ: the environment.

    Attributes:
        mark: the beginning of the marks of the session's workers.
    """

    def __init__(self, interpreter: str, directory: str, levels: int, environ: Mapping[str, str] = os.environ) -> None:
        self.mark = f"{os.getpid()}-{os.urandom(8).hex()}"
        self._program = [interpreter, "-I", "-S", *_run()]
        folder, name = os.path.split(directory)
        controller = Identity.current()
        self._arguments = [str(controller.pid), str(controller.start_ticks), self.mark, folder, name, str(levels)]
        self._environ = {name: value for name, value in environ.items() if name not in _NOT_INHERITED}
        self._owner_pid = os.getpid()
        self._child: Child | None = None

    def watch(self) -> None:
        """Start the guard if it does not run. Without it, the session works all the same."""
        if not ON_LINUX or os.getpid() != self._owner_pid or (self._child is not None and self._child.poll() is None):
            return
        try:
            self._child = child_class()(
                [*self._program, *self._arguments],
                env=self._environ,
                cwd=os.sep,  # no file system stays busy because of it
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                close_fds=True,
                start_new_session=True,  # Ctrl-C, and a kill of our group, do not reach it
            )
        except OSError as error:
            _log.warning("a killed controller will leave its worker: its guard cannot be started (%s)", error)

    @property
    def pid(self) -> int | None:
        """Its process; None if it was not started."""
        return None if self._child is None else self._child.pid

    def end(self) -> None:
        """End the guard, when nothing of the session is left. May be called again."""
        child, self._child = self._child, None
        if child is not None and os.getpid() == self._owner_pid:
            child.end()


def _run() -> list[str]:
    """The interpreter's argument that is the program; its text if the package is in a zip file."""
    if os.path.isfile(_PROGRAM):
        return [_PROGRAM]
    assert guard_program.__loader__ is not None
    return ["-c", guard_program.__loader__.get_source(guard_program.__name__)]  # type: ignore[attr-defined]
