"""Which transfer goes with which channel. Never imports an implementation before it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from ..errors import BadMessage
from ..protocol.legacy import LEGACY
from ..wire.names import HAND_RESULT_PREFIX
from .interface import ControllerTransfer, WorkerTransfer
from .options import TransferOptions

if TYPE_CHECKING:
    from .shared import PoolAccess

__all__ = [
    "Device",
    "Views",
    "check_device",
    "check_options",
    "check_views",
    "controller_transfer",
    "hand_transfer",
    "import_transfer",
    "worker_transfer",
]

Views: TypeAlias = Literal["readonly", "copy_on_write"]
Device: TypeAlias = Literal["same"]
_VIEWS: Final = get_args(Views)
_SAME: Final = "same"


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


def check_views(views: object) -> None:
    """Refuse what is no kind of view, as an option.

    Raises:
        BadMessage: it is neither None nor a name in ``Views``.
    """
    if views is not None and (not isinstance(views, str) or views not in _VIEWS):
        names = " or ".join(map(repr, _VIEWS))
        raise BadMessage(
            f"views is {views!r:.80}; it must be {names}, or None for each framework's default", detail="views"
        )


def check_device(device: object) -> None:
    """Refuse what is no device for received tensors, as an option.

    Raises:
        BadMessage: it is neither None nor ``"same"``.
    """
    if device is not None and (not isinstance(device, str) or device != _SAME):
        raise BadMessage(
            f"device is {device!r:.80}; it must be {_SAME!r}, for the device where the sender had the tensor, or None "
            "for CPU memory",
            detail="device",
        )


def controller_transfer(
    channel: str,
    directory: str,
    options: TransferOptions,
    views: str | None = None,
    shared: PoolAccess | None = None,
    device: str | None = None,
) -> ControllerTransfer:
    """The controller's side of the transfer that goes with a channel.

    Args:
        channel: its name.
        directory: the session directory.
        options: how to keep tensors.
        views: what received tensors are.
        shared: the pool of this process; None if the session has a pool of its own.
        device: ``"same"`` to put received torch tensors where their senders had them.
    """
    if channel == LEGACY:
        from .legacy_files import LegacyControllerTransfer

        return LegacyControllerTransfer(directory, budget_nbytes=options.budget_nbytes, views=views)
    from .segments import SegmentControllerTransfer

    return SegmentControllerTransfer(directory, options, views, shared, moves_back=device == _SAME)


def worker_transfer(
    channel: str,
    directory: str,
    options: TransferOptions | None = None,
    views: str | None = None,
    shared: str = "",
    device: str | None = None,
) -> WorkerTransfer:
    """The worker's side of the transfer that goes with a channel. In the legacy dialect it gives copies, no views.

    Args:
        channel: its name.
        directory: the session directory.
        options: how to keep tensors.
        views: what fetched tensors are.
        shared: the directory of the pool of the controller's process; "" if the session has a pool of its own.
        device: as of :func:`controller_transfer`.
    """
    if channel == LEGACY:
        from .legacy_files import LegacyWorkerTransfer

        return LegacyWorkerTransfer(directory)
    from .segments import SegmentWorkerTransfer

    return SegmentWorkerTransfer(directory, options or TransferOptions(), views, shared, moves_back=device == _SAME)


def import_transfer(channel: str) -> None:
    """Import what :func:`worker_transfer` needs, so that it need not do so later."""
    if channel == LEGACY:
        from . import legacy_files  # noqa: F401
    else:
        from . import segments  # noqa: F401


def hand_transfer(directory: str) -> WorkerTransfer:
    """The worker's side of the transfer for requests that somebody writes by hand in a session of ours.

    A tag means the file ``<tag>.tsr``, which is what the controller sent last under that tag, or a file that somebody
    put there. The results are plain files ``by_hand_<i>.tsr``, which stay until the next such request. No result
    of the controller's own requests has such a name, so none is replaced.
    """
    from .legacy_files import LegacyWorkerTransfer

    return LegacyWorkerTransfer(directory, HAND_RESULT_PREFIX, may_be_v2=True)
