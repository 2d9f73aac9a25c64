"""An owner and a reader of segments over one directory, for the tests of segments and of tags."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import environment

from tr_mmap.native import drain
from tr_mmap.protocol.messages import TensorRef
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.shm.segment import Segment

PAGE = 4096


def ref_of(segment: Segment, tag: str = "") -> TensorRef:
    return TensorRef(tag, segment.name, segment.seq)


class Sides:
    """An owner and a reader over one directory."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.pool = SegmentPool(str(directory), "segment", **options)
        self.receiver = SegmentReader(str(directory))

    def look(self, segment: Segment, framework: str = "numpy") -> Any:
        return self.receiver.receive(segment.name, segment.seq, framework)

    def pass_on(self, tensor: Any, framework: str = "numpy") -> Any:
        """Publish, receive, and let the owner's hold go: only the view keeps the segment."""
        self.settle()
        segment = self.pool.publish(tensor)
        try:
            return self.look(segment, framework)
        finally:
            segment.release()

    def settle(self) -> None:
        drain()
        self.pool.collect()

    def close(self) -> None:
        self.receiver.close()
        self.pool.close()


@pytest.fixture
def directory(workspace: Path) -> Iterator[Path]:
    """On tmpfs; whatever is left in it fails the test."""
    path = workspace / "segments"
    path.mkdir(0o700)
    yield path
    path.rmdir()


@pytest.fixture
def sides(directory: Path) -> Iterator[Sides]:
    made = Sides(directory)
    yield made
    made.close()


@pytest.fixture
def limited(directory: Path) -> Iterator[Callable[..., Sides]]:
    """Makes sides whose owner has a budget."""
    made: list[Sides] = []

    def make(budget_nbytes: int, **options: Any) -> Sides:
        made.append(Sides(directory, budget_nbytes=budget_nbytes, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def module_sides() -> Iterator[Sides]:
    path = tempfile.mkdtemp(dir="/dev/shm", prefix=f"tr_test_{os.getpid()}_")
    made = Sides(Path(path))
    yield made
    made.close()
    os.rmdir(path)


def lend(sides: Sides, count: int, framework: str = "numpy") -> Any:
    loan = sides.pool.empty(count, "float32", framework)
    numbers = np.arange(count)
    loan[:] = numbers if framework == "numpy" else loan.new_tensor(numbers)
    return loan


def python(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
