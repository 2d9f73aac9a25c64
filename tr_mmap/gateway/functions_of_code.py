"""Which function of Python source is meant, where its name does not say it: read in a sandbox, which executes nothing.

The sandbox's own check chooses the function that a run calls, and refuses code that can give no result. Where it
chooses none of several functions, programs may still call one by its name, and requests cannot. So such code is refused
here, if it has no way to set ``output`` either.
"""

from __future__ import annotations

from typing import Final

from ..sandbox import AlgorithmError, Sandbox

__all__ = ["check_choice"]

_SOURCE: Final = """
import ast

from tr_mmap.sandbox.runners.python_choice import functions_of, may_set_output

tree = ast.parse(inputs["code"])
output = [] if may_set_output(tree) else functions_of(tree)[:inputs["most"]]
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
