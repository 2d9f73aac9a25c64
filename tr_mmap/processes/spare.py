"""A spare: an interpreter that was started ahead of time, and becomes a worker when it is wanted. Knows no session.

A spare is started as a worker is: by the same interpreter, with the same arguments but for the script's, in the same
environment and folder, in a session of processes of its own, with a mark and a lifeline. A module on its path makes it
wait before Python opens the script (:mod:`.spare_site.sitecustomize`). This process has one end of a socket pair, and
the spare the other. What a worker gets when it starts goes through it: the script's arguments, the log, the session's
lock and secret. The spare ends when this end is closed, or when the process that started it ends.
"""

from __future__ import annotations

import _socket
import array
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..base import system
from ..wire.names import SPARE_VARIABLE, WORKER_MARK_VARIABLE
from .child import child_class
from .child_signals import with_usual_signals
from .identity import Identity, open_pidfd
from .lifeline import Lifeline
from .surroundings import surroundings

if TYPE_CHECKING:
    from .child import Child

__all__ = ["Recipe", "Spare"]

_SITE: Final = os.path.join(os.path.dirname(system.absolute(__file__)), "spare_site")
_PLACEHOLDER: Final = "spare"  # the argument of its command line, which stays what ps(1) shows
# The words of both sides, one byte each; ``sitecustomize.py`` has them too.
_HERE: Final = b"!"
_ARE_YOU_THERE: Final = b"?"
_RUN: Final = b"="
_NO_SIGPIPE: Final[int] = getattr(_socket, "MSG_NOSIGNAL", 0)
_ANSWER_S: Final = 0.5  # a spare that is not stopped answers in a tenth of a millisecond
_SEND_S: Final = 10.0


@dataclass(frozen=True)
class Recipe:
    """What a spare is made of. A worker may be made of a spare whose recipe is the worker's own.

    Attributes:
        program: the interpreter and its arguments, up to the script.
        env: the whole environment, but for what each worker has of its own.
        cwd: the current directory; None for this process's.
        modules: what it imports.
        package_finder: see :mod:`.spare_site.sitecustomize`.
        surroundings: what it inherits besides.
    """

    program: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    modules: tuple[str, ...]
    package_finder: str
    surroundings: tuple[Any, ...]

    def is_made_here(self) -> bool:
        """Whether a process that this thread starts now has these surroundings."""
        return surroundings(self.cwd) == self.surroundings


class Spare:
    """One spare. Made by :meth:`started`; :meth:`end` ends it, unless it has become a worker.

    Attributes:
        recipe: what it is made of.
        mark: the value of the variable in its environment that marks its tree.
        child: its process.
        lifeline: of its process.
    """

    def __init__(self, recipe: Recipe, mark: str, child: Child, lifeline: Lifeline, end: int) -> None:
        self.recipe = recipe
        self.mark = mark
        self.child = child
        self.lifeline = lifeline
        self._end = system.OwnFile(end)
        self._lock = threading.RLock()  # held while the socket is used; reentrant, for signal handlers
        self._owner_pid = os.getpid()
        self._is_ours = True  # it is no worker yet
        self._pidfd: system.OwnFile | None = None
        try:
            identity = Identity.of(child.pid)
            fd = None if identity is None else open_pidfd(identity)
            self._pidfd = None if fd is None else system.OwnFile(fd)
        except ProcessLookupError:
            pass  # it has ended, which is seen later

    @classmethod
    def started(cls, recipe: Recipe) -> Spare:
        """Start one; does not wait until it has imported what it imports.

        Raises:
            OSError: a system call failed; no process is left.
        """
        mark = f"{os.getpid()}-{os.urandom(8).hex()}"
        lifeline = Lifeline()
        own, its = _socket.socketpair()
        try:
            settings = {
                "fd": its.fileno(),
                "modules": recipe.modules,
                "package_finder": recipe.package_finder,
                "pythonpath": recipe.env.get("PYTHONPATH"),
            }
            path = os.pathsep.join([_SITE, *filter(None, [recipe.env.get("PYTHONPATH")])])
            with lifeline.handed_over() as (variables, fds):
                child = child_class()(
                    with_usual_signals([*recipe.program, _PLACEHOLDER]),
                    env={
                        **recipe.env,
                        **variables,
                        WORKER_MARK_VARIABLE: mark,
                        SPARE_VARIABLE: json.dumps(settings),
                        "PYTHONPATH": path,
                    },
                    cwd=recipe.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(its.fileno(), *fds),
                    close_fds=True,
                    start_new_session=True,  # as a worker
                )
            return cls(recipe, mark, child, lifeline, own.detach())
        except BaseException:
            lifeline.cut()
            raise
        finally:
            its.close()

    @property
    def pidfd(self) -> int:
        """Can be read when it has ended; -1 if there is no such descriptor."""
        return -1 if self._pidfd is None or not self._pidfd.is_open() else self._pidfd.fd

    def is_alive(self) -> bool:
        """Whether its process has not ended. Reaps it if it has."""
        return self.child.poll() is None

    def is_loaded(self) -> bool:
        """Whether it has imported what it is to import, and lives."""
        try:
            with self._socket() as end:
                word = end.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
            return bool(word == _HERE) and self.is_alive()
        except OSError:  # it has said nothing yet
            return False

    def answers(self) -> bool:
        """Whether it answers at this moment, and so will do what it is told."""
        try:
            with self._socket() as end:
                end.settimeout(_ANSWER_S)
                end.send(_ARE_YOU_THERE, _NO_SIGPIPE)
                return bool(end.recv(1) == _HERE and end.recv(1) == _HERE)
        except OSError:
            return False

    def become(self, words: Sequence[str], log_fd: int, handed: Mapping[str, int]) -> Child:
        """Make it the worker.

        Args:
            words: the script's arguments.
            log_fd: where stdout and stderr go.
            handed: descriptors that it gets, by the environment variables that say their numbers.

        Returns:
            Its process, which is the caller's to end from now on.

        Raises:
            OSError: it has ended.
        """
        text = json.dumps({"words": list(words), "variables": list(handed)}).encode()
        fds = array.array("i", [log_fd, *handed.values()])
        with self._socket() as end:
            end.settimeout(_SEND_S)
            end.sendmsg([_RUN], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)], _NO_SIGPIPE)
            end.sendall(text, _NO_SIGPIPE)
        self._is_ours = False
        self._close()
        return self.child

    @contextmanager
    def _socket(self) -> Iterator[Any]:
        """This end; as a raw socket, which no library replaces."""
        with self._lock:
            if not self._end.is_open():
                raise BrokenPipeError("the spare's socket is closed")
            end = _socket.socket(fileno=self._end.fd)
            try:
                yield end
            finally:
                end.detach()

    def _close(self) -> None:
        with self._lock:
            self.forget()

    def forget(self) -> None:
        """Close this process's descriptors. Takes no lock: in a forked child, nobody would release it."""
        self._end.close()
        if self._pidfd is not None:
            self._pidfd.close()

    def end(self) -> None:
        """End its process, and what that has started. May be called again. Does nothing in a forked child."""
        if os.getpid() != self._owner_pid or not self._is_ours:
            return
        if self.is_alive():
            try:
                os.killpg(self.child.pid, signal.SIGKILL)  # it leads its group until it is reaped
            except ProcessLookupError:
                pass
            self.child.end()
        self.lifeline.cut()
        self._close()

    def __del__(self) -> None:
        if hasattr(self, "_is_ours"):
            self.end()
