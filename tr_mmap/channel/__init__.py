"""How control messages and the status cross: one interface, two implementations.

``mapped`` (default): JSON lines in mapped files, posix_ipc semaphores as doorbells. ``files`` (portable): JSON files
put in place by rename, looked for at a falling rate. Tensors never pass through a channel, only their names do.
"""

from __future__ import annotations

from .base import Channel, Role
from .files import FileChannel
from .mapped import MappedChannel

__all__ = ["CHANNELS", "Channel", "FileChannel", "MappedChannel", "Role"]

CHANNELS: dict[str, type[Channel]] = {"mapped": MappedChannel, "files": FileChannel}
