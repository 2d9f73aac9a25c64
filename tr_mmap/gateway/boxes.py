"""The sandboxes of a gateway: one for each kind and limits that somebody uses. Knows no HTTP."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ..sandbox import Limits, Sandbox
from ..sandbox.steps import SLOW, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BoxKey", "Boxes"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BoxKey:
    """Which sandbox an algorithm runs in.

    Attributes:
        kind: of the sandbox.
        limits: of each run.
        read: directories that its algorithms may read: their dependencies, and their models.
    """

    kind: str
    limits: Limits
    read: tuple[str, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.kind, self.limits, self.read)))

    def __hash__(self) -> int:  # limits have many fields, and each run asks several times
        return self._hash


class Boxes:
    """Makes sandboxes when they are first needed, and closes those that were not needed for longest.

    Threads may use it at once. None waits for another one's sandbox.

    Args:
        make: a new sandbox.
        most: how many are kept; more may be there while that many are in use.
    """

    def __init__(self, make: Callable[[BoxKey], Sandbox], most: int) -> None:
        self._make = make
        self._most = most
        self._lock = threading.Lock()
        self._places: OrderedDict[BoxKey, _Place] = OrderedDict()  # those used last are last
        self._is_closed = False

    def steps(self, key: BoxKey, of: Callable[[Sandbox], Steps[_T]]) -> Steps[_T]:
        """Go through steps of the sandbox of a key, which is not closed meanwhile.

        Raises:
            SandboxBroken, MissingPackage, ValueError: as :class:`Sandbox`.
        """
        with self._lock:
            place = self._places.get(key)
            is_there = place is not None and place.box is not None
        if not is_there:
            yield SLOW
        box, place = self._take(key)
        try:
            return (yield from of(box))
        finally:
            unused = self._give(place)
            if unused:  # this may be the thread of a loop
                threading.Thread(target=_close_all, args=(unused,), name="tr_mmap-close").start()

    @contextmanager
    def using(self, key: BoxKey) -> Iterator[Sandbox]:
        """The sandbox of a key, which is not closed meanwhile.

        Raises:
            SandboxBroken, MissingPackage, ValueError: as :class:`Sandbox`.
        """
        box, place = self._take(key)
        try:
            yield box
        finally:
            _close_all(self._give(place))

    def _take(self, key: BoxKey) -> tuple[Sandbox, _Place]:
        with self._lock:
            place = self._places.setdefault(key, _Place())
            self._places.move_to_end(key)
            place.users += 1
        try:
            if place.box is None:
                with place.making:
                    if place.box is None:
                        place.box = self._make(key)
            return place.box, place
        except BaseException:
            _close_all(self._give(place))
            raise

    def _give(self, place: _Place) -> list[Sandbox]:
        """Those to be closed."""
        with self._lock:
            place.users -= 1
            return self._take_unused()

    def _take_unused(self) -> list[Sandbox]:
        """Those to be closed: unused, and one too many, or never made."""
        taken = []
        for key, place in list(self._places.items()):
            if place.users == 0 and (len(self._places) > self._most or self._is_closed or place.box is None):
                del self._places[key]
                if place.box is not None:
                    taken.append(place.box)
        return taken

    def open_boxes(self) -> list[tuple[BoxKey, Sandbox]]:
        """Those that are there now."""
        with self._lock:
            return [(key, place.box) for key, place in self._places.items() if place.box is not None]

    def close(self) -> None:
        """Close all. What runs in one gets SandboxBroken. Idempotent."""
        with self._lock:
            self._is_closed = True
            boxes = [place.box for place in self._places.values() if place.box is not None]
            self._places.clear()
        for each in boxes:
            each.close()


def _close_all(boxes: list[Sandbox]) -> None:
    for each in boxes:
        each.close()


class _Place:
    def __init__(self) -> None:
        self.making = threading.Lock()
        self.box: Sandbox | None = None
        self.users = 0
