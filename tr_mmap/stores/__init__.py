"""Where a session's tensors are: one interface for each side, two implementations.

``segments`` (default): recycled shared memory, mapped by both sides. ``files``: plain v1 files for the older dialect,
whose peers delete their inputs after reading, overwrite files in place, and read nothing else.
"""

from __future__ import annotations

from ..dialect import LEGACY
from ..errors import BadMessage
from ..manifest import StoreOptions
from .base import ControllerStore, WorkerStore
from .files import FileControllerStore, FileWorkerStore
from .segments import SegmentControllerStore, SegmentWorkerStore

__all__ = ["ControllerStore", "WorkerStore", "check_options", "controller_store", "worker_store"]


def check_options(channel: str, *, auth: bool, checksum: bool) -> None:
    """Refuse what a channel's peers cannot do.

    Raises:
        BadMessage: a peer of the older dialect neither proves who it is nor stores checksums.
    """
    for name, is_wanted in (("auth", auth), ("checksum", checksum)):
        if is_wanted and channel == LEGACY:
            raise BadMessage(
                f"{name}=True is not for channel={LEGACY!r}: the older dialect has no such thing", detail=name
            )


def controller_store(channel: str, directory: str, options: StoreOptions) -> ControllerStore:
    """The controller's end of the store that goes with a channel."""
    if channel == LEGACY:
        return FileControllerStore(directory, budget_nbytes=options.budget_nbytes)
    return SegmentControllerStore(directory, options)


def worker_store(channel: str, directory: str, options: StoreOptions = StoreOptions()) -> WorkerStore:  # noqa: B008
    """The worker's end of the store that goes with a channel."""
    if channel == LEGACY:
        return FileWorkerStore(directory)
    return SegmentWorkerStore(directory, options)
