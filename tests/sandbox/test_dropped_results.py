"""Memory and descriptors of results are given back when the results are dropped, not at the next run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tr_mmap.sandbox import Limits, Sandbox
from tr_mmap.sandbox.areas import Area, Pool

IDLE_NBYTES = 512 << 20  # that a sandbox may keep for its next runs, of inputs and of results each, as docs/ says
IDLE = 16


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(limits=Limits(output_nbytes=64 << 20)) as box:
        yield box


def areas() -> dict[int, int]:
    """Inode and size of the memory that this process has descriptors of."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:tr_mmap-area"):
                status = os.stat(f"/proc/self/fd/{name}")
                found[status.st_ino] = status.st_size
        except FileNotFoundError:
            pass
    return found


@pytest.mark.parametrize("reuse", [False, True])
def test_dropped_results_are_released_without_another_run(box: Sandbox, reuse: bool) -> None:
    box.register("fill", "import numpy as np\noutput = np.ones(1 << 20)", reuse=reuse)
    held = [box.run("fill").outputs["output"] for _ in range(12)]
    assert len(areas()) >= len(held)
    descriptors = len(os.listdir("/proc/self/fd"))
    held.clear()
    assert sum(areas().values()) <= 2 * IDLE_NBYTES
    if not reuse:
        assert len(os.listdir("/proc/self/fd")) <= descriptors - 2 * (12 - 4)


def test_a_program_that_holds_as_many_results_as_it_has_descriptors_goes_on_once_it_drops_them() -> None:
    code = """
import resource
from tr_mmap.sandbox import Sandbox, SandboxBroken
resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
with Sandbox() as box:
    held = []
    try:
        while True:
            held.append(box.execute("import numpy as np\\noutput = np.ones(3)").outputs)
    except SandboxBroken:
        held.clear()
    free = [open("/dev/null") for _ in range(40)]
    print(box.execute("output = 7").outputs)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ended.stdout == "{'output': 7}\n", ended.stderr


def test_a_result_that_is_run_after_run_dropped_finds_the_same_memory_again(box: Sandbox) -> None:
    for _ in range(20):
        box.execute("import numpy as np\noutput = np.ones(1000)")
    assert len(areas()) <= 12


@pytest.mark.parametrize("is_input", [False, True])
def test_areas_that_come_back_while_others_are_taken_are_each_taken_once(is_input: bool) -> None:
    pool = Pool(is_input=is_input)
    before = areas()
    taken: list[Area] = []

    def work() -> None:
        for number in range(200):
            mine = [pool.take(4096 * (1 + number % 3)) for _ in range(3)]
            taken.extend(mine)
            for area in mine:
                assert taken.count(area) == 1
            for area in mine:
                taken.remove(area)
                pool.give(area)

    with ThreadPoolExecutor(4) as threads:
        for each in [threads.submit(work) for _ in range(4)]:
            each.result()
    assert len(areas().keys() - before.keys()) <= IDLE
    pool.close()
    assert not areas().keys() - before.keys()


def test_results_that_are_dropped_behind_the_end_of_their_sandbox_leave_nothing() -> None:
    before = areas()
    with Sandbox() as box:
        held = [box.execute("import numpy as np\noutput = np.ones(3)").outputs["output"] for _ in range(3)]
    assert np.array_equal(held[0], np.ones(3))
    held.clear()
    assert not areas().keys() - before.keys()
