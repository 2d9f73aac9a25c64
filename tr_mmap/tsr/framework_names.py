"""The names of the frameworks, and whether one is installed. Imports none of them."""

from __future__ import annotations

import importlib.util
import sys
from typing import Final

from ..base import system
from ..errors import BadMessage, MissingPackage

__all__ = ["check_framework_name", "check_installed"]

_NAMES: Final = ("numpy", "torch")


def check_framework_name(framework: object) -> None:
    """Refuse an option ``framework`` that names no framework.

    Raises:
        BadMessage: it is neither ``"numpy"`` nor ``"torch"``.
    """
    if not isinstance(framework, str) or framework not in _NAMES:
        raise BadMessage(f"framework is {framework!r:.80}; it must be 'numpy' or 'torch'", detail="framework")


def check_installed(framework: str) -> None:
    """Refuse a framework that is not installed. Only looks for it, because importing torch takes seconds.

    Raises:
        MissingPackage: it is not installed.
        SystemLimit: a limit of the system forbids to look for it.
    """
    try:
        is_there = sys.modules.get(framework) is not None or importlib.util.find_spec(framework) is not None
    except OSError as error:
        system.check_import(error, f"{framework} cannot be looked for")
        raise
    if not is_there:
        raise MissingPackage(
            f"framework={framework!r} needs {framework}, which is not installed: pip install {framework}",
            package=framework,
        )
