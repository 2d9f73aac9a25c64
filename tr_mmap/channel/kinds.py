"""Which channels there are. Never imports an implementation before it is chosen."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final, Protocol

from ..errors import BadMessage
from ..native import KEEPS_STORES_IN_ORDER
from ..protocol.legacy import LEGACY
from .interface import Channel

__all__ = ["CHANNEL_NAMES", "ChannelKind", "channel_kind", "usable_channel", "warn_about_order"]

CHANNEL_NAMES: Final = ("mapped", "files", LEGACY)


class ChannelKind(Protocol):
    """How the two ends of a channel are made.

    Attributes:
        has_bell: as in ``Channel``.
    """

    has_bell: bool

    def new_doorbells(self) -> list[str]:
        """Names for :meth:`create`. The manifest has them before they exist, so that a sweep finds all of them."""

    def create(self, directory: str, doorbells: Sequence[str]) -> Channel:
        """Make the controller's end, over new control files that replace any earlier ones.

        Args:
            directory: the session directory.
            doorbells: from :meth:`new_doorbells`.
        """

    def attach(self, directory: str, doorbells: Sequence[str]) -> Channel:
        """Make the worker's end, over the controller's files.

        Args:
            directory: the session directory.
            doorbells: from the manifest.
        """


@functools.cache
def warn_about_order() -> None:
    """Say once in a process, through the logger ``tr_mmap``, what plain Python costs on this machine, if it does."""
    if not KEEPS_STORES_IN_ORDER:
        import logging  # here: few processes warn, and each start of a worker would pay for it
        import platform

        logging.getLogger("tr_mmap").warning(
            "tr_mmap runs without its C extension on a machine that is not x86 (%s): each tensor gets a new segment, "
            'and messages go over channel="files"; build the extension to be faster',
            platform.machine(),
        )


def usable_channel(name: str) -> str:
    """The channel to use for the wanted one: not ``"mapped"`` where plain Python cannot keep its stores in order."""
    warn_about_order()
    return "files" if name == "mapped" and not KEEPS_STORES_IN_ORDER else name


def channel_kind(name: str) -> ChannelKind:
    """The channel of that name.

    Raises:
        BadMessage: there is no such channel.
    """
    if name == "mapped":
        from .mapped import MappedChannel

        return MappedChannel
    if name == "files":
        from .files import FileChannel

        return FileChannel
    if name == LEGACY:
        from .legacy import LegacyChannel

        return LegacyChannel
    raise BadMessage(f"channel is {name[:80]!r}; it is one of {', '.join(CHANNEL_NAMES)}", detail=name[:80])
