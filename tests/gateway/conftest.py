"""A gateway that a test talks to, as a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateways import RunningGateway, running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway as it is by default, but without a limit of requests; tests of a module share it."""
    with running(tmp_path_factory.mktemp("gateway")) as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For a gateway of a test's own: ``running(folder, "[scheduler] ...")``."""
    return tmp_path
