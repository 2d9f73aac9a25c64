"""Segments: files on tmpfs that carry tensors, filled by one side, mapped by both, and used again.

One owner writes, one reader in the peer process looks. The live line of a segment's header coordinates them, without
a system call (``tr_mmap.tsr`` specifies its bytes)::

    owner                                  reader
    seq = 0            (nobody may enter)
    lease == 0 and guest == 0 ?            lease = HELD        (before the check, so that the owner sees it)
    fill the payload                       seq == wanted, both copies ?  else lease back, StaleTensor
    seq copy = n; seq = n                  look at the payload for as long as any view of it lives
    name (segment, n) in a message         lease = 0           (when the last view is gone)

A segment is filled again only when no tag, no message and no local array holds it and its lease is free. One whose
reader forked while it held a view, or that a stranger has mapped, is never filled again: it is *retired*, its name is
removed, and the kernel frees the memory with the last mapping, however its processes end. So a lease needs no lock
that outlives a process, and none can be left behind by a kill.

Each side stores before it looks, with a full memory barrier between, so that at least one of them sees the other; what
it publishes it stores with release, what it looks at it loads with acquire. :mod:`tr_mmap.native` does both, and says
what holds where it is not compiled; a C++ peer does the same.
"""

from __future__ import annotations

from .pool import PoolStats, Segment, SegmentPool
from .receiver import Receiver
from .tags import Tags

__all__ = ["PoolStats", "Receiver", "Segment", "SegmentPool", "Tags"]
