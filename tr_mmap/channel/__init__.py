"""How control messages and the status cross: one interface, two implementations.

``mapped`` (default): JSON lines in mapped files, posix_ipc semaphores as doorbells. ``files`` (portable): JSON files
put in place by rename, looked for at a falling rate. ``legacy``: such files in the older dialect. Tensors never pass
through a channel, only their names do.
"""

from __future__ import annotations

from ..dialect import LEGACY
from .base import Channel, Role
from .files import FileChannel
from .mapped import MappedChannel
from .older import OlderChannel

__all__ = ["CHANNELS", "Channel", "FileChannel", "MappedChannel", "OlderChannel", "Role"]

CHANNELS: dict[str, type[Channel]] = {"mapped": MappedChannel, "files": FileChannel, LEGACY: OlderChannel}
