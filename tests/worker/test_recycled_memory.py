"""Freed memory of a worker's handlers is used again, unless the session says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import script

from tr_mmap import PythonSession

NBYTES = 16 << 20
PAGES = NBYTES // 4096
TIMES = 20
WORKER = """
import resource
import numpy as np
from tr_mmap import Server

server = Server()

@server.command("faults")
def faults(nbytes: int, times: int):
    x = np.ones(nbytes // 4, np.float32)
    y = x * 1.5
    del y
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        y = x * 1.5
        del y
    return str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

server.run()
"""
GIVE_BACK = """
import numpy as np
from tr_mmap.base.system import keep_freed_memory, return_freed_memory

def resident_pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

assert keep_freed_memory(64 << 20, 1 << 30)
blocks = [np.ones(8 << 20, np.uint8) for _ in range(16)]
above = np.ones(100_000, np.uint8)
before = resident_pages()
blocks.clear()
kept = resident_pages()
return_freed_memory()
print(before - kept, before - resident_pages())
"""


@pytest.mark.parametrize("recycle", [True, False])
def test_new_arrays_of_a_handler_take_no_new_pages(tmp_path: Path, recycle: bool) -> None:
    path = script(tmp_path, WORKER)
    with PythonSession(path, f"recycle-{os.getpid()}", quiet_mode=True, recycle_memory=recycle) as session:
        faults = int(session.fetch_response(f"faults {NBYTES} {TIMES}"))
    assert faults < 3 * TIMES if recycle else faults >= TIMES * PAGES // 512  # a huge page, if granted, is 512


def test_kept_memory_is_given_back_also_below_a_block_in_use() -> None:
    found = subprocess.run([sys.executable, "-c", GIVE_BACK], capture_output=True, text=True, check=True)
    while_kept, after = map(int, found.stdout.split())
    assert while_kept < 8 * (8 << 20) // 4096
    assert after > 12 * (8 << 20) // 4096
