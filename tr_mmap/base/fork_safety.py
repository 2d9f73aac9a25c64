"""Who must be told of a fork: a child has its parent's shared memory and locks, and nobody else would say so."""

from __future__ import annotations

import os
import weakref
from typing import Any

__all__ = ["ForkAware"]

_members: weakref.WeakSet[Any] = weakref.WeakSet()


class ForkAware:
    """Registers itself for forks when it is created.

    Attributes:
        is_foreign: this process is a child of the one that made the object: what the object stands for is the parent's.
    """

    is_foreign = False

    def __init__(self) -> None:
        _members.add(self)

    def forked_in_parent(self) -> None:
        """There is going to be a child, or there is one now."""


def _all() -> list[ForkAware]:
    while True:
        try:
            return list(_members)
        except RuntimeError:  # another thread has just added one
            continue


def _in_parent() -> None:
    for member in _all():
        member.forked_in_parent()


def _in_child() -> None:
    for member in _all():
        member.is_foreign = True


if hasattr(os, "register_at_fork"):
    # Before too: another thread may drop a view, which the child still has, before this one is told.
    os.register_at_fork(before=_in_parent, after_in_parent=_in_parent, after_in_child=_in_child)
