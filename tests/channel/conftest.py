"""Channels of every kind. A test here leaves no semaphores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from channel_ends import Ends, semaphores

from tr_mmap.channel.files import PollRate
from tr_mmap.channel.interface import Channel
from tr_mmap.channel.kinds import channel_kind


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    yield
    assert semaphores() == []


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Ends]]:
    """Makes both ends of a channel of some kind; the directory is the same each time."""
    monkeypatch.setattr(PollRate, "FIRST_MS", 1.0)
    monkeypatch.setattr(PollRate, "LAST_MS", 4.0)
    made: list[Channel] = []

    def make(kind: str) -> Ends:
        controller = channel_kind(kind).create(str(tmp_path))
        made.append(controller)
        worker = channel_kind(kind).attach(str(tmp_path), controller.doorbells)
        made.append(worker)
        return Ends(tmp_path, controller, worker)

    yield make
    for channel in made:
        channel.close()


@pytest.fixture(params=["files", "mapped"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ends(kind: str, connect: Callable[[str], Ends]) -> Ends:
    return connect(kind)


@pytest.fixture
def mapped_ends(connect: Callable[[str], Ends]) -> Ends:
    return connect("mapped")


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit
