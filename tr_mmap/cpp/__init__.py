"""The controller's side for C++17: headers, and what CMake needs to find them.

The Python here only says where these are. It never compiles, links or loads anything.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["cmake_dir", "include_dir"]


def cmake_dir() -> Path:
    """The directory to give CMake as ``tr_mmap_DIR``, if ``find_package`` does not find the package by itself."""
    return Path(__file__).resolve().parent / "cmake"


def include_dir() -> Path:
    """The directory to give the compiler with ``-I``."""
    return Path(__file__).resolve().parent / "include"
