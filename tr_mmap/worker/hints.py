"""The annotations of a function, as objects as far as their names can be found. Says nothing of what they mean."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

__all__ = ["fixed_by_name", "hints_of", "unwrapped_partial"]


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations by parameter; one that cannot be resolved stays a text."""
    inner = unwrapped_partial(function)
    if inspect.isclass(inner):
        inner = inner.__init__
    elif not inspect.isroutine(inner):
        inner = type(inner).__call__
    inner = inspect.unwrap(inner)
    local_names = _local_names(inner)
    try:
        return typing.get_type_hints(inner, localns=local_names)
    except Exception:
        pass  # one of them names what exists for type checkers only; the others still count
    global_names = getattr(inner, "__globals__", {})
    hints = {}
    for name, hint in getattr(inner, "__annotations__", {}).items():
        hints[name] = hint
        try:
            alone = types.SimpleNamespace(__annotations__={name: hint})
            hints[name] = typing.get_type_hints(alone, global_names, local_names)[name]
        except Exception:
            try:
                if isinstance(hint, str):
                    hints[name] = eval(hint, global_names, local_names)  # Final[int], say: typing wants a variable
            except Exception:
                pass
    return hints


def unwrapped_partial(function: Any) -> Any:
    """The function that a ``functools.partial`` calls; any other function itself."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def fixed_by_name(function: Any) -> tuple[set[str], set[str]]:
    """The parameters that a ``functools.partial`` gives a value by name, and those that no call can give by position.

    As in a call: after ``partial(scale, factor=2.0)``, a value by position for ``factor`` is refused, and what comes
    after ``factor`` is given by name only.
    """
    fixed: set[str] = set()
    after: set[str] = set()
    while True:
        function = inspect.unwrap(function, stop=lambda each: isinstance(each, functools.partial))
        if not isinstance(function, functools.partial):
            return fixed, after - fixed
        fixed |= function.keywords.keys()
        try:
            parameters = list(inspect.signature(function.func).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        by_position = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        first = min((by_position.index(name) for name in function.keywords if name in by_position), default=None)
        if first is not None:
            after |= set(by_position[first:])
        function = function.func


def _local_names(function: Any) -> dict[str, Any]:
    """The names of the functions and classes around a function: of those that run now, and of its closure."""
    names: dict[str, Any] = {}
    around = []
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        is_same_module = frame.f_globals is getattr(function, "__globals__", None)
        if is_same_module and function.__qualname__.startswith(frame.f_code.co_qualname + "."):
            around.append(frame)
        frame = frame.f_back
    for frame in reversed(around):  # the innermost last, whose names hide the others'
        names |= frame.f_locals
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    for name, cell in zip(code.co_freevars if code is not None else (), cells or (), strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            pass  # not assigned yet
    return names
