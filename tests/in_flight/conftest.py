"""A session for the tests of this folder, by each way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cpp_together import plain_program
from ways import IN_PYTHON, LINES, Futures, Lines, Way


@pytest.fixture(scope="session")
def lines_program(request: pytest.FixtureRequest) -> Path:
    """The C++ program that submits requests, compiled."""
    compiler = shutil.which(os.environ.get("CXX", "clang++")) or shutil.which("g++")
    if compiler is None:
        pytest.skip("NOT TESTED: many requests from C++, for there is no compiler")
    return plain_program(compiler, request)


def _opener(start: Callable[..., Way]) -> Iterator[Callable[..., Way]]:
    with ExitStack() as opened:

        def start_one(**options: Any) -> Way:
            way = start(**options)
            opened.callback(way.end)
            return way

        yield start_one


@pytest.fixture(params=[*IN_PYTHON, LINES])
def open_way(request: pytest.FixtureRequest) -> Iterator[Callable[..., Way]]:
    """Starts a session, with options, by whatever way."""
    if request.param != LINES:
        yield from _opener(IN_PYTHON[request.param])
        return
    program = request.getfixturevalue("lines_program")
    yield from _opener(lambda **options: Lines(program, **options))


@pytest.fixture(params=["futures", LINES])
def open_with_futures(request: pytest.FixtureRequest) -> Iterator[Callable[..., Way]]:
    """The same by the ways whose ``cancel`` has ``kill_running``."""
    if request.param == LINES:
        program = request.getfixturevalue("lines_program")
        yield from _opener(lambda **options: Lines(program, **options))
    else:
        yield from _opener(Futures)


@pytest.fixture(params=list(IN_PYTHON))
def open_in_python(request: pytest.FixtureRequest) -> Iterator[Callable[..., Way]]:
    """The same by the ways of Python only."""
    yield from _opener(IN_PYTHON[request.param])
