"""A package that is imported when it is first needed, at the limit of open files: that limit, and it works later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import environment

from tr_mmap import save

SCRIPT = """
import importlib, resource, sys
import numpy as np
import tr_mmap.tsr.frameworks
from tr_mmap import PythonSession, SystemLimit, from_file, load
from tr_mmap.tsr.dtypes import by_name

path, package, use = sys.argv[1:]
load(path)
assert package not in sys.modules
importlib.invalidate_caches()  # else no directory need be read to look for it
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
try:
    eval(use)
except SystemLimit as error:
    print(error.limit, package in str(error))
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
eval(use)
"""


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("torch", "from_file(path)"),
        ("torch", "load(path, framework='torch')"),
        ("torch", "PythonSession(framework='torch')"),
        ("ml_dtypes", "by_name('bfloat16').numpy"),
    ],
)
def test_a_first_need_of_a_package_at_the_limit_of_open_files_is_that_limit_and_works_later(
    tmp_path: Path, package: str, use: str
) -> None:
    save(tmp_path / "x.tsr", np.arange(3.0))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "x.tsr", package, use],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (done.stdout, done.stderr) == ("RLIMIT_NOFILE True\n", "")
