"""Which Python runs the programs that we start. Starts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final

from ..base import system
from ..errors import ScriptNotFound
from ..wire.names import PYTHON_VARIABLE

__all__ = ["find_python", "is_python"]

_NAMES: Final = ("python", "pypy", "graalpy")  # one of them is in the file name of an interpreter


def find_python(
    python: str | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    what: str = "the worker",
    way: str = "give python='/path/to/python', or set TR_PYTHON",
    origin: str = "python=",
) -> str:
    """The interpreter that runs a program of ours.

    Args:
        python: its path, or its name if it is to be found on ``PATH``; None for that of ``TR_PYTHON``, or else for
            this process's own.
        environ: has ``TR_PYTHON`` and ``PATH``.
        what: what the interpreter is to run, for the error text.
        way: how to choose one, for the error text.
        origin: the name of the argument or the option that has ``python``, for the error text.

    Raises:
        ScriptNotFound: there is no such program; or none is named, and this process has no interpreter of its own,
            because it is a program that embeds Python.
    """
    chosen = python
    if chosen is None:
        chosen, origin = environ.get(PYTHON_VARIABLE) or None, PYTHON_VARIABLE
    if chosen is None and is_python(sys.executable) and not getattr(sys, "frozen", False):
        return sys.executable
    if chosen is None:
        raise ScriptNotFound(f"there is no Python to run {what}: {_why_none()}; {way}", path=sys.executable or "")
    from shutil import which  # here, because most programs choose none

    found = which(system.absolute(chosen) if os.path.dirname(chosen) else chosen, path=environ.get("PATH"))
    if os.path.basename(chosen) in ("", ".") or found is None:  # "" also ends the name of a directory
        raise ScriptNotFound(
            f"the interpreter of {what}, {chosen!r} ({origin}), is no program that can be run; give the path of a "
            "Python, or a name that is on PATH",
            path=chosen,
        )
    return system.absolute(found)


def _why_none() -> str:
    """Why ``sys.executable`` is no Python that runs our programs."""
    own = sys.executable
    if getattr(sys, "frozen", False):
        return f"this program is frozen (PyInstaller or the like), and {own!r} is the program itself"
    if not own:
        return "sys.executable is empty, perhaps because this program has Python inside"
    if not os.path.isfile(own):
        return f"sys.executable is {own!r}, and there is no such file"
    if not os.access(own, os.X_OK):
        return f"sys.executable is {own!r}, which this user may not run"
    return f"sys.executable is {own!r}, which by its name is no Python, perhaps because this program has Python inside"


def is_python(executable: str | None) -> bool:
    """Whether a program, as ``sys.executable`` names it, is an interpreter, which can be run with our arguments."""
    if not executable:
        return False
    names = {os.path.basename(each).lower() for each in (executable, os.path.realpath(executable))}
    if not any(each in name for each in _NAMES for name in names):
        return False
    return os.path.isfile(executable) and os.access(executable, os.X_OK)
