"""Another process, ended after the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from other_process import Peer


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()
