"""Manifests come back as they were written; a garbled one is said to be so."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import msgspec
import pytest
from workspace_content import GARBLED, everything, mine

from tr_mmap.base import system
from tr_mmap.errors import BadMessage, OutOfSpace
from tr_mmap.processes.identity import Identity
from tr_mmap.sessions import manifest as manifests


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path, dead: Identity) -> None:
    manifest = mine("s", worker=dead, doorbells=["/tr_a"], framework="tr_mmap 0.1", channel="files")
    manifests.write(str(tmp_path), manifest)
    assert manifests.read(str(tmp_path)) == manifest
    assert everything(tmp_path) == ["session.json"]
    assert stat.S_IMODE((tmp_path / "session.json").stat().st_mode) == 0o600


def test_a_manifest_of_a_later_version_can_be_read(tmp_path: Path) -> None:
    data = {
        **msgspec.to_builtins(mine("s")),
        "protocol": 9,
        "colour": ["red"],
        "controller": {**msgspec.to_builtins(Identity.current()), "cgroup": "/"},
    }
    (tmp_path / "session.json").write_text(json.dumps(data))
    (tmp_path / "session.json").chmod(0o600)
    manifest = manifests.read(str(tmp_path))
    assert manifest is not None
    assert manifest.protocol == 9
    assert manifest.controller == Identity.current()


def test_no_manifest_is_none(tmp_path: Path) -> None:
    assert manifests.read(str(tmp_path)) is None


@pytest.mark.parametrize("data", GARBLED)
def test_a_garbled_manifest_is_said_to_be_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "session.json").write_bytes(data)
    (tmp_path / "session.json").chmod(0o600)
    with pytest.raises(BadMessage, match=r"session\.json"):
        manifests.read(str(tmp_path))


def test_a_manifest_that_readers_would_refuse_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BadMessage):
        manifests.write(str(tmp_path), mine("s", framework="x" * manifests.MAX_MANIFEST_NBYTES))
    assert everything(tmp_path) == []


def test_a_manifest_that_could_not_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests.write(str(tmp_path), mine("before"))

    def full(*_: object) -> None:
        raise OutOfSpace("full", needed_nbytes=1, free_nbytes=0)

    monkeypatch.setattr(system, "write_all", full)
    with pytest.raises(OutOfSpace):
        manifests.write(str(tmp_path), mine("after"))
    manifest = manifests.read(str(tmp_path))
    assert manifest is not None
    assert manifest.session_id == "before"
    assert everything(tmp_path) == ["session.json"]
