"""At a limit of the system: an error that names it, nothing lost, and on it goes once views are gone."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segment_sides import PAGE, Sides
from support import BOUND_S, FRAMEWORKS, environment

from tr_mmap.base import system
from tr_mmap.base.system import check_limit
from tr_mmap.errors import OutOfSpace, SystemLimit

# Each runs in a process of its own, because it uses up a limit of its process.
TO_THE_LIMIT = """
import ctypes, mmap, resource, sys
import numpy as np
from tr_mmap.errors import SystemLimit
from tr_mmap.native import drain
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.reader import SegmentReader

pool, reader = SegmentPool(sys.argv[1], "segment"), SegmentReader(sys.argv[1])
framework, limit = sys.argv[2], sys.argv[3]
for _ in range(2):  # so that all code is loaded
    warm = pool.publish(np.zeros(2000))
    reader.receive(warm.name, warm.seq, framework)
    warm.release()

def lower():
    if limit == "vm.max_map_count":
        left = int(open("/proc/sys/vm/max_map_count").read()) - sum(1 for _ in open("/proc/self/maps")) - 60
        junk = mmap.mmap(-1, 8192 * (left // 2 + 1))
        base = ctypes.addressof(ctypes.c_char.from_buffer(junk))
        for number in range(left // 2):  # a page that may not be touched makes two mappings of one
            ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + 8192 * number), 4096, 0)
        return junk
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, ((pages << 12) + (8 << 20), resource.RLIM_INFINITY))

nbytes = 8000 if limit == "vm.max_map_count" else 400_000
x = np.empty(nbytes // 8, int)  # before: numpy has its own error
junk = lower()
held, views, what = [], [], ""
try:
    while len(views) < 5000:
        x.fill(len(held))
        held.append(pool.publish(x))
        views.append(reader.receive(held[-1].name, held[-1].seq, framework))
except SystemLimit as error:
    what = error.limit
    assert error.errno and error.limit in str(error), error
assert all(int(view[0]) == int(view[-1]) == number for number, view in enumerate(views))
count = len(views)
views.clear()
drain()
for each in held:
    each.release()
held.clear()
for number in range(3 * count):  # it goes on
    x.fill(number)
    segment = pool.publish(x)
    view = reader.receive(segment.name, segment.seq, framework)
    assert int(view[5]) == number
    del view
    drain()
    segment.release()
pool.close()
print(what)
"""


@pytest.mark.each_value
@pytest.mark.skipif(not os.path.exists("/proc/sys/vm/max_map_count"), reason="Linux only")
@pytest.mark.parametrize("limit", ["vm.max_map_count", "RLIMIT_AS"])
@FRAMEWORKS
def test_at_a_limit_of_memory_an_error_names_it_and_all_goes_on_when_views_go(
    directory: Path, framework: str, limit: str
) -> None:
    if limit == "vm.max_map_count" and int(Path("/proc/sys/vm/max_map_count").read_text()) > 1 << 20:
        pytest.skip("this system allows too many mappings to use them up")
    done = subprocess.run(
        [sys.executable, "-c", TO_THE_LIMIT, str(directory), framework, limit],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=10 * BOUND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == limit


def test_without_descriptors_an_error_names_the_limit_and_nothing_is_lost(sides: Sides) -> None:
    held = sides.pool.publish(np.arange(5))
    before, names = sides.pool.stats(), os.listdir(sides.directory)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        for action in (lambda: sides.pool.publish(np.arange(9000)), lambda: sides.look(held)):
            with pytest.raises(SystemLimit) as caught:
                action()
            assert (caught.value.limit, caught.value.errno) == ("RLIMIT_NOFILE", errno.EMFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (sides.pool.stats(), os.listdir(sides.directory)) == (before, names)
    assert sides.look(held).tolist() == [0, 1, 2, 3, 4]
    held.release()


def test_free_segments_make_room_at_a_limit(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    for pages in (1, 2, 3):
        sides.pass_on(np.zeros(pages * PAGE, np.uint8))
    sides.settle()
    real = system.map_write

    def map_write(fd: int, nbytes: int, offset: int = 0) -> memoryview:
        if len(os.listdir(sides.directory)) > 1:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real(fd, nbytes, offset)

    monkeypatch.setattr(system, "map_write", map_write)
    held = sides.pool.publish(np.zeros(5 * PAGE, np.uint8))
    with pytest.raises(SystemLimit):
        sides.pool.publish(np.zeros(9 * PAGE, np.uint8))
    assert os.listdir(sides.directory) == [held.name]
    held.release()


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EINVAL])
def test_any_other_failure_is_not_called_a_limit(code: int) -> None:
    check_limit(OSError(code, "no"), "a file cannot be mapped")
    check_limit(OutOfSpace("full", needed_nbytes=1, free_nbytes=0), "a file cannot be made")


# --- waiting for room -------------------------------------------------------------------------------------------


def test_the_callers_deadline_ends_the_wait_for_room(limited: Callable[..., Sides]) -> None:
    sides = limited(PAGE, block_ms=1000 * BOUND_S)
    view = sides.pass_on(np.zeros(3))
    with pytest.raises(OutOfSpace):
        sides.pool.publish(np.zeros(3), 0.0)  # over long ago
    with pytest.raises(OutOfSpace):
        sides.pool.publish(np.zeros(3), deadline_s=0.0, may_share=True)
    assert view.tolist() == [0] * 3


def test_the_pools_own_time_ends_the_wait_for_room_first(limited: Callable[..., Sides]) -> None:
    sides = limited(PAGE, block_ms=0)
    held = sides.pool.publish(np.zeros(3))
    with pytest.raises(OutOfSpace):
        sides.pool.publish(np.zeros(3), deadline_s=float("inf"))
    held.release()


def test_another_may_use_the_pool_while_one_waits_for_room(limited: Callable[..., Sides]) -> None:
    sides = limited(2 * PAGE, block_ms=1000 * BOUND_S)
    views = [sides.pass_on(np.full(3, number)) for number in range(2)]
    inner: list[Any] = []

    def pause(_: float) -> None:  # what another thread does once the lock is released
        assert sides.pool.is_slow_path_running
        if not inner:
            views.pop()
            sides.settle()
            inner.append(sides.pool.publish(np.full(3, 8)))
            assert sides.look(inner[0]).tolist() == [8] * 3
            assert sides.pool.quick_publish(np.full(3, 8)) is None  # the slow path still runs
            sides.pool.is_slow_path_running = False  # as one that came first, waited too, and went first
        else:
            inner[0].release()
            sides.settle()

    sides.pool.pause = pause
    held = sides.pool.publish(np.full(3, 9))
    assert not sides.pool.is_slow_path_running
    assert sides.look(held).tolist() == [9] * 3
    assert views[0].tolist() == [0] * 3
    held.release()
