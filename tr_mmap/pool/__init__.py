"""Many workers for one script: requests are spread over them, and what dies is replaced.

This room starts sessions and sends requests by them. It knows nothing of segments, channels or processes; only one
thread of a pool, its dispatcher, changes what the pool knows.
"""

from __future__ import annotations

from .pool import SessionPool
from .stats import PoolWorkerStats, SessionPoolStats

__all__ = ["PoolWorkerStats", "SessionPool", "SessionPoolStats"]
