"""Keeps spares: how many there are, and when one is made. Knows no session.

A spare is made only after a worker was started, when that worker is ready: until then it would take the processors from
it. One that has died is not replaced before the next worker starts, so that what ends spares does not go on and on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Final

from ..base import system
from ..base.background import Background
from ..base.fork_safety import ForkAware
from ..errors import TRException
from .child import child_class
from .spare import Recipe, Spare

__all__ = ["Spares"]

_log = logging.getLogger("tr_mmap")

_LOOK_S: Final = 0.02  # how often to look whether the worker is ready
_MOST_WAIT_S: Final = 2.0  # a worker that takes longer loads a model, say, and has all the time to be disturbed
_REAP_S: Final = 1.0  # how often to look for dead spares where no descriptor tells


class Spares(ForkAware):
    """The spares of one session, or of one pool. Any thread may call any method.

    In a forked child there are none. There are none either where gevent has replaced ``subprocess``, which can then be
    used only in gevent's own threads, and where sockets cannot carry descriptors.

    Args:
        count: how many there are to be.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._spares: list[Spare] = []  # changed by single calls of list's methods only
        self._owner_pid = os.getpid()
        self._is_closed = False
        self._recipe: Recipe | None = None  # of the next one
        self._missing = 0  # how many may be made
        self._starting: list[Callable[[], bool]] = []  # tell whether the workers that were started are ready
        self._due_s = 0.0
        self._background: Background | None = None
        super().__init__()

    def forked_in_child(self) -> None:
        """Close the child's descriptors: spares end when nobody has them."""
        for spare in list(self._spares):
            spare.forget()

    def take(self, recipe: Recipe) -> Spare | None:
        """A spare of that recipe, which answers; None if there is none. It is the caller's now."""
        if os.getpid() != self._owner_pid:
            return None
        for spare in list(self._spares):
            if spare.recipe != recipe or not spare.is_loaded():
                continue
            try:
                self._spares.remove(spare)
            except ValueError:  # another thread has it
                continue
            if spare.answers():
                return spare
            spare.end()
        return None

    def refill(self, recipe: Recipe, is_ready: Callable[[], bool]) -> None:
        """Have as many spares of that recipe as there are to be, and none of another. Waits for nothing.

        Args:
            recipe: of the worker that was just started.
            is_ready: tells whether that worker is ready, or has ended. Called in another thread.
        """
        if self._is_closed or os.getpid() != self._owner_pid or not _can_make():
            return
        self._starting.append(is_ready)
        self._recipe, self._missing, self._due_s = recipe, self._count, time.monotonic() + _MOST_WAIT_S
        if self._background is not None:
            self._background.wake()
            return
        try:
            self._background = Background(self._keep)
        except (TRException, OSError) as error:
            _log.debug("no spare worker: %s", error)

    @property
    def loaded(self) -> int:
        """How many could become a worker now."""
        if os.getpid() != self._owner_pid:
            return 0
        return sum(spare.is_loaded() for spare in list(self._spares))

    def close(self) -> None:
        """End them all. May be called again. Does nothing in a forked child."""
        if os.getpid() != self._owner_pid:
            return
        self._is_closed = True
        if self._background is not None:
            self._background.stop()
        for spare in list(self._spares):
            spare.end()
        self._spares.clear()

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _keep(self, background: Background) -> bool:
        while not background.has_to_return and not self._is_closed:
            self._clear()
            pause_s = self._make_if_due()
            fds = [spare.pidfd for spare in list(self._spares)]
            if pause_s is None and -1 in fds:
                pause_s = _REAP_S
            background.sleep(pause_s, *[fd for fd in fds if fd >= 0])
        return False

    def _clear(self) -> None:
        """End spares that nobody can use, and reap those that have died."""
        recipe = self._recipe
        for spare in list(self._spares):
            if recipe is not None and spare.recipe == recipe and spare.is_alive():
                continue
            try:
                self._spares.remove(spare)
            except ValueError:  # another thread has it
                continue
            spare.end()

    def _make_if_due(self) -> float | None:
        """Make a spare if one is missing, and it is time. Returns after how many seconds to look again; None: never."""
        recipe = self._recipe
        missing = min(self._missing, self._count - len(self._spares))
        if recipe is None or missing <= 0:
            self._missing = 0
            self._starting.clear()
            return None
        for is_ready in list(self._starting):
            if is_ready():
                self._starting.remove(is_ready)
        if self._starting and time.monotonic() < self._due_s:
            return _LOOK_S
        self._missing = missing - 1
        if not recipe.is_made_here() or _is_wrapper(recipe.program[0]):  # what this starts would be used by nobody
            return None
        try:
            self._spares.append(Spare.started(recipe))
        except (TRException, OSError) as error:
            self._missing = 0
            _log.debug("no spare worker: %s", error)
        return 0.0


def _is_wrapper(interpreter: str) -> bool:
    """Whether it is a script, which may start Python in a way of its own, without our module."""
    try:
        return system.peek(os.path.realpath(interpreter), 2) == b"#!"
    except OSError:
        return False


def _can_make() -> bool:
    import _socket

    return hasattr(_socket, "SCM_RIGHTS") and not child_class().is_patched
