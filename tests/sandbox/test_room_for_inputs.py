"""Inputs for which the machine has no memory are refused before a byte is copied; others stop no other thread."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tr_mmap.sandbox import OutOfSpace, Sandbox
from tr_mmap.sandbox.areas import Area
from tr_mmap.sandbox.room import free_nbytes

TOO_MANY = 1 << 40  # of 8 bytes each


@pytest.fixture(scope="module", params=["contained", "native"])
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param) as box:
        yield box


@pytest.mark.parametrize("shape", [TOO_MANY, (TOO_MANY, TOO_MANY)])
def test_a_loan_that_is_larger_than_the_machine_s_memory_is_refused(box: Sandbox, shape: int | tuple[int, int]) -> None:
    with pytest.raises(OutOfSpace, match="give less at once") as caught:
        box.empty(shape)
    assert caught.value.needed_nbytes > caught.value.free_nbytes > 0


@pytest.mark.parametrize("dtype", ["<f8", ">f8"])
@pytest.mark.parametrize("count", [1, 3])
def test_an_array_that_shows_few_bytes_many_times_is_refused_before_it_is_copied(dtype: str, count: int) -> None:
    with Sandbox() as box:
        with pytest.raises(OutOfSpace):  # first: without the check, the copy would take all memory of this machine
            box.empty(TOO_MANY)
        inputs = {str(each): np.broadcast_to(np.zeros(1, dtype), TOO_MANY) for each in range(count)}
        with pytest.raises(OutOfSpace) as caught:
            box.execute("output = 1", inputs)
        assert caught.value.needed_nbytes >= count * 8 * TOO_MANY
        assert box.execute("output = 1").outputs == {"output": 1}


def test_there_is_no_more_room_than_the_machine_has() -> None:
    assert 0 < free_nbytes() < 8 * TOO_MANY


def test_other_threads_go_on_while_memory_for_an_input_is_mapped() -> None:
    """One of them sees how the memory becomes more."""
    area = Area(64 << 20, is_input=True)
    seen: set[int] = set()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            seen.add(os.fstat(area.fd).st_blocks * 512)

    watcher = threading.Thread(target=watch)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        watcher.start()
        area.fill([(0, np.zeros(area.nbytes, np.uint8))])
    finally:
        is_over.set()
        watcher.join()
        sys.setswitchinterval(interval_s)
        area.close()
    assert len(seen - {0, area.nbytes}) > 1
