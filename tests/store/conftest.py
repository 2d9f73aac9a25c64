"""A store on tmpfs, which leaves nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Mother

from tr_mmap.store import Store


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tr_test_store_", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def prepared(root: Path) -> Path:
    """A folder for a store that a test copies."""
    path = root / "prepared"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def mother() -> Iterator[Mother]:
    """A process that forks those which are to die."""
    with Mother() as made:
        yield made


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with Store("test", root, indexed=("kind", "size")) as made:
        yield made
        assert made.check() == []
