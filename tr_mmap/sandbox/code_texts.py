"""Tells code from the path of a file that was given in its place. Opens nothing."""

from __future__ import annotations

from typing import Final

__all__ = ["is_path"]

_SUFFIXES: Final = (".py", ".wasm", ".so")


def is_path(code: str) -> bool:
    """Whether a text looks like the path of a file with code: ``algo.py`` is Python too, and does nothing."""
    line = code.strip()
    return line.endswith(_SUFFIXES) and not any(each in line for each in "\n=#")
