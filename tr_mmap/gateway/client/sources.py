"""The source of a function of Python, with the imports that it needs, as an algorithm. Runs nothing of it."""

from __future__ import annotations

import builtins
import inspect
import symtable
import textwrap
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from ..errors import BadRequest

__all__ = ["source_of"]

_FUTURE = "from __future__ import annotations\n"  # annotations are not evaluated: they may name what is not there


def source_of(function: Callable[..., Any]) -> str:
    """A program that defines this function.

    Modules of its surroundings that it uses are imported in the program; nothing else of them can go with it.

    Args:
        function: made by ``def``.

    Raises:
        BadRequest: it is another thing, or its source cannot be found, or it uses more of its surroundings.
    """
    name = getattr(function, "__name__", repr(function))
    if not isinstance(function, FunctionType) or name == "<lambda>" or inspect.iscoroutinefunction(function):
        raise BadRequest(f"{name:.80} is no function made by def; give its source as code=")
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise BadRequest(f"the source of {name} cannot be found; give it as code=") from None
    imports = "".join(sorted(_import_of(function, each) for each in _names_from_outside(text)))
    return f"{_FUTURE}{imports}{text}"


def _names_from_outside(text: str) -> set[str]:
    found = set()
    tables = [symtable.symtable(_FUTURE + text, "<function>", "exec")]
    own = {each.get_name() for each in tables[0].get_symbols() if each.is_assigned() or each.is_imported()}
    while tables:
        table = tables.pop()
        tables += table.get_children()
        found |= {each.get_name() for each in table.get_symbols() if each.is_global()}
    return {each for each in found - own if not hasattr(builtins, each)}


def _import_of(function: FunctionType, name: str) -> str:
    """The line that imports what the function knows by a name.

    Raises:
        BadRequest: it is no module.
    """
    value = _look_up(function, name)
    if not isinstance(value, ModuleType):
        raise BadRequest(
            f"{function.__name__} uses {name!r} of its surroundings, which cannot go with it: make it an input, or "
            "write it into the function"
        )
    return f"import {value.__name__} as {name}\n" if value.__name__ != name else f"import {name}\n"


def _look_up(function: FunctionType, name: str) -> Any:
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if name not in cells:
        return function.__globals__.get(name)
    try:
        return cells[name].cell_contents
    except ValueError:  # not yet set
        return None
