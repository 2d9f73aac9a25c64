"""Which lease lines of a pool's segments have a reader: joining, leaving, and finding the dead. Stores no lease.

A pool's page of readers, ``<stem>.readers``, is beside its segments ``<stem>_<n>.tsr``. Byte i says whether line i has
a reader. For as long as it has one, the reader holds the lock of byte i: a lock of its open file description, and so of
its mapping of the page. The kernel releases it when no process has that mapping any more. Children that the reader
forked have it, also after they have closed all descriptors.

::

    reader                                         owner
    lock byte i, else try the next line            for each i with byte i = 1: lock byte i, else i lives
    byte i == 1 ?  a dead one's: try the next      mark every segment whose line i is not free: never filled again;
                                                   and free line i there
    byte i = 1                                     byte i = 0
    …leases in line i…                             unlock byte i
    byte i = 0, when none is left
    unmap the page, which unlocks byte i

So no line gets a new reader before the owner has looked at what the last one left there.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ..base import system
from ..base.fork_safety import this_process
from ..base.system import KnownDir
from ..errors import HostilePath
from ..native import set_member
from ..wire.header import MAX_READERS
from ..wire.names import READERS_SUFFIX
from ..wire.segments import HEAD_NBYTES

__all__ = ["LeaseLine", "ReadersPage"]


class ReadersPage:
    """The owner's side.

    Args:
        directory: of the pool.
        stem: what the names of its files begin with.

    Attributes:
        members: the page's bytes.

    Raises:
        OutOfSpace, SystemLimit: as when a segment is made.
    """

    def __init__(self, directory: KnownDir, stem: str) -> None:
        self._path = os.path.join(directory.path, stem + READERS_SUFFIX)
        directory.check()
        # A signal handler may do all this while an interrupted call does it: then both have the same file. For the same
        # reason it stays where this fails; it goes with the directory.
        fd = system.open_or_create(self._path)
        try:
            system.allocate(fd, HEAD_NBYTES, directory=directory.path)
            self.members = system.map_write(fd, HEAD_NBYTES)
            self._inode = os.fstat(fd).st_ino
        finally:
            system.close(fd)

    def reap(self, taint: Callable[[int], None]) -> None:
        """Find the lines whose readers have died, and let others have them.

        Args:
            taint: called with the number of such a line; marks each segment in which that line is not free. The line is
                still the dead reader's then.
        """
        members = self.members
        lines = [line for line in range(MAX_READERS) if members[line]]
        if not lines:
            return
        try:
            fd = system.open_file(self._path, write=True)
        except OSError:
            return  # somebody has removed it, or there is no descriptor; those who live keep what they have
        try:
            if os.fstat(fd).st_ino != self._inode:
                return
            for line in lines:
                if system.try_lock_open_byte(fd, line):
                    if members[line]:  # else it has left since
                        taint(line)  # before anybody else can join on this line
                        set_member(members, line, False)
                    system.unlock_open_byte(fd, line)
        finally:
            system.close(fd)

    def remove(self, owner: object) -> None:
        """Remove the name; does nothing in a child that was forked since ``owner`` was the process's mark."""
        try:
            system.unlink(self._path, owner=owner)
        except (OSError, HostilePath):
            pass  # it is removed with the directory


class LeaseLine:
    """A reader's line in all segments of one pool, from :meth:`join` on until the object's end.

    Each segment that is mapped by way of it keeps it, and each view keeps its segment. So it ends after the last view.

    Attributes:
        number: of the line.
        is_pinned: a forked child may have a view, so the byte stays set.
    """

    __slots__ = ("__weakref__", "_owner", "_page", "is_pinned", "number")

    def __init__(self, page: memoryview, number: int) -> None:
        self._owner = this_process.mark
        self._page: memoryview | None = page
        self.number = number
        self.is_pinned = False

    @classmethod
    def join(cls, directory: str, stem: str) -> LeaseLine | None:
        """A line that was free; None if there is none, or if the pool has no page of readers.

        Args:
            directory: of the pool, or of a link to its page.
            stem: of the page's name.

        Raises:
            HostilePath: the page is not a file of this user's own.
            SystemLimit: no mapping or descriptor can be had.
        """
        try:
            fd = system.open_private_file(os.path.join(directory, stem + READERS_SUFFIX), write=True)
        except FileNotFoundError:
            return None
        try:
            if system.file_nbytes(fd) < HEAD_NBYTES:
                return None
            page = system.map_write(fd, HEAD_NBYTES)  # keeps the lock when the descriptor is closed
            for line in range(MAX_READERS):
                if not system.try_lock_open_byte(fd, line):
                    continue
                if page[line]:
                    system.unlock_open_byte(fd, line)
                    continue
                set_member(page, line, True)
                return cls(page, line)
            return None
        finally:
            system.close(fd)

    def let_go(self) -> None:
        """In a forked child without views: the line is the parent's alone."""
        self._page = None

    def leave(self) -> None:
        """Give the line back, unless a forked child may have a view. There must be no lease of it left."""
        page, self._page = self._page, None
        if page is not None and self._owner is this_process.mark and not self.is_pinned:
            set_member(page, self.number, False)  # and then the end of the mapping releases the lock

    def __del__(self) -> None:
        self.leave()
