"""Telling those who share memory with another process of a fork: the child has it too, and nobody to say so."""

from __future__ import annotations

import os
import weakref
from typing import Any

__all__ = ["Forkable"]

_members: weakref.WeakSet[Any] = weakref.WeakSet()


class Forkable:
    """Hears of forks, on both sides of them, from its making on.

    Attributes:
        is_foreign: this process is a child of the one that made it: whatever it stands for is the parent's.
    """

    is_foreign = False

    def __init__(self) -> None:
        _members.add(self)

    def forked_in_parent(self) -> None:
        """There is going to be a child, or there is one now."""


def _all() -> list[Forkable]:
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
    # Before too: another thread may let go of a view, which the child has, before this one is told.
    os.register_at_fork(before=_in_parent, after_in_parent=_in_parent, after_in_child=_in_child)
