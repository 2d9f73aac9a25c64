"""The distributions, built once for all tests, also where several processes share these."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from distributions import Distributions, copy_tracked, python_build


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives the folder of that name; the first process that asks fills it, and the others wait."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "distributions"
    folder.mkdir(exist_ok=True)

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / name).exists():
                fill(folder / f"{name}.part")
                (folder / f"{name}.part").rename(folder / name)
        return folder / name

    return make


@pytest.fixture(scope="session")
def distributions(once: Callable[[str, Callable[[Path], object]], Path], pytestconfig: pytest.Config) -> Distributions:
    is_isolated = bool(pytestconfig.getoption("--full"))

    def build(folder: Path) -> None:
        python_build(copy_tracked(folder / "tree"), folder, is_isolated=is_isolated)

    folder = once("whole", build)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Distributions(sdist, wheel)


@pytest.fixture(scope="session")
def pure_wheel(once: Callable[[str, Callable[[Path], object]], Path]) -> tuple[Path, str]:
    """A wheel that was built where nothing can be compiled, and what the build has said."""

    def build(folder: Path) -> None:
        said = python_build(copy_tracked(folder / "tree"), folder, "--wheel", CC="/bin/false", CXX="/bin/false")
        (folder / "said.txt").write_text(said.stdout + said.stderr)

    folder = once("pure", build)
    (wheel,) = folder.glob("*.whl")
    return wheel, (folder / "said.txt").read_text()
