"""Runs Python source: a function of ``inputs``, or code that reads ``inputs`` and sets ``output``."""

from __future__ import annotations

import ast
import io
import linecache
from types import CodeType, FunctionType
from typing import Any

from ..code_texts import is_path
from .python_choice import functions_of, may_set_output, sets_output

__all__ = ["check", "run"]


def check(name: str, code: bytes, function: str | None) -> str | None:
    """Parse the source; nothing of it is executed. Returns the function to call; None if the code sets ``output``.

    Raises:
        NameError: it can never give a result: it has no function, and no way to set ``output``.
    """
    _, chosen = _compile(name, code, function)
    if chosen is None:
        tree = ast.parse(code.decode())
        if not functions_of(tree) and not may_set_output(tree):
            raise NameError("the code has no function, and sets no output: define a function of inputs, or set output")
    return chosen


def run(name: str, code: bytes, function: str | None, inputs: dict[str, Any], arguments: list[Any] | None) -> Any:
    """Run the source, and return its output.

    Args:
        name: of the algorithm.
        code: its source, UTF-8.
        function: the function to call; None for the default choice.
        inputs: by name. Tensors are read-only arrays.
        arguments: what the function gets instead of ``inputs``; None for ``inputs``.
    """
    compiled, function = _compile(name, code, function)
    namespace: dict[str, Any] = {"__name__": "__algorithm__", "inputs": inputs}
    exec(compiled, namespace)
    if function is not None:
        called = namespace[function]
        return called(inputs) if arguments is None else called(*arguments)
    if "output" not in namespace:
        names = [each for each, value in namespace.items() if isinstance(value, FunctionType)]
        raise NameError(
            f"the code sets no output, and none of its functions ({', '.join(names) or 'it has none'}) is named "
            f"{name!r} or 'process', or is the only one: say which function, or set output"
        )
    return namespace["output"]


# The arguments and the result of the last compilation, for the next run of a process that is kept.
_compiled: tuple[tuple[str, bytes, str | None], tuple[CodeType, str | None]] | None = None


def _compile(name: str, code: bytes, function: str | None) -> tuple[CodeType, str | None]:
    global _compiled
    key = name, code, function
    if _compiled is None or _compiled[0] != key:
        _compiled = key, _compile_anew(*key)
    return _compiled[1]


def _compile_anew(name: str, code: bytes, function: str | None) -> tuple[CodeType, str | None]:
    filename = f"<algorithm {name}>"
    source = code.decode()
    if is_path(source):
        path = source.strip()[:200]
        raise ValueError(
            f"the code is {path!r}, which looks like the path of a file: give what is in the file; in Python, "
            f"Path({path!r})"
        )
    linecache.cache[filename] = (len(source), None, _lines_of(source), filename)  # for tracebacks
    tree = ast.parse(source, filename)
    names = functions_of(tree)
    for each in tree.body:
        if isinstance(each, ast.AsyncFunctionDef) and each.name in ((function,) if function else (name, "process")):
            raise TypeError(f"{each.name} is defined by async def; define it by def: a run has no event loop")
    compiled = compile(tree, filename, "exec", dont_inherit=True)  # not the __future__ of this module
    if function is not None:
        if function not in names:
            raise NameError(f"there is no function {function!r} in the code; it has {', '.join(names) or 'none'}")
        return compiled, function
    for choice in (name, "process"):
        if choice in names:
            return compiled, choice
    # If the code sets ``output`` itself, its only function is a helper, not the one to call.
    return compiled, names[0] if len(names) == 1 and not sets_output(tree) else None


def _lines_of(source: str) -> list[str]:
    """The lines as Python counts them, each with its end: without one, a traceback marks the next column."""
    lines = io.StringIO(source, newline=None).readlines()
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return lines
