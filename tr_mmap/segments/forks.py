"""Telling pools and receivers of a fork: the child sees the same memory, with nobody to say when it stops looking."""

from __future__ import annotations

import os
import weakref
from typing import Any

__all__ = ["fork_hooks"]


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
