"""The sandboxes of a gateway: one for each kind and limits that somebody uses. Knows no HTTP."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from ..sandbox import Algorithm, Limits, Sandbox, SandboxBroken
from ..sandbox.steps import SLOW, Steps
from .logs import log

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BoxKey", "Boxes"]

_T = TypeVar("_T")
_USELESS: Final = ("broken", "closed")  # states in which a sandbox runs nothing any more


@dataclass(frozen=True, slots=True)
class BoxKey:
    """Which sandbox an algorithm runs in.

    Attributes:
        kind: of the sandbox.
        limits: of each run.
        preload: modules that its algorithms find imported, beside those of the configuration.
        packages: directories of packages that they can import. So two environments never meet in one process.
    """

    kind: str
    limits: Limits
    preload: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.kind, self.limits, self.preload, self.packages)))

    def __hash__(self) -> int:  # limits have many fields, and each run asks several times
        return self._hash


class Boxes:
    """Makes sandboxes when they are first needed, and closes those that were not needed for longest: of the owner who
    has most, so that nobody's are closed because somebody else has wishes without end.

    One that can run nothing any more, because its zygote was killed say, is replaced. Threads may use it at once. None
    waits for another one's sandbox.

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

    def steps(self, key: BoxKey, of: Callable[[Sandbox], Steps[_T]], owner: str = "") -> Steps[_T]:
        """Go through steps of the sandbox of a key; see :meth:`using`. The first is slow if it has to be made."""
        with self._lock:
            place = self._places.get(key)
            box = place.box if place is not None and not place.making.locked() else None
        if box is None or box.health().state in _USELESS:
            yield SLOW
        box, place = self._take(key, owner)
        try:
            return (yield from of(box))
        finally:
            unused = self._give(place)
            if unused:  # this may be the thread of a loop
                threading.Thread(target=_close_all, args=(unused,), name="tr_mmap-close").start()

    @contextmanager
    def using(self, key: BoxKey, owner: str = "") -> Iterator[Sandbox]:
        """The sandbox of a key, which is not closed meanwhile, but by :meth:`close`.

        Args:
            key: which.
            owner: for whose sake it is made, if it has to be; empty for the gateway's own.

        Raises:
            SandboxBroken: all were closed; and as :class:`Sandbox`.
            MissingPackage, ValueError: as :class:`Sandbox`.
        """
        box, place = self._take(key, owner)
        try:
            yield box
        finally:
            _close_all(self._give(place))

    def _take(self, key: BoxKey, owner: str) -> tuple[Sandbox, _Place]:
        with self._lock:
            self._check_open()
            place = self._places.setdefault(key, _Place(owner))
            self._places.move_to_end(key)
            place.users += 1
        former = None
        try:
            with place.making:
                box = place.box
                if box is None or box.health().state in _USELESS:
                    former, box = box, self._make(key)
                    place.box = box
            self._check_open()  # close() has not seen one that was being made
        except BaseException:
            _close_all(self._give(place))
            raise
        finally:
            if former is not None:
                _close_all([former])
        return box, place

    def _give(self, place: _Place) -> list[Sandbox]:
        """Those to be closed."""
        with self._lock:
            place.users -= 1
            return self._take_unused()

    def _check_open(self) -> None:
        if self._is_closed:
            raise SandboxBroken("the sandboxes of this gateway were closed, because it ends")

    def _take_unused(self) -> list[Sandbox]:
        """Those to be closed: unused, and dropped, or never made, or one too many."""
        useless = [
            key
            for key, place in self._places.items()
            if place.users == 0 and (self._is_closed or place.is_dropped or place.box is None)
        ]
        taken = [self._places.pop(key).box for key in useless]
        while len(self._places) > self._most:
            counts = Counter(place.owner for place in self._places.values())
            unused = [(key, counts[place.owner]) for key, place in self._places.items() if place.users == 0]
            if not unused:
                break
            key, _ = max(unused, key=lambda each: each[1])  # of equals the first, which was not used for longest
            taken.append(self._places.pop(key).box)
        return [each for each in taken if each is not None]

    def drop(self, is_dropped: Callable[[BoxKey], bool]) -> None:
        """Close those of some keys that are not in use; the others are closed when they are not any more."""
        with self._lock:
            for key, place in self._places.items():
                place.is_dropped |= is_dropped(key)
            unused = self._take_unused()
        _close_all(unused)

    def unregister(self, kept: Iterable[tuple[BoxKey, Algorithm]]) -> None:
        """End processes that are kept of some algorithms, each in the sandbox of its key."""
        of_key: dict[BoxKey, list[Algorithm]] = {}
        for key, algorithm in kept:
            of_key.setdefault(key, []).append(algorithm)
        for key, box in self.open_boxes():
            for algorithm in of_key.get(key, ()):
                with suppress(SandboxBroken):  # it was closed meanwhile, and they ended with it
                    box.unregister(algorithm)

    def open_boxes(self) -> list[tuple[BoxKey, Sandbox]]:
        """Those that are there now."""
        with self._lock:
            return [(key, place.box) for key, place in self._places.items() if place.box is not None]

    def close(self) -> None:
        """Close all. What runs in one gets SandboxBroken. Idempotent."""
        with self._lock:
            self._is_closed = True
            boxes = [place.box for place in self._places.values() if place.box is not None]
            self._take_unused()  # the others are closed again by those that use them, or make them now
        _close_all(boxes)


class _Place:
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.making = threading.Lock()
        self.box: Sandbox | None = None
        self.users = 0
        self.is_dropped = False


def _close_all(boxes: Iterable[Sandbox]) -> None:
    """Close some. That a process does not end is no fault of the run that comes here."""
    for each in boxes:
        try:
            each.close()
        except SandboxBroken as error:
            log.error("a sandbox does not end", extra={"reason": str(error)})
