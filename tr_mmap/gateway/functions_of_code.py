"""Which function of Python source is meant, where its name does not say it: read in a sandbox, which executes nothing.

The sandbox's own check chooses the function that a run calls. Where it chooses none of several, the code must set
``output`` itself. Code that has no way to do so would fail at every run, so it is refused when it is registered.
"""

from __future__ import annotations

from typing import Final

from ..sandbox import AlgorithmError, Sandbox

__all__ = ["check_choice"]

_SOURCE: Final = """
import ast

DYNAMIC = {"exec", "eval", "globals", "locals", "vars", "__builtins__", "__dict__", "__globals__", "f_globals"}
INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def outer(body):
    waiting = [*body]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, INNER):
            waiting.extend(ast.iter_child_nodes(node))


def binds_output(node):
    if isinstance(node, ast.Name):
        return node.id == "output" and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.alias):
        return node.name == "*" or (node.asname or node.name) == "output"
    return getattr(node, "name", None) == "output"  # a definition, or the name of an exception or of a pattern


def may_bind_output(node):  # from inside a function too, and in a way that the source does not show
    if isinstance(node, ast.Global):
        return "output" in node.names
    return getattr(node, "id", None) in DYNAMIC or getattr(node, "attr", None) in DYNAMIC


tree = ast.parse(inputs["code"])
sets_output = any(map(binds_output, outer(tree.body))) or any(map(may_bind_output, ast.walk(tree)))
functions = [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
output = [] if sets_output else functions[:inputs["most"]]
"""
_MOST_NAMED: Final = 10


def check_choice(name: str, code: bytes, box: Sandbox) -> None:
    """Refuse source that has several functions and names none, if it has no way to set ``output``.

    Args:
        name: of the algorithm.
        code: of which the sandbox has chosen no function.
        box: a sandbox of Python.

    Raises:
        AlgorithmError: it has several, and none is named.
        LimitExceeded: it cannot be read within the sandbox's limits.
    """
    functions = box.execute(_SOURCE, {"code": code.decode(), "most": _MOST_NAMED}).outputs["output"]
    if len(functions) > 1:
        raise AlgorithmError(
            f"the code of {name!r} has the functions {', '.join(functions)}, and none of them is named {name!r} or "
            "'process': say which one is called, as function",
            type="NameError",
        )
