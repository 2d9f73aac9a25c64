"""Workspaces, and owners of sessions dead and alive."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tr_mmap.processes.identity import Identity
from tr_mmap.sessions import workspace as workspaces
from tr_mmap.sessions.workspace import Workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.locate({"TR_WORKSPACE": str(tmp_path / "ws")})


@pytest.fixture
def default_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /dev/shm."""
    monkeypatch.setattr(workspaces, "SHM_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def dead() -> Identity:
    """A process that has ended."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as popen:
        identity = Identity.of(popen.pid)
    assert identity is not None
    assert not identity.is_alive()
    return identity


@pytest.fixture
def living() -> Iterator[tuple[subprocess.Popen[bytes], Identity]]:
    """Another process that lives."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as popen:
        identity = Identity.of(popen.pid)
        assert identity is not None
        yield popen, identity
