"""The controller's handle of one worker, from its start until it is gone. Knows nothing of requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from ..channel.interface import Channel
from ..errors import TRException
from ..native import ControllerFastPath
from ..processes.spawn import WorkerProcess
from ..processes.watch import PeerWatch
from ..protocol.status import Status
from ..wire.waits import FAREWELL_GRACE_S, TERMINATE_GRACE_S

__all__ = ["WorkerHandle"]


class End(NamedTuple):
    """How a worker ended.

    Attributes:
        exit_code: None if unknown.
        log_tail: the last lines of its output, without what came before an error that it has answered.
        has_printed: whether it has printed anything, also if that is not in ``log_tail``.
        was_ready: whether it ever was ready.
        lives_on: whether only its service has ended: its process waits for its own threads or processes.
    """

    exit_code: int | None
    log_tail: str
    has_printed: bool
    was_ready: bool
    lives_on: bool


class WorkerHandle:
    """A running worker, and this side of the channel to it.

    Attributes:
        channel: this side of the channel.
        process: the worker's process.
        watch: notices the worker's death and wakes the channel.
        fast_path: a request and its response in one call of the extension; None if there is no fast path.
        sent_before: how many requests the session had sent before this worker started.
        is_told_to_exit: whether the request to exit is in its ring, where it stays until the worker comes to it.

    Args:
        channel: this side of the channel.
        process: the worker's process.
        on_end: called from another thread when the worker has ended.
    """

    fast_path: ControllerFastPath | None = None
    sent_before = 0
    is_told_to_exit = False
    _has_said_farewell: bool | None = None  # None until the end
    _farewell_s: float | None = None  # when this side first saw that the worker serves no more
    _has_ended_service = False  # it said farewell, and its process did not end soon after
    _is_ended = False  # by this side

    def __init__(self, channel: Channel, process: WorkerProcess, on_end: Callable[[], None]) -> None:
        self.channel = channel
        self.process = process
        self._on_end = on_end
        self._end: End | None = None
        self.watch = PeerWatch(process.identity, self._notify)

    def _notify(self) -> None:
        self.channel.wake()
        self._on_end()

    def is_over(self) -> bool:
        """Whether the worker has ended, or serves no more, or is given up."""
        return self.watch.is_dead or (self.channel.says_farewell() and self._is_farewell_old())

    def _is_farewell_old(self) -> bool:
        """Whether FAREWELL_GRACE_S have passed since its farewell: then its process waits for something else."""
        now_s = time.monotonic()
        if self._farewell_s is None:
            self._farewell_s = now_s
        if now_s - self._farewell_s < FAREWELL_GRACE_S:
            return False
        self._end_service()
        return True

    def _end_service(self) -> None:
        if not self._has_ended_service:
            self._has_ended_service = True
            self.give_up()

    def has_left(self) -> bool:
        """Whether the worker has ended, or serves no more. Waits a moment for a process that is just ending."""
        if not self.process.is_alive():
            return True
        if not self._has_ended_service:
            if not self.channel.says_farewell():
                return False
            if not self.process.wait(FAREWELL_GRACE_S):
                self._end_service()
        return True

    @property
    def lives_on(self) -> bool:
        """Whether it serves no more, and its process waits for threads or processes of its own."""
        return self._has_ended_service and self.process.is_alive()

    def how_it_ended(self) -> End:
        """How a worker that is over has ended. Kept for threads that ask later, when its files are gone."""
        end = self._end
        if end is None or (end.lives_on and not self._is_ended and not self.process.is_alive()):
            if not self._has_ended_service:
                self.process.wait(1.0)  # the watch may know it before the exit code is there
            lives_on = self.lives_on
            code = None if lives_on else self.process.exit_code
            has_printed = self.process.log_size().nbytes > 0
            end = self._end = End(code, self.process.log_tail(), has_printed, self._was_ready(), lives_on)
        return end

    def _was_ready(self) -> bool:
        try:
            return self.channel.read_status().status is not Status.STARTING
        except (TRException, OSError):
            return True  # somebody has replaced its status

    def has_settled(self) -> bool:
        """Whether it has been ready, or has ended. Any thread."""
        return self.watch.is_dead or self._was_ready()

    def has_ended_by_itself(self) -> bool:
        """Whether it has ended, and neither a signal nor this side has ended it; also after :meth:`end`."""
        by_itself = self.process.has_ended_by_itself
        # None: this program ignores SIGCHLD, or has reaped the worker itself. Then the worker's last status tells.
        if by_itself is not None:
            return by_itself
        return self.channel.says_farewell() if self._has_said_farewell is None else self._has_said_farewell

    def give_up(self) -> None:
        """End every wait for this worker, in whatever thread."""
        self.watch.deaths.append(self.process.identity)
        self._notify()

    def end(self) -> None:
        """End the worker and its children if they live, and release everything."""
        self._is_ended = True
        try:
            # No grace for children of a worker that has ended: the worker could have waited for them.
            self.process.terminate_tree(grace_s=TERMINATE_GRACE_S if self.process.is_alive() else 0.0)
        finally:
            self.watch.stop()
            if self._has_said_farewell is None:
                self._has_said_farewell = self.channel.says_farewell()
            self.process.forward_log(False)
            self.channel.close()
