"""The controller's handle of one worker, from its start until it is gone. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..channel.interface import Channel
from ..errors import TRException
from ..native import ControllerFastPath
from ..processes.spawn import WorkerProcess
from ..processes.watch import PeerWatch
from ..protocol.status import Status
from ..wire.waits import TERMINATE_GRACE_S

__all__ = ["WorkerHandle"]


class End(NamedTuple):
    """How a worker ended.

    Attributes:
        exit_code: None if unknown.
        log_tail: the last lines of its output.
        was_ready: whether it ever was ready.
    """

    exit_code: int | None
    log_tail: str
    was_ready: bool


class WorkerHandle:
    """A running worker, and this side of the channel to it.

    Attributes:
        channel: this side of the channel.
        process: the worker's process.
        watch: notices the worker's death and wakes the channel.
        fast_path: a request and its response in one call of the extension; None if there is no fast path.

    Args:
        channel: this side of the channel.
        process: the worker's process.
        on_end: called from another thread when the worker has ended.
    """

    fast_path: ControllerFastPath | None = None

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
        """Whether the worker has ended, or is given up."""
        return self.watch.is_dead

    def how_it_ended(self) -> End:
        """Of a worker that is over. Threads that come later, when its files are gone, get what the first one read."""
        if self._end is None:
            self.process.wait(1.0)  # the watch may know it before the exit code is there
            self._end = End(self.process.exit_code, self.process.log_tail(), self._was_ready())
        return self._end

    def _was_ready(self) -> bool:
        try:
            return self.channel.read_status().status is not Status.STARTING
        except (TRException, OSError):
            return True  # somebody has replaced its status

    def give_up(self) -> None:
        """End every wait for this worker, in whatever thread."""
        self.watch.deaths.append(self.process.identity)
        self._notify()

    def end(self) -> None:
        """End the worker and its children if they live, and release everything."""
        try:
            # No grace for children of a worker that has ended: the worker could have waited for them.
            self.process.terminate_tree(grace_s=TERMINATE_GRACE_S if self.process.is_alive() else 0.0)
        finally:
            self.watch.stop()
            self.process.forward_log(False)
            self.channel.close()
