"""The controller's side for C++17: headers, and what CMake needs to find them.

The Python here only says where the headers are. It never compiles, links or loads anything.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["include_dir"]


def include_dir() -> Path:
    """The directory to give the compiler with ``-I``."""
    return Path(__file__).resolve().parent / "include"
