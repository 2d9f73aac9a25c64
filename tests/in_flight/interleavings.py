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
_Buffer = tuple[tuple[Address, Any], ...]

_FINISHED: Final = object()


@dataclass(frozen=True)
class _Store:
    address: Address
    value: Any


@dataclass(frozen=True)
class _Load:
    address: Address


@dataclass(frozen=True)
class _Exchange:
    """Waits until the value is as wanted, and replaces it in one step. Returns the value before."""

    address: Address
    replace: Callable[[Any], Any]
    is_wanted: Callable[[Any], bool]


class _Fence:
    pass


@dataclass(frozen=True)
class _Join:
    program: int


class _Pause(BaseException):
    """A program has come to an operation that it was not given the result of."""


@dataclass(frozen=True)
class _State:
    memory: tuple[tuple[Address, Any], ...]
    buffers: tuple[_Buffer, ...]
    results: tuple[tuple[Any, ...], ...]  # of each program's operations

    def with_step(self, program: int, result: Any, **changes: Any) -> _State:
        results = list(self.results)
        results[program] = (*results[program], result)
        return _State(changes.get("memory", self.memory), changes.get("buffers", self.buffers), tuple(results))

    def with_buffer(self, program: int, buffer: _Buffer) -> tuple[_Buffer, ...]:
        return (*self.buffers[:program], buffer, *self.buffers[program + 1 :])

    def with_value(self, address: Address, value: Any) -> tuple[tuple[Address, Any], ...]:
        memory = dict(self.memory)
        memory[address] = value
        return tuple(sorted(memory.items(), key=repr))


@dataclass
class Machine:
    """Memory that several programs share.

    Args:
        initial: the values that are not 0 at first.

    Attributes:
        running: the number of the program that runs.
        states: how many states were looked at.
    """

    initial: dict[Address, Any] = field(default_factory=dict)
    running: int = 0
    states: int = 0
    _results: tuple[Any, ...] = ()
    _place: int = 0

    # -- what a program may do ------------------------------------------------------------------------------------

    def _do(self, operation: Any) -> Any:
        if self._place == len(self._results):
            raise _Pause(operation)
        self._place += 1
        return self._results[self._place - 1]

    def load(self, address: Address) -> Any:
        return self._do(_Load(address))

    def store(self, address: Address, value: Any) -> None:
        self._do(_Store(address, value))

    def fence(self) -> None:
        self._do(_Fence())

    def exchange(
        self, address: Address, replace: Callable[[Any], Any], is_wanted: Callable[[Any], bool] = lambda _: True
    ) -> Any:
        return self._do(_Exchange(address, replace, is_wanted))

    def wait_for(self, address: Address, is_wanted: Callable[[Any], bool]) -> Any:
        """Sleep until a value is as wanted."""
        return self.exchange(address, lambda value: value, is_wanted)

    def join(self, program: int) -> None:
        """Wait until another program has ended, and all its stores have reached memory."""
        self._do(_Join(program))

    # -- all interleavings ----------------------------------------------------------------------------------------

    def explore(self, programs: list[Program], check: Callable[[list[list[Any]]], None]) -> None:
        """Run the programs in all interleavings; call ``check`` with the logs wherever none of them can go on.

        Raises:
            AssertionError: of ``check``.
        """
        seen_programs: dict[tuple[int, tuple[Any, ...]], tuple[Any, list[Any]]] = {}

        def look(program: int, results: tuple[Any, ...]) -> tuple[Any, list[Any]]:
            """The next operation of a program, and its log."""
            key = (program, results)
            if key not in seen_programs:
                log: list[Any] = []
                self.running, self._results, self._place = program, results, 0
                try:
                    programs[program](self, log)
                    seen_programs[key] = _FINISHED, log
                except _Pause as pause:
                    seen_programs[key] = pause.args[0], log
            return seen_programs[key]

        count = len(programs)
        first = _State(tuple(sorted(self.initial.items(), key=repr)), ((),) * count, ((),) * count)
        seen, left = {first}, [first]
        while left:
            state = left.pop()
            self.states += 1
            operations = [look(program, state.results[program]) for program in range(count)]
            following = self._following(state, [operation for operation, _ in operations])
            if not following:
                check([log for _, log in operations])
            for each in following:
                if each not in seen:
                    seen.add(each)
                    left.append(each)

    def _following(self, state: _State, operations: list[Any]) -> list[_State]:
        for program, operation in enumerate(operations):  # what no other program can notice is done first
            buffer = state.buffers[program]
            if isinstance(operation, _Store):
                buffers = state.with_buffer(program, (*buffer, (operation.address, operation.value)))
                return [state.with_step(program, None, buffers=buffers)]
            if isinstance(operation, _Fence) and not buffer:
                return [state.with_step(program, None)]
            if isinstance(operation, _Load):
                own = [value for address, value in buffer if address == operation.address]
                if own:
                    return [state.with_step(program, own[-1])]
        memory = dict(state.memory)
        following: list[_State] = []
        for program, operation in enumerate(operations):
            buffer = state.buffers[program]
            if isinstance(operation, _Load):
                following.append(state.with_step(program, memory.get(operation.address, 0)))
            elif isinstance(operation, _Exchange) and not buffer:
                value = memory.get(operation.address, 0)
                if operation.is_wanted(value):
                    changed = state.with_value(operation.address, operation.replace(value))
                    following.append(state.with_step(program, value, memory=changed))
            elif (
                isinstance(operation, _Join)
                and operations[operation.program] is _FINISHED
                and not state.buffers[operation.program]
            ):
                following.append(state.with_step(program, None))
            if buffer:
                (address, value), rest = buffer[0], buffer[1:]
                buffers = state.with_buffer(program, rest)
                following.append(_State(state.with_value(address, value), buffers, state.results))
        return following
