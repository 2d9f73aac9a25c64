"""Segments with many readers: each has a line of its own, and what one holds nobody fills again."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segment_sides import python
from support import BOUND_S, FRAMEWORKS

from tr_mmap.native import drain
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.shm.readers import LeaseLine
from tr_mmap.shm.segment import Segment
from tr_mmap.wire.header import LEASE_FREE, LEASE_PINNED, LINE_WORDS, LINES_WORD, MAX_READERS, SEQ_RETIRED, SEQ_WORD

READER = """
import json, os, signal, sys
import numpy as np
from tr_mmap.native import drain
from tr_mmap.shm.reader import SegmentReader
reader = SegmentReader(sys.argv[1], shared=sys.argv[2])
views = {}
for line in sys.stdin:
    what, *words = json.loads(line)
    if what == "look":
        views[words[0]] = reader.receive(words[0], words[1], "numpy")
        print(int(views[words[0]].sum()), flush=True)
    elif what == "check":
        print(int(views[words[0]].sum()), flush=True)
    elif what == "drop":
        del views[words[0]]
        drain()
        print(0, flush=True)
    elif what == "fork":  # a child that closes all that it has open, and lives on
        pid = os.fork()
        if pid == 0:
            os.closerange(0, 100)
            signal.pause()
            os._exit(0)
        print(pid, flush=True)
"""


class Pool:
    """A pool with lease lines, and what reads it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pool = SegmentPool(str(directory), "segment", has_lines=True)
        self.readers: list[SegmentReader] = []

    def reader(self) -> SegmentReader:
        self.readers.append(SegmentReader(str(self.directory), shared=str(self.directory)))
        return self.readers[-1]

    def publish(self, number: int, count: int = 1000) -> Segment:
        return self.pool.publish(np.full(count, number))

    def settle(self) -> None:
        drain()
        self.pool.collect()

    def members(self) -> list[int]:
        page = (self.directory / "segment.readers").read_bytes()
        return [line for line in range(MAX_READERS) if page[line]]


@pytest.fixture
def shared(directory: Path) -> Iterator[Pool]:
    made = Pool(directory)
    yield made
    for reader in made.readers:
        reader.close()
    made.pool.close()


def receive(reader: SegmentReader, segment: Segment, framework: str = "numpy") -> Any:
    return reader.receive(segment.name, segment.seq, framework)


def lease_in(segment: Segment, line: int) -> int:
    return int(segment.words[LINES_WORD + line * LINE_WORDS])


def test_a_segment_is_filled_again_only_when_every_reader_has_released_it(shared: Pool) -> None:
    first, second, third = (shared.reader() for _ in range(3))
    segment = shared.publish(1)
    views = [receive(each, segment) for each in (first, second, third)]
    assert shared.members() == [0, 1, 2]
    segment.release()
    while views:
        assert shared.publish(2) is not segment
        assert all(view.tolist() == [1] * 1000 for view in views)
        del views[0]
        shared.settle()
    made = [shared.publish(3) for _ in range(20)]  # one of them, for a take looks at those that wait
    assert segment in made


def test_the_release_of_one_reader_frees_no_other_view(shared: Pool) -> None:
    first, second = shared.reader(), shared.reader()
    segment = shared.publish(1)
    kept, dropped = receive(first, segment), receive(second, segment)
    del dropped
    shared.settle()
    segment.release()
    for number in range(20):
        shared.publish(number).release()
    assert kept.tolist() == [1] * 1000
    assert [lease_in(segment, line) for line in (0, 1)] == [1, LEASE_FREE]


def test_what_a_reader_views_keeps_its_number_so_that_others_may_look_too(shared: Pool) -> None:
    first, second = shared.reader(), shared.reader()
    segment = shared.publish(1)
    view, seq = receive(first, segment), segment.seq
    segment.release()
    for number in range(20):
        shared.publish(number).release()
    assert segment.words[SEQ_WORD] == seq
    assert receive(second, segment).tolist() == view.tolist() == [1] * 1000


@FRAMEWORKS
def test_fifty_six_readers_look_at_once_and_the_next_one_gets_a_copy(shared: Pool, framework: str) -> None:
    count = 10_000  # a small torch tensor would be copied
    segment = shared.publish(7, count)
    readers = [shared.reader() for _ in range(MAX_READERS + 1)]
    views = [receive(each, segment, framework) for each in readers]
    assert len(shared.members()) == MAX_READERS
    assert all(view.tolist() == [7] * count for view in views)
    assert [lease_in(segment, line) for line in range(MAX_READERS)] == [1] * MAX_READERS
    segment.release()
    assert shared.publish(8, count) is not segment
    assert views[-1].flags.writeable is False if framework == "numpy" else True
    del views[:-1]
    shared.settle()
    assert segment in [shared.publish(9, count) for _ in range(20)]  # the copy keeps nothing
    assert views[-1].tolist() == [7] * count


