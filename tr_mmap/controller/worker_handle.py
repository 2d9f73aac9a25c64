"""One worker, as its controller sees it, from its start until it is gone. Knows nothing of requests."""

from __future__ import annotations

from ..channel.interface import Channel
from ..native import ControllerFastPath
from ..processes.spawn import WorkerProcess
from ..processes.watch import PeerWatch
from ..wire.waits import TERMINATE_GRACE_S

__all__ = ["WorkerHandle"]


class WorkerHandle:
    """A running worker and this side's ends of what connects to it.

    Attributes:
        channel: this side of the channel.
        process: the worker's process.
        watch: notices the worker's death and wakes the channel.
        fast_path: a request and its answer in one call of the extension; None where there is no such way.
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
        """End what lives of the worker and its children, and release everything."""
        try:
            # Children of a worker that has ended had their time: it could have waited for them.
            self.process.terminate_tree(grace_s=TERMINATE_GRACE_S if self.process.is_alive() else 0.0)
        finally:
            self.watch.stop()
            self.process.forward_log(False)
            self.channel.close()
