"""Tells objects of a fork, because a child has its parent's shared memory and locks. Never forks.

Python runs hooks around a fork as any code: a signal handler that raises may end a hook at any point, even before its
first line, and Python only prints what it raised. So hooks are registered with :func:`at_fork`.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from .unpatched import unpatched

__all__ = ["ForkAware", "at_fork", "for_each", "this_process"]

_T = TypeVar("_T")
_ATTEMPTS: Final = 10  # one interrupt is likely, ten in a row are an error of the code
_get_ident: Final[Any] = unpatched("_thread", "get_ident")


def for_each(members: Iterable[_T], action: Callable[[_T], None]) -> None:
    """Call an action for each member; again if a signal handler's exception ended it. Raises that exception at the end.

    Args:
        members: the arguments of the calls.
        action: may be called twice for a member.
    """
    raised: BaseException | None = None
    for member in members:
        for _ in range(_ATTEMPTS):
            try:
                action(member)
                break
            except BaseException as error:
                raised = error
    if raised is not None:
        raise raised


def at_fork(**hooks: Callable[[], None]) -> None:
    """Register hooks as ``os.register_at_fork`` does; one that a signal handler's exception has ended is run again.

    Args:
        hooks: by the names that ``os.register_at_fork`` has; each may be run twice.
    """
    if not hasattr(os, "register_at_fork"):
        return
    for moment, hook in hooks.items():
        first, second = _twice(hook)
        for each in (second, first) if moment == "before" else (first, second):  # the last one before runs first
            os.register_at_fork(**{moment: each})


def _twice(hook: Callable[[], None]) -> tuple[Callable[[], None], Callable[[], None]]:
    """A hook, and another that does the same if the first one did not come to its end."""
    finished: set[int] = set()  # by thread

    def first() -> None:
        hook()
        finished.add(_get_ident())

    def second() -> None:
        if (me := _get_ident()) in finished:
            finished.discard(me)
        else:
            hook()

    return first, second


class _ThisProcess:
    """The process that runs this code. A signal handler may fork between any two steps of ours.

    If the child's handler then raises, ``sys.exit()`` say, the interrupted call unwinds in the child too. What it would
    undo there is its parent's. So code keeps the mark when its work begins, and undoes the work only if the mark is
    still the same. To compare marks is no call, so no signal handler runs between the comparison and the system call
    after it. ``os.getpid()`` would be a call.

    Attributes:
        mark: an object; another one in a forked child.
    """

    __slots__ = ("mark",)

    def __init__(self) -> None:
        self.mark = object()


this_process: Final = _ThisProcess()


class ForkAware:
    """Registers itself for forks when it is created. A subclass need not be hashable.

    The hooks may be called as soon as it is registered. So a subclass sets what its hooks use before it calls this
    ``__init__``.

    Attributes:
        is_foreign: this process is a forked child of the one that made the object. The object's resources belong to
            the parent.
    """

    is_foreign = False

    def __init__(self) -> None:
        _members[id(self)] = self

    def forked_in_parent(self) -> None:
        """Called in the parent, just before a fork and again just after it."""

    def forked_in_child(self) -> None:
        """Called in the child, where ``is_foreign`` is true by then."""


# No WeakSet: a user's dataclass that is a worker compares by value, and has no hash.
_members: weakref.WeakValueDictionary[int, ForkAware] = weakref.WeakValueDictionary()


def _all() -> list[ForkAware]:
    while True:
        try:
            return list(_members.values())
        except RuntimeError:  # another thread has just added one
            continue


def _in_parent() -> None:
    for_each(_all(), lambda member: member.forked_in_parent())


def _tell_in_child(member: ForkAware) -> None:
    member.is_foreign = True
    member.forked_in_child()


def _in_child() -> None:
    for_each(_all(), _tell_in_child)


def _mark_child() -> None:
    this_process.mark = object()


at_fork(after_in_child=_mark_child)  # the first of all hooks: the others may ask for the mark
# Before the fork too: between the fork and the hook after it, another thread may drop a view that the child has.
at_fork(before=_in_parent, after_in_parent=_in_parent, after_in_child=_in_child)
