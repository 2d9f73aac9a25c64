"""Eight readers keep many views of one pool while tensors go on being published: no view ever changes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from reader_processes import ReaderProcesses

from tr_mmap.shm.pool import SegmentPool

READERS, LOOKS = 8, 2  # each tensor is looked at by so many of the readers


@pytest.fixture
def processes() -> Iterator[ReaderProcesses]:
    made = ReaderProcesses()
    yield made
    made.close()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_views_of_eight_readers_stay_right_however_much_is_published(
    processes: ReaderProcesses, workspace: Path, is_full: bool, figures: Callable[[str], None]
) -> None:
    views, publishes = (125, 100_000) if is_full else (25, 1500)
    directory = workspace / "segments"
    directory.mkdir(0o700)
    pool = SegmentPool(str(directory), "segment", has_lines=True)
    rng = random.Random(19)
    readers = [processes.start(directory) for _ in range(READERS)]
    sizes = [9, 512, 513, 3000]
    most = 0
    for number in range(publishes):
        segment = pool.publish(np.full(rng.choice(sizes), number), may_share=bool(number % 2))
        asked = rng.sample(readers, LOOKS)
        for reader in asked:
            reader.send("look", rng.randrange(views), segment.name, segment.seq, number)  # instead of an older view
        for reader in asked:
            assert reader.answer()  # and all its views are right
        segment.release()
        most = max(most, pool.stats().leased if number % 100 == 0 else 0)
    stats = pool.stats()
    figures(f"{publishes} tensors, {READERS * views} views, of {most} segments; {stats.created} segments made")
    assert READERS * views / LOOKS < most <= READERS * views  # most of the views are of different tensors
    assert stats.segments <= 2 * len(sizes) * READERS * views
    for reader in readers:
        reader.do("keep", 0)
    assert pool.stats().leased == 0
    for reader in readers:
        reader.kill()
    pool.reader_died()
    pool.close()
    assert os.listdir(directory) == []
    directory.rmdir()
