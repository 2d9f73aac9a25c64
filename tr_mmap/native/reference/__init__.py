"""The extension's operations in plain Python. This package says what each means; one suite tests both.

Small messages take five to ten times as long as through the extension. The memory order is right on x86 only, where
the processor keeps plain stores in order; elsewhere no segment is filled again. Never takes a fast path.
"""

from __future__ import annotations

from .heartbeat import Heartbeat
from .lease_words import KEEPS_STORES_IN_ORDER, LeaseWords, set_member
from .memory import copy, learn_torch, make_twin, map_file, quick_load
from .mirror import Mirror
from .ring import Ring, has_as_many_colons
from .segments import FreeLists, OwnerSegment, ReaderSegment, drain, finished, freeze, loan_of, view_of
from .semaphore import Semaphore
from .traffic import Counters, Pending, SentResults, TurnWords

__all__ = [
    "KEEPS_STORES_IN_ORDER",
    "Counters",
    "FreeLists",
    "Heartbeat",
    "LeaseWords",
    "Mirror",
    "OwnerSegment",
    "Pending",
    "ReaderSegment",
    "Ring",
    "Semaphore",
    "SentResults",
    "TurnWords",
    "copy",
    "drain",
    "finished",
    "freeze",
    "has_as_many_colons",
    "learn_torch",
    "loan_of",
    "make_twin",
    "map_file",
    "quick_load",
    "set_member",
    "view_of",
]
