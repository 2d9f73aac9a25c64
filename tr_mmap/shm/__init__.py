"""Segments: files on tmpfs that carry tensors, filled by one process, mapped by others, and used again.

The owner writes; readers, in other processes, read. The live line of a segment's header coordinates them without a
system call (``tr_mmap.tsr`` specifies its bytes)::

    owner                                  reader
    seq = 0            (no reader may acquire)
    all leases 0 and guest == 0 ?          lease = HELD        (before the check, so that the owner sees it)
    fill the payload                       seq == wanted, both copies ?  else release the lease, StaleTensor
    seq copy = n; seq = n                  read the payload for as long as any view of it lives
    name (segment, n) in a message         lease = 0           (when the last view is gone)

Each reader has a lease of its own. That of the session's own reader is in the live line. In a pool that several
sessions share, and in one whose tensors are handed on, each other reader has a *lease line*; ``readers.py`` says how it
gets one, and how the owner finds out that it has died.

A segment is filled again only when no tag, no message and no local array holds it and all its leases are free. If a
reader forked while it held a view, or if a guest has mapped it, the segment is never filled again. The owner *retires*
it and removes its name. The kernel frees the memory with the last mapping, in whatever way the processes end. So a
lease needs no lock that outlives a process, and a kill leaves no lock behind.

Thousands of small tensors share files: a *slab* has up to 256 segments, its slots, of 4096 bytes each. The reader needs
two mappings for all of them, one of the headers for writing and one of the file for reading. A pool makes slabs for
arguments and results only, and not before it has 16 small segments: a tag names a file, and a loan may get a tag.

As long as there is room, neither publishing nor receiving looks at all segments. The owner keeps the segments that a
reader still views apart from the free ones, and looks at a few of them when it needs a segment. The reader looks at a
few when it maps one.

Each side stores before it loads, with a full memory barrier between, so that at least one of them sees the other's
store. It stores what it publishes with release order, and loads what the other side publishes with acquire order.
:mod:`tr_mmap.native` does both; a C++ peer does the same.

This room knows no messages, no tags and no sessions.
"""
