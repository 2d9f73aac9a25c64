"""Runs small programs in every possible interleaving, with the store buffers of x86-TSO.

A program is a function that uses a :class:`Machine`'s memory. It runs from its beginning again for each step, with the
values that its operations have had so far. So it must be deterministic, and may be real code whose memory is replaced.

Each program's stores wait in a buffer of its own, in their order, and reach memory at any later moment. The program
itself sees them at once. A fence waits until the buffer is empty, and so does an atomic exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Machine", "Program"]

Program = Callable[["Machine", list[Any]], None]  # the list is the program's log
Address = Hashable
_Buffer = tuple[tuple[int, Any], ...]  # places in memory, and values
_State = tuple[tuple[Any, ...], tuple[_Buffer, ...], tuple[int, ...]]  # memory, buffers, where each program is

_FINISHED: Final = object()


@dataclass(frozen=True)
class _Store:
    place: int
    value: Any


@dataclass(frozen=True)
class _Load:
    place: int


@dataclass(frozen=True)
class _Exchange:
    """Waits until the value is as wanted, and replaces it in one step. Returns the value before."""

    place: int
    replace: Callable[[Any], Any]
    is_wanted: Callable[[Any], bool]


class _Fence:
    pass


_FENCE: Final = _Fence()


@dataclass(frozen=True)
class _Join:
    program: int


class _Pause(BaseException):
    """A program has come to an operation that it was not given the result of."""


class _Point:
    """Where a program is.

    Attributes:
        results: of its operations so far.
        operation: its next one.
        log: what it has logged.
        after: by the next result, the number of the point after it.
    """

    __slots__ = ("after", "log", "operation", "program", "results")

    def __init__(self, program: int, results: tuple[Any, ...], operation: Any, log: list[Any]) -> None:
        self.program = program
        self.results = results
        self.operation = operation
        self.log = log
        self.after: dict[Any, int] = {}


@dataclass
class Machine:
    """Memory that several programs share.

    Args:
        initial: the values that are not 0 at first.
        constants: addresses to which no program stores.
        stored_by: the only program that stores to an address. When it has ended, loads there are no longer tried in
            every order.

    Attributes:
        running: the number of the program that runs.
        states: how many states were looked at.
    """

    initial: dict[Address, Any] = field(default_factory=dict)
    constants: frozenset[Address] = frozenset()
    stored_by: dict[Address, int] = field(default_factory=dict)
    running: int = 0
    states: int = 0
    _results: tuple[Any, ...] = ()
    _place: int = 0
    _milestone: tuple[int, Any] = (-1, None)
    _programs: list[Program] = field(default_factory=list)
    _points: list[_Point] = field(default_factory=list)
    _known: dict[Any, int] = field(default_factory=dict)  # points that are as good as others
    _places: dict[Address, int] = field(default_factory=dict)  # in memory
    _memory: list[Any] = field(default_factory=list)  # at first
    _storers: list[int | None] = field(default_factory=list)  # by place

    # -- what a program may do ------------------------------------------------------------------------------------

    def _do(self, operation: Any) -> Any:
        if self._place == len(self._results):
            raise _Pause(operation)
        self._place += 1
        return self._results[self._place - 1]

    def load(self, address: Address) -> Any:
        if address in self.constants:
            return self.initial.get(address, 0)
        return self._do(_Load(self._place_of(address)))

    def store(self, address: Address, value: Any) -> None:
        assert address not in self.constants
        self._do(_Store(self._place_of(address), value))

    def fence(self) -> None:
        self._do(_FENCE)

    def exchange(
        self, address: Address, replace: Callable[[Any], Any], is_wanted: Callable[[Any], bool] = lambda _: True
    ) -> Any:
        return self._do(_Exchange(self._place_of(address), replace, is_wanted))

    def wait_for(self, address: Address, is_wanted: Callable[[Any], bool]) -> Any:
        """Sleep until a value is as wanted."""
        return self.exchange(address, lambda value: value, is_wanted)

    def join(self, program: int) -> None:
        """Wait until another program has ended, and all its stores have reached memory."""
        self._do(_Join(program))

    def milestone(self, *key: Any) -> None:
        """Say that what the program does from here on depends on this key only, and not on what it has read before.

        The key names the place in the program too. So fewer states are to be looked at: of all ways that lead here, one
        goes on.
        """
        self._milestone = self._place, key

    def _place_of(self, address: Address) -> int:
        place = self._places.get(address)
        if place is None:
            place = self._places[address] = len(self._memory)
            self._memory.append(self.initial.get(address, 0))
            self._storers.append(self.stored_by.get(address))
        return place

    # -- all interleavings ----------------------------------------------------------------------------------------

    def explore(self, programs: list[Program], check: Callable[[list[list[Any]]], None]) -> None:
        """Run the programs in all interleavings; call ``check`` with the logs wherever none of them can go on.

        Raises:
            AssertionError: of ``check``.
        """
        self._programs = programs
        self._points, self._known = [], {}
        count = len(programs)
        starts = tuple(self._point(program, ()) for program in range(count))
        first: _State = (tuple(self._memory), ((),) * count, starts)
        seen, left = {first}, [first]
        while left:
            state = left.pop()
            self.states += 1
            following = self._following(*state)
            if not following:
                check([self._points[point].log for point in state[2]])
            for each in following:
                if each not in seen:
                    seen.add(each)
                    left.append(each)

    def _point(self, program: int, results: tuple[Any, ...]) -> int:
        """The number of the point at which a program is with these results."""
        log: list[Any] = []
        self.running, self._results, self._place, self._milestone = program, results, 0, (-1, None)
        operation: Any = _FINISHED
        try:
            self._programs[program](self, log)
        except _Pause as pause:
            operation = pause.args[0]
        key: Any = program, results
        if operation is _FINISHED:
            key = program, _FINISHED, repr(log)
        elif self._milestone[0] == len(results):
            key = program, self._milestone[1], repr(log)
        number = self._known.get(key)
        if number is None:
            number = self._known[key] = len(self._points)
            self._points.append(_Point(program, results, operation, log))
        return number

    def _after(self, points: tuple[int, ...], program: int, result: Any) -> tuple[int, ...]:
        """The points when a program has had the result of its operation."""
        point = self._points[points[program]]
        number = point.after.get(result)
        if number is None:
            number = point.after[result] = self._point(program, (*point.results, result))
        return (*points[:program], number, *points[program + 1 :])

    def _following(
        self, memory: tuple[Any, ...], buffers: tuple[_Buffer, ...], points: tuple[int, ...]
    ) -> list[_State]:
        if len(memory) < len(self._memory):  # a program has come to an address that none had used before
            memory = (*memory, *self._memory[len(memory) :])
        operations = [self._points[point].operation for point in points]
        for program, operation in enumerate(operations):  # what no other program can notice is done first
            kind, buffer = type(operation), buffers[program]
            if kind is _Store:
                added = (*buffer, (operation.place, operation.value))
                return [(memory, _with(buffers, program, added), self._after(points, program, None))]
            if kind is _Fence and not buffer:
                return [(memory, buffers, self._after(points, program, None))]
            if kind is _Load and buffer:
                own = [value for place, value in buffer if place == operation.place]
                if own:
                    return [(memory, buffers, self._after(points, program, own[-1]))]
            if kind is _Load:
                storer = self._storers[operation.place]
                if storer is not None and (
                    storer == program or (operations[storer] is _FINISHED and not buffers[storer])
                ):
                    return [(memory, buffers, self._after(points, program, memory[operation.place]))]
        following: list[_State] = []
        for program, operation in enumerate(operations):
            kind, buffer = type(operation), buffers[program]
            if kind is _Load:
                following.append((memory, buffers, self._after(points, program, memory[operation.place])))
            elif kind is _Exchange and not buffer:
                value = memory[operation.place]
                if operation.is_wanted(value):
                    changed = _with(memory, operation.place, operation.replace(value))
                    following.append((changed, buffers, self._after(points, program, value)))
            elif kind is _Join and operations[operation.program] is _FINISHED and not buffers[operation.program]:
                following.append((memory, buffers, self._after(points, program, None)))
            if buffer:
                place, value = buffer[0]
                following.append((_with(memory, place, value), _with(buffers, program, buffer[1:]), points))
        return following


def _with(values: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place + 1 :])
