"""Knowing when the last view of a mapping is gone, without locks. Used by owners (loans) and readers (leases).

An array over a mapping keeps a memoryview alive as its base, and so does every view derived from it. A weak reference
to that memoryview is told of its death, in whatever thread and at whatever moment; all it does then is append itself
to a queue, in C, which its side empties the next time it works. So no callback ever runs our code.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Generic, TypeVar

__all__ = ["Anchor", "fork_hooks"]

T = TypeVar("T")


class Anchor(weakref.ref[memoryview], Generic[T]):
    """A weak reference that remembers whose mapping it watches."""

    __slots__ = ("holder",)
    holder: T

    # A weak reference hashes as its referent does, and a memoryview hashes its whole content.
    __hash__ = object.__hash__
    __eq__ = object.__eq__


class ForkHooks:
    """Tells every living pool and receiver of a fork, on both sides of it."""

    def __init__(self) -> None:
        self._members: weakref.WeakSet[Any] = weakref.WeakSet()
        if hasattr(os, "register_at_fork"):
            # Before too: another thread may let go of a view, which the child has, before this one is told.
            os.register_at_fork(before=self._in_parent, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def add(self, member: Any) -> None:
        self._members.add(member)

    def _in_parent(self) -> None:
        for member in self._all():
            member.forked_in_parent()

    def _in_child(self) -> None:
        for member in self._all():
            member.forked_in_child()

    def _all(self) -> list[Any]:
        while True:
            try:
                return list(self._members)
            except RuntimeError:  # another thread has just added one
                continue


fork_hooks = ForkHooks()
