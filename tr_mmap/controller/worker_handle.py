"""The controller's handle of one worker, from its start until it is gone. Knows nothing of requests."""

from __future__ import annotations

from ..channel.interface import Channel
from ..native import ControllerFastPath
from ..processes.spawn import WorkerProcess
from ..processes.watch import PeerWatch
from ..wire.waits import TERMINATE_GRACE_S

__all__ = ["WorkerHandle"]


class WorkerHandle:
    """A running worker, and this side of the channel to it.

    Attributes:
        channel: this side of the channel.
        process: the worker's process.
        watch: notices the worker's death and wakes the channel.
        fast_path: a request and its response in one call of the extension; None if there is no fast path.
    """

    fast_path: ControllerFastPath | None = None

    def __init__(self, channel: Channel, process: WorkerProcess) -> None:
        self.channel = channel
        self.process = process
        self.watch = PeerWatch(process.identity, channel.wake)

    def is_over(self) -> bool:
        """Whether the worker has ended."""
        return self.watch.is_dead

    def end(self) -> None:
        """End the worker and its children if they live, and release everything."""
        try:
            # No grace for children of a worker that has ended: the worker could have waited for them.
            self.process.terminate_tree(grace_s=TERMINATE_GRACE_S if self.process.is_alive() else 0.0)
        finally:
            self.watch.stop()
            self.process.forward_log(False)
            self.channel.close()