def test_a_line_is_free_again_after_the_last_view_of_a_reader_that_was_closed(shared: Pool) -> None:
    reader = shared.reader()
    segment = shared.publish(1)
    view = receive(reader, segment)
    reader.close()
    assert shared.members() == [0]
    del view
    drain()
    assert shared.members() == []
    assert lease_in(segment, 0) == LEASE_FREE
    view = receive(shared.reader(), segment)
    assert shared.members() == [0]
    assert view.tolist() == [1] * 1000


def test_a_fork_pins_the_line_of_its_reader_only(shared: Pool) -> None:
    first, second = shared.reader(), shared.reader()
    segment, other = shared.publish(1), shared.publish(2)
    views = [receive(first, segment), receive(second, other)]
    idle = shared.reader()
    del views[1]
    shared.settle()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0 if views[0].tolist() == [1] * 1000 else 1)
    os.close(read)
    views.clear()
    shared.settle()
    assert lease_in(segment, 0) == LEASE_PINNED
    assert lease_in(other, 1) == LEASE_FREE
    segment.release()
    other.release()
    for number in range(20):
        assert shared.publish(number) is not segment
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    idle.close()


class Process:
    """A reader in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.popen = python(READER, directory, directory)

    def do(self, *words: object) -> int:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(json.dumps(words).encode() + b"\n")
        self.popen.stdin.flush()
        return int(self.popen.stdout.readline())

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(BOUND_S)
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()


def test_what_a_killed_reader_held_is_retired_and_its_line_goes_to_the_next_one(shared: Pool) -> None:
    dead, other = Process(shared.directory), shared.reader()
    segment, free = shared.publish(1), shared.publish(2)
    assert dead.do("look", segment.name, segment.seq) == 1000
    assert dead.do("look", free.name, free.seq) == 2000
    assert dead.do("drop", free.name) == 0
    view = receive(other, segment)
    assert shared.members() == [0, 1]
    dead.kill()
    assert LeaseLine.join(str(shared.directory), "segment").number == 2  # type: ignore[union-attr] # not the dead one's
    shared.pool.reader_died()
    assert shared.members() == [1]
    segment.release()
    free.release()
    made = [shared.publish(3) for _ in range(4)]
    assert segment not in made
    assert free in made
    assert view.tolist() == [1] * 1000
    third = shared.reader()
    assert receive(third, made[0]).tolist() == [3] * 1000
    assert shared.members() == [0, 1]
    del view
    shared.settle()
    assert segment not in [shared.publish(4) for _ in range(20)]
    assert segment.name not in os.listdir(shared.directory)


def test_what_a_killed_reader_held_keeps_its_number_for_as_long_as_others_look(shared: Pool) -> None:
    dead, other = Process(shared.directory), shared.reader()
    segment = shared.publish(1)
    assert dead.do("look", segment.name, segment.seq) == 1000
    view = receive(other, segment)
    segment.release()
    dead.kill()
    shared.pool.reader_died()
    for number in range(20):
        shared.publish(number).release()
    assert segment.words[SEQ_WORD] == segment.seq
    late = receive(shared.reader(), segment)  # handed on by the other reader, for example
    assert late.tolist() == view.tolist() == [1] * 1000
    del view, late
    shared.settle()
    shared.pool.release_free()
    assert segment.words[SEQ_WORD] == SEQ_RETIRED
    assert segment.name not in os.listdir(shared.directory)


def test_a_dead_reader_is_found_when_the_pool_needs_a_segment(shared: Pool) -> None:
    dead = Process(shared.directory)
    segment = shared.publish(1)
    assert dead.do("look", segment.name, segment.seq) == 1000
    segment.release()
    shared.publish(2)
    dead.kill()
    shared.publish(3)
    assert shared.members() == []
    assert shared.pool.stats().segments == 2  # without that of the dead reader


def test_a_child_that_has_closed_all_descriptors_keeps_the_line_of_its_killed_parent(shared: Pool) -> None:
    dead = Process(shared.directory)
    segment = shared.publish(1)
    assert dead.do("look", segment.name, segment.seq) == 1000
    child = dead.do("fork")
    end = os.pidfd_open(child)
    try:
        dead.kill()
        shared.pool.reader_died()
        assert shared.members() == [0]  # the child may look still
        signal.pidfd_send_signal(end, signal.SIGKILL)
        assert select.select([end], [], [], BOUND_S)[0]
    finally:
        os.close(end)
    shared.pool.reader_died()
    assert shared.members() == []


def test_a_pool_that_is_closed_leaves_nothing(shared: Pool) -> None:
    shared.publish(1)
    assert sorted(os.listdir(shared.directory)) == ["segment.readers", "segment_0.tsr"]
    shared.pool.close()
    assert os.listdir(shared.directory) == []
