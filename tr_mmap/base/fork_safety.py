"""Tells objects of a fork, because a child has its parent's shared memory and locks. Never forks."""

from __future__ import annotations

import os
import weakref
from typing import Any

__all__ = ["ForkAware"]

_members: weakref.WeakSet[Any] = weakref.WeakSet()


class ForkAware:
    """Registers itself for forks when it is created.

    Attributes:
        is_foreign: this process is a forked child of the one that made the object. The object's resources belong to
            the parent.
    """

    is_foreign = False

    def __init__(self) -> None:
        _members.add(self)

    def forked_in_parent(self) -> None:
        """Called in the parent, just before a fork and again just after it."""

    def forked_in_child(self) -> None:
        """Called in the child, where ``is_foreign`` is true by then."""


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
        member.forked_in_child()


if hasattr(os, "register_at_fork"):
    # Before the fork too: between the fork and the hook after it, another thread may drop a view that the child has.
    os.register_at_fork(before=_in_parent, after_in_parent=_in_parent, after_in_child=_in_child)
