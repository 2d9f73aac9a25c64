"""A session for the tests of this folder, by each way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from ways import WAYS, Way


@pytest.fixture(params=list(WAYS))
def open_way(request: pytest.FixtureRequest) -> Iterator[Callable[..., Way]]:
    """Starts a session, with options."""
    with ExitStack() as opened:

        def start(**options: Any) -> Way:
            way = WAYS[request.param](**options)
            opened.callback(way.end)
            return way

        yield start
