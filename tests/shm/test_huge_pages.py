"""Segments on a tmpfs that gives huge pages to those who ask for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tr_mmap.base import system

PROGRAM = """
import mmap
import os
import re

import numpy as np

from tr_mmap import PythonSession
from tr_mmap.base import system

NBYTES = 8 << 20


def huge_nbytes(name):
    found, is_it = 0, False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
                is_it = name in line
            elif is_it and line.startswith("ShmemPmdMapped:"):
                found += int(line.split()[1]) << 10
    return found


def without_us():
    with open("/dev/shm/probe", "w+b") as file:
        os.ftruncate(file.fileno(), NBYTES)
        with mmap.mmap(file.fileno(), NBYTES) as mapping:
            mapping.madvise(14)
            mapping[0] = 1
            return huge_nbytes("probe")


print(system.gives_huge_pages("/dev/shm"))
can_have = without_us()
with PythonSession() as session:
    x = np.arange(NBYTES // 8, dtype=np.float64)
    for number in range(1, 4):
        assert np.array_equal(session.calculate("square", x + number), (x + number) ** 2)
        if can_have and number == 1:
            assert huge_nbytes(".tsr") >= NBYTES - (4 << 20), huge_nbytes(".tsr")
    loan = session.empty(NBYTES // 8, "float64")
    loan[:] = x
    assert np.array_equal(session.calculate("square", loan), x**2)
print("right")
"""


def run_on(options: str, tmp_path: Path, text: str = PROGRAM) -> str:
    """What a program prints where ``/dev/shm`` is a tmpfs that was mounted with these options."""
    program = tmp_path / "program.py"
    program.write_text(text)
    line = f"mount -t tmpfs -o {options} tmpfs /dev/shm && exec {sys.executable} {program}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", line],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("options", "is_advised"), [("size=200m,huge=advise", True), ("huge=always", False), ("mode=1777", False)]
)
def test_tensors_are_right_whatever_huge_pages_a_tmpfs_gives(options: str, is_advised: bool, tmp_path: Path) -> None:
    assert run_on(options, tmp_path).split() == [str(is_advised), "right"]


AFTER_LOANS = """
from tr_mmap import PythonSession

with PythonSession() as session:
    for framework in ("numpy", "torch") * 2:
        for nbytes in (60 << 20, 64 << 20):  # one after the other: there is no room for both
            loan = session.empty(nbytes, "uint8", framework)
            loan[:1] = 1
            session.send_tensor(loan, "tag")
            del loan
            session.drop_tensor("tag")
print("right")
"""


def test_the_memory_of_a_numpy_or_torch_loan_that_was_sent_is_there_for_one_of_another_size(tmp_path: Path) -> None:
    assert run_on("size=100m", tmp_path, AFTER_LOANS).split() == ["right"]


def test_a_folder_that_is_on_no_tmpfs_gives_none(tmp_path: Path) -> None:
    assert system.gives_huge_pages("/proc") is False
