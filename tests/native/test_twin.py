"""A mapping and its copy-on-write twin: who comes to the place, and what is there then."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import numpy as np
import pytest

from tr_mmap import native
from tr_mmap.native import OwnerSegment, make_twin, map_file
from tr_mmap.wire.segments import HEAD_NBYTES

pytestmark = pytest.mark.skipif(not native.IS_COMPILED, reason="twins are the extension's")

PAGE_NBYTES = os.sysconf("SC_PAGESIZE")
NBYTES = 8 << 20  # some tables of pages


class Lent:
    """A segment of a file of its own, whose payload has a twin."""

    def __init__(self, nbytes: int = NBYTES) -> None:
        self.fd = os.memfd_create("twin")
        os.truncate(self.fd, HEAD_NBYTES + nbytes)
        self.buffer = memoryview(map_file(self.fd, HEAD_NBYTES + nbytes, 0, True, False))
        self.place = np.frombuffer(self.buffer, np.uint8, offset=HEAD_NBYTES)
        self.segment = OwnerSegment(self.buffer)
        self.segment.twin = make_twin(self.buffer[HEAD_NBYTES:], self.fd, HEAD_NBYTES)

    def in_file(self, count: int = 1, at: int = 0) -> bytes:
        return os.pread(self.fd, count, HEAD_NBYTES + at)


@pytest.fixture
def lent() -> Iterator[Lent]:
    made = Lent()
    yield made
    os.close(made.fd)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def touch(place: np.ndarray) -> int:
    return int(place[::PAGE_NBYTES].sum())


def test_what_is_at_the_place_stays_and_stores_do_not_reach_the_file(lent: Lent) -> None:
    view = lent.place[100:200]  # made before
    lent.place[:] = 1
    assert lent.segment.let_twin_come() is True
    assert lent.segment.is_private is True
    assert lent.place.min() == lent.place.max() == 1
    view[:] = 2
    lent.place[-1] = 3
    assert lent.in_file(NBYTES) == b"\1" * NBYTES
    assert (view[0], lent.place[-1]) == (2, 3)


def test_when_the_twin_goes_its_stores_are_forgotten_and_new_ones_reach_the_file(lent: Lent) -> None:
    for number in range(1, 5):
        lent.place[:] = number
        assert lent.segment.let_twin_come() is True
        lent.place[:] = 99
        assert lent.segment.let_twin_go() is True
        assert lent.segment.is_private is False
        assert lent.place.min() == lent.place.max() == number
        lent.place[7] = 50 + number
        assert lent.in_file(1, 7) == bytes([50 + number])


def test_the_first_mapping_keeps_its_pages_meanwhile(lent: Lent) -> None:
    lent.place[:] = 1
    lent.segment.let_twin_come()
    lent.segment.let_twin_go()
    before = faults()
    assert touch(lent.place) == NBYTES // PAGE_NBYTES
    assert faults() - before < NBYTES // PAGE_NBYTES // 16  # the kernel would fetch 16 around each


def test_to_come_twice_or_to_go_twice_changes_nothing(lent: Lent) -> None:
    lent.place[0] = 1
    assert lent.segment.let_twin_go() is True
    assert lent.segment.let_twin_come() is True
    lent.place[0] = 2
    assert lent.segment.let_twin_come() is False  # the place is the borrower's own already
    assert lent.place[0] == 2
    for _ in range(2):
        assert lent.segment.let_twin_go() is True
        assert lent.place[0] == 1


def test_a_segment_without_a_twin_says_so(lent: Lent) -> None:
    lent.segment.twin = None
    assert lent.segment.let_twin_come() is False
    assert lent.segment.let_twin_go() is True


def test_a_twin_that_ends_leaves_the_place_as_it_was_and_no_mapping(lent: Lent) -> None:
    def mappings() -> int:
        with open("/proc/self/maps") as maps:
            return sum("memfd:twin" in line for line in maps)

    lent.segment.twin = None
    before = mappings()
    for _ in range(3):
        lent.segment.twin = make_twin(lent.buffer[HEAD_NBYTES:], lent.fd, HEAD_NBYTES)
        lent.place[0] = 1
        lent.segment.let_twin_come()
        lent.place[0] = 2
        assert mappings() > before
        lent.segment.twin = None
        lent.segment.is_private = False  # as its owner knows
        assert lent.place[0] == 1
        assert mappings() == before


def test_a_child_that_was_forked_meanwhile_has_what_the_borrower_sees(lent: Lent) -> None:
    lent.place[0] = 1
    lent.segment.let_twin_come()
    lent.place[0] = 2
    pid = os.fork()
    if pid == 0:
        os._exit(int(lent.place[0]))
    lent.segment.let_twin_go()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert lent.place[0] == 1


@pytest.mark.parametrize(("start", "nbytes"), [(1, PAGE_NBYTES), (0, PAGE_NBYTES - 1), (0, 0)])
def test_a_place_that_is_not_whole_pages_is_refused(lent: Lent, start: int, nbytes: int) -> None:
    place = lent.buffer[HEAD_NBYTES + start :][:nbytes]
    with pytest.raises(ValueError, match="whole pages"):
        make_twin(place, lent.fd, HEAD_NBYTES)
