"""Four readers of one pool, killed at any moment while tensors flow: none ever sees a torn one, and nothing is lost."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from content import content
from reader_processes import ReaderProcess, ReaderProcesses

from tr_mmap.shm.pool import SegmentPool
from tr_mmap.wire.header import MAX_READERS

HERE = Path(__file__).parent
READERS, VIEWS = 4, 3


@pytest.fixture
def processes() -> Iterator[ReaderProcesses]:
    made = ReaderProcesses()
    yield made
    made.close()


def reader(processes: ReaderProcesses, directory: Path) -> ReaderProcess:
    made = processes.start(directory)
    made.do("content", str(HERE))
    return made


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_four_readers_that_are_killed_see_no_torn_tensor_and_leave_nothing(
    processes: ReaderProcesses, workspace: Path, is_full: bool, figures: Callable[[str], None]
) -> None:
    kills = 2000 if is_full else 20
    directory = workspace / "segments"
    directory.mkdir(0o700)
    pool = SegmentPool(str(directory), "segment", has_lines=True)
    rng = random.Random(19)
    readers = [reader(processes, directory) for _ in range(READERS)]
    killed = seen = number = 0
    most = 0
    while killed < kills:
        number += 1
        segment = pool.publish(content(number))
        for each in readers:
            each.send("look", number, segment.name, segment.seq, number)
            each.send("keep", rng.randrange(VIEWS + 1))
        asked = list(readers)
        if rng.random() < 0.4:
            place = rng.randrange(READERS)
            asked.remove(readers[place])
            for _ in range(rng.randrange(3000)):
                pass  # so that it dies at different steps
            readers[place].kill()
            readers[place] = reader(processes, directory)
            killed += 1
            if rng.random() < 0.5:
                pool.reader_died()
        for each in asked:
            assert each.answer()
            each.answer()
            seen += 1
        segment.release()
        most = max(most, pool.stats().segments)
    figures(f"{killed} kills, {number} tensors of 1 MiB, {seen} looks, {most} segments at most")
    assert seen > kills
    assert most <= READERS * (VIEWS + 1) + 8
    for each in readers:
        each.kill()
    pool.reader_died()
    page = (directory / "segment.readers").read_bytes()
    assert not any(page[:MAX_READERS])
    pool.close()
    assert os.listdir(directory) == []
    directory.rmdir()
