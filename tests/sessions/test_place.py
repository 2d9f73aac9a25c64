"""Where sessions live: a private directory, and never one that others prepared."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from workspace_content import HOSTILE, everything, hostile_dangling, hostile_symlink, mine

from tr_mmap.base.identifiers import check_session_id
from tr_mmap.errors import BadMessage, HostilePath
from tr_mmap.sessions import workspace as workspaces
from tr_mmap.sessions.workspace import Workspace


@pytest.mark.parametrize("session_id", ["", ".", "..", ".a", "a/b", "../a", "x" * 65, "a\n", "ä", 1, None])
def test_bad_session_ids_are_refused_wherever_they_come_in(ws: Workspace, session_id: Any) -> None:
    for call in (check_session_id, ws.session_dir, ws.release):
        with pytest.raises(BadMessage):
            call(session_id)
    with pytest.raises(BadMessage):
        ws.claim(session_id, mine("a"))


# --- the place --------------------------------------------------------------------------------------------------


def test_tr_workspace_is_made_private_and_used(tmp_path: Path) -> None:
    ws = Workspace.locate({"TR_WORKSPACE": str(tmp_path / "ws")})
    assert ws.root == str(tmp_path / "ws")
    assert stat.S_IMODE(os.stat(ws.root).st_mode) == 0o700
    assert ws.session_dir("s") == str(tmp_path / "ws/python_session/tr_session_s")


def test_a_relative_tr_workspace_does_not_follow_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ws = Workspace.locate({"TR_WORKSPACE": "ws"})
    monkeypatch.chdir("/")
    assert ws.claim("s", mine("s")) == str(tmp_path / "ws/python_session/tr_session_s")


def test_tr_workspace_in_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostilePath, match="in a directory that exists"):
        Workspace.locate({"TR_WORKSPACE": str(tmp_path / "no/ws")})
    assert everything(tmp_path) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self") or os.geteuid() != 0, reason="others may not write there at all")
def test_tr_workspace_in_which_nothing_can_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspaces, "CLAIM_WAIT_S", 0.05)
    with pytest.raises(HostilePath, match="no directory can be made"):
        Workspace("/proc").claim("s", mine("s"))  # mkdir(2) says there that there is no such directory


def test_tr_workspace_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ws").write_text("")
    with pytest.raises(HostilePath, match="not a directory"):
        Workspace.locate({"TR_WORKSPACE": str(tmp_path / "ws")})


def test_by_default_sessions_are_in_shared_memory_in_a_private_directory(default_parent: Path) -> None:
    for environ in ({}, {"TR_WORKSPACE": ""}):
        ws = Workspace.locate(environ)
        assert ws.root == str(default_parent / f"tr_mmap-{os.getuid()}")
        assert stat.S_IMODE(os.stat(ws.root).st_mode) == 0o700


def test_without_shared_memory_sessions_are_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspaces, "SHM_DIR", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert Workspace.locate({}).root == str(tmp_path / f"tr_mmap-{os.getuid()}")


@pytest.mark.parametrize("make", HOSTILE)
def test_a_default_place_that_others_prepared_is_refused(default_parent: Path, make: Any) -> None:
    make(default_parent / f"tr_mmap-{os.getuid()}")
    before = everything(default_parent)
    with pytest.raises(HostilePath, match="set TR_WORKSPACE") as caught:
        Workspace.locate({})
    assert ("symlink" in caught.value.reason) == (make in (hostile_symlink, hostile_dangling))
    assert everything(default_parent) == before


def test_another_users_default_place_is_refused(default_parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    (default_parent / f"tr_mmap-{os.getuid()}").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(HostilePath, match=f"belongs to user {owner}"):
        Workspace.locate({})


@pytest.mark.parametrize("make", HOSTILE)
def test_a_directory_of_sessions_that_others_prepared_is_refused(ws: Workspace, make: Any) -> None:
    make(Path(ws.root) / "python_session")
    with pytest.raises(HostilePath):
        ws.claim("s", mine("s"))
    with pytest.raises(HostilePath):
        ws.sweep()


def test_a_relative_tr_workspace_in_a_removed_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(HostilePath, match="ws is relative, and this process's current directory has been removed"):
        Workspace.locate({"TR_WORKSPACE": "ws"})
