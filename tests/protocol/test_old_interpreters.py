"""A legacy peer may be a program of an interpreter that is too old for the package: of Python 3.6 and newer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from legacy_peers import OLD_WORKER, old_controller
from support import TOOLS

from tr_mmap import PythonSession

QUESTION = "import sys; print('%d.%d' % sys.version_info[:2])"


def candidates(version: str) -> list[str]:
    found = [path for path in (shutil.which(f"python{version}"),) if path]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip()
        found += map(str, sorted(Path(root).glob(f"versions/{version}.*/bin/python3")))
    return found


@pytest.fixture(params=["3.6", "3.7", "3.8", "3.9", "3.10"])
def old_python(request: pytest.FixtureRequest) -> str:
    for each in candidates(request.param):
        done = subprocess.run([each, "-c", QUESTION], capture_output=True, text=True, check=False)
        if done.stdout.strip() == request.param:
            return each
    pytest.skip(f"NOT TESTED: legacy peers of Python {request.param}, which is not here")


def test_an_old_interpreters_worker_answers_over_the_legacy_channel(old_python: str) -> None:
    with PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy", python=old_python) as session:
        assert session.fetch_response("say hello") == "hello"
        a = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert np.array_equal(session.calculate("matmul", a, a.T), a @ a.T)


def test_an_old_interpreters_controller_is_answered_by_our_worker(old_python: str, tmp_path: Path) -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    with old_controller(tmp_path, sys.executable, TOOLS, tmp_path, python=old_python) as controller:
        controller.write("a", a)
        controller.write("b", a)
        (again,) = controller.tensors("echo", "a")
        assert np.array_equal(again, a)
        controller.do(exit=True)
