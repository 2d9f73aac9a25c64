"""Pools for the tests of this folder, by each way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pool_ways import WAYS, Way, made
from support import FOREVER_MS, empty_place

from tr_mmap import SessionPool


@pytest.fixture(params=list(WAYS))
def open_pool(request: pytest.FixtureRequest) -> Iterator[Callable[..., Way]]:
    """Starts a pool of a test's own, with options, by whatever way."""
    with ExitStack() as opened:

        def start(size: int = 1, **options: Any) -> Way:
            way = made(request.param, size, **options)
            opened.callback(way.end)
            return way

        yield start


@pytest.fixture
def open_blocking() -> Iterator[Callable[..., Way]]:
    """The same by ``SessionPool`` only: for what both ways do by the same code."""
    with ExitStack() as opened:

        def start(size: int = 1, **options: Any) -> Way:
            way = made("blocking", size, **options)
            opened.callback(way.end)
            return way

        yield start


@pytest.fixture(scope="session")
def _shared_pools() -> Iterator[Callable[[str], Way]]:
    with ExitStack() as opened:
        known: dict[str, Way] = {}

        def get(name: str) -> Way:
            if name not in known:
                patch = opened.enter_context(pytest.MonkeyPatch.context())
                patch.setenv("TR_WORKSPACE", str(opened.enter_context(empty_place(is_shared=True))))
                known[name] = made(name, 2)
                known[name].call("wait_until_ready", FOREVER_MS)
                opened.callback(known[name].end)
                patch.undo()
            return known[name]

        yield get


@pytest.fixture(params=list(WAYS))
def shared(request: pytest.FixtureRequest, _shared_pools: Callable[[str], Way]) -> Iterator[Way]:
    """A pool of two workers that many tests share; it must work after the test."""
    way = _shared_pools(request.param)
    yield way
    assert way.ask("say again") == "again"


@pytest.fixture
def pool(_shared_pools: Callable[[str], Way]) -> Iterator[SessionPool]:
    """The same, for what the pool of the standard library promises."""
    way: Any = _shared_pools("blocking")
    yield way.pool
    assert way.ask("say again") == "again"
