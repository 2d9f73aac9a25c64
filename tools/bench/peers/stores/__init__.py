"""One class for each way to keep records, all behind the interface of :mod:`.base`. None imports its library early."""

from .bare import BareFaiss, BareLmdb, BareNumpy
from .base import StorePeer
from .ours import Ours
from .redis_server import RedisServer
from .sqlite import SqliteVec
from .vector_databases import Chroma, Lance, Mem0, Qdrant

__all__ = ["STORES", "StorePeer"]

STORES: dict[str, type[StorePeer]] = {
    each.key: each
    for each in (Ours, BareLmdb, BareNumpy, BareFaiss, RedisServer, SqliteVec, Lance, Qdrant, Chroma, Mem0)
}
