"""The distributions, built once for all tests, also where several processes share these."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from distributions import Distributions, copy_tracked, python_build


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Distributions:
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "distributions"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        out = folder / "dist"
        if not out.exists():
            part = folder / "part"
            python_build(copy_tracked(folder / "tree"), part, is_isolated=bool(pytestconfig.getoption("--full")))
            part.rename(out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Distributions(sdist, wheel)


@pytest.fixture(scope="session")
def pure_wheel(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A wheel that was built where nothing can be compiled, and what the build has said."""
    folder = tmp_path_factory.mktemp("pure")
    tree = copy_tracked(folder / "tree")
    said = python_build(tree, folder / "dist", "--wheel", CC="/bin/false", CXX="/bin/false")
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel, said.stderr + said.stdout
