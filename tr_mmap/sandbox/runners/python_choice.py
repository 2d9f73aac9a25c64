"""What the syntax of Python source says of its result: which functions could give it, and whether it sets ``output``.

Reads syntax trees; executes nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["functions_of", "may_set_output", "sets_output"]

_INNER: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
# By these, code can set a name that its syntax does not show.
_DYNAMIC: Final = frozenset(
    {"exec", "eval", "globals", "locals", "vars", "__builtins__", "__dict__", "__globals__", "f_globals"}
)


def functions_of(tree: ast.Module) -> list[str]:
    """The functions that a run can call, in their order."""
    return [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]


def sets_output(tree: ast.Module) -> bool:
    """Whether code assigns to ``output`` outside of its functions and classes."""
    return any(
        isinstance(each, ast.Name) and each.id == "output" and isinstance(each.ctx, ast.Store)
        for each in _outer(tree.body)
    )


def may_set_output(tree: ast.Module) -> bool:
    """Whether code has any way to set ``output``, one that its syntax does not show included."""
    return any(map(_binds_output, _outer(tree.body))) or any(map(_may_bind_output, ast.walk(tree)))


def _outer(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """All nodes outside of functions and classes, and these themselves."""
    waiting = [*body]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, _INNER):
            waiting.extend(ast.iter_child_nodes(node))


def _binds_output(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id == "output" and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.alias):
        return node.name == "*" or (node.asname or node.name) == "output"
    return getattr(node, "name", None) == "output"  # a definition, or the name of an exception or of a pattern


def _may_bind_output(node: ast.AST) -> bool:
    """From inside a function too."""
    if isinstance(node, ast.Global):
        return "output" in node.names
    return getattr(node, "id", None) in _DYNAMIC or getattr(node, "attr", None) in _DYNAMIC
