"""Which transfer goes with which channel. Never imports an implementation before it is needed."""

from __future__ import annotations

from ..errors import BadMessage
from ..protocol.legacy import LEGACY
from .interface import ControllerTransfer, WorkerTransfer
from .options import TransferOptions

__all__ = ["check_options", "controller_transfer", "hand_transfer", "worker_transfer"]


def check_options(channel: str, *, auth: bool, checksum: bool) -> None:
    """Refuse options that the peers of a channel do not have.

    Raises:
        BadMessage: one is wanted for the legacy channel: a legacy peer neither signs messages nor stores checksums.
    """
    for name, is_wanted in (("auth", auth), ("checksum", checksum)):
        if is_wanted and channel == LEGACY:
            raise BadMessage(
                f"{name}=True is not for channel={LEGACY!r}: the legacy dialect has no such thing", detail=name
            )


def controller_transfer(
    channel: str, directory: str, options: TransferOptions, views: str | None = None
) -> ControllerTransfer:
    """The controller's side of the transfer that goes with a channel."""
    if channel == LEGACY:
        from .legacy_files import LegacyControllerTransfer

        return LegacyControllerTransfer(directory, budget_nbytes=options.budget_nbytes, views=views)
    from .segments import SegmentControllerTransfer

    return SegmentControllerTransfer(directory, options, views)


def worker_transfer(channel: str, directory: str, options: TransferOptions | None = None) -> WorkerTransfer:
    """The worker's side of the transfer that goes with a channel."""
    if channel == LEGACY:
        from .legacy_files import LegacyWorkerTransfer

        return LegacyWorkerTransfer(directory)
    from .segments import SegmentWorkerTransfer

    return SegmentWorkerTransfer(directory, options or TransferOptions())


def hand_transfer(directory: str, session: WorkerTransfer) -> WorkerTransfer:
    """The worker's side of the transfer for requests that somebody writes by hand.

    Args:
        directory: the session directory.
        session: the session's own transfer, whose tags such a request may name.
    """
    from .by_hand import HandTransfer

    return HandTransfer(directory, session)
