"""One owner to a session: claims are whole or not at all, and release leaves nothing."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from workspace_content import GARBLED, everything, hostile_dangling, hostile_file, hostile_symlink, leave, mine

from tr_mmap.base import system
from tr_mmap.errors import BadMessage, OutOfSpace, SessionInUse
from tr_mmap.processes.identity import Identity
from tr_mmap.sessions import manifest as manifests
from tr_mmap.sessions import workspace as workspaces
from tr_mmap.sessions.manifest import Manifest
from tr_mmap.sessions.workspace import Workspace


def test_a_session_appears_with_its_manifest_in_it(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ws.session_dir("s")
    seen: list[bool] = []
    real = manifests.write

    def watched(directory: str, manifest: Manifest) -> None:
        real(directory, manifest)
        seen.append(os.path.exists(path))

    monkeypatch.setattr(manifests, "write", watched)
    assert ws.claim("s", mine("s")) == path
    assert seen == [False]
    assert everything(path) == ["session.json"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700


def test_a_claim_that_fails_leaves_nothing_behind(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutOfSpace("full", needed_nbytes=1, free_nbytes=0)

    monkeypatch.setattr(system, "write_all", full)
    with pytest.raises(OutOfSpace):
        ws.claim("s", mine("s"))
    assert everything(ws.root) == []


def test_a_living_owners_session_is_in_use(ws: Workspace, living: tuple[Any, Identity]) -> None:
    path = leave(ws, "s", living[1])
    with pytest.raises(SessionInUse) as caught:
        ws.claim("s", mine("s"))
    assert (caught.value.session_id, caught.value.pid) == ("s", living[1].pid)
    for part in ("'s'", str(living[1].pid), str(path), "choose another"):
        assert part in str(caught.value)
    assert everything(path) == ["a.tsr", "session.json"]
    assert everything(ws.root)[1:2] == ["python_session/tr_session_s"]


def test_the_same_process_cannot_claim_a_session_twice(ws: Workspace) -> None:
    ws.claim("s", mine("s"))
    with pytest.raises(SessionInUse):
        ws.claim("s", mine("s"))


def test_a_dead_owners_session_is_replaced(ws: Workspace, dead: Identity) -> None:
    leave(ws, "s", dead, worker=dead)
    path = ws.claim("s", mine("s"))
    assert everything(path) == ["session.json"]
    assert everything(ws.root) == [
        "python_session",
        "python_session/tr_session_s",
        "python_session/tr_session_s/session.json",
    ]


def test_a_claim_waits_for_a_dead_owners_worker_to_follow_it(
    ws: Workspace,
    dead: Identity,
    living: tuple[subprocess.Popen[bytes], Identity],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    popen, worker = living
    path = leave(ws, "s", dead, worker=worker)
    looks: list[bool] = []
    real = system.try_lock_dir

    def look(fd: int) -> bool:
        looks.append((path / "a.tsr").exists())
        if len(looks) == 3:
            popen.kill()
            popen.wait()
        return real(fd)

    monkeypatch.setattr(system, "try_lock_dir", look)
    ws.claim("s", mine("s"))
    assert looks == [True] * 3


def test_a_dead_owners_session_whose_worker_stays_is_in_use(
    ws: Workspace, dead: Identity, living: tuple[Any, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspaces, "CLAIM_WAIT_S", 0.02)
    leave(ws, "s", dead, worker=living[1])
    with pytest.raises(SessionInUse, match="worker") as caught:
        ws.claim("s", mine("s"))
    assert caught.value.pid == living[1].pid


@pytest.mark.parametrize("data", [*GARBLED, None])
def test_what_cannot_be_judged_is_neither_replaced_nor_swept(ws: Workspace, dead: Identity, data: bytes | None) -> None:
    path = leave(ws, "s", dead)
    if data is None:
        (path / "session.json").unlink()
    else:
        (path / "session.json").write_bytes(data)
    before = everything(path)
    with pytest.raises(SessionInUse) as caught:
        ws.claim("s", mine("s"))
    assert caught.value.pid == 0
    report = ws.sweep()
    assert report.removed == []
    assert "manifest" in report.kept["s"]
    assert everything(path) == before


def test_an_empty_directory_an_older_peer_made_is_not_replaced(ws: Workspace) -> None:
    ws.claim("other", mine("other"))
    os.mkdir(ws.session_dir("s"))
    with pytest.raises(SessionInUse):
        ws.claim("s", mine("s"))


@pytest.mark.parametrize("make", [hostile_symlink, hostile_dangling, hostile_file])
def test_what_is_no_directory_is_left_alone(ws: Workspace, make: Any) -> None:
    ws.claim("other", mine("other"))
    make(Path(ws.session_dir("s")))
    before = everything(ws.root)
    with pytest.raises(SessionInUse):
        ws.claim("s", mine("s"))
    assert "s" in ws.sweep().kept
    assert everything(ws.root) == before


def test_a_symlinked_manifest_is_not_believed(ws: Workspace, dead: Identity, tmp_path: Path) -> None:
    path = leave(ws, "s", dead)
    (path / "session.json").rename(tmp_path / "real.json")
    (path / "session.json").symlink_to(tmp_path / "real.json")
    assert "symlink" in ws.sweep().kept["s"]
    assert path.is_dir()


def test_release_leaves_nothing_not_even_empty_directories(default_parent: Path) -> None:
    ws = Workspace.locate({})
    path = ws.claim("s", mine("s"))
    os.makedirs(path + "/sub/dir")
    assert ws.release("s")
    assert everything(default_parent) == []
    assert ws.release("s")


def test_release_keeps_the_users_own_directory_and_other_sessions(ws: Workspace) -> None:
    ws.claim("a", mine("a"))
    ws.claim("b", mine("b"))
    ws.release("a")
    assert everything(ws.root)[1:2] == ["python_session/tr_session_b"]
    ws.release("b")
    assert os.path.isdir(ws.root)
    assert everything(ws.root) == []


def test_release_leaves_another_living_owners_session(ws: Workspace, living: tuple[Any, Identity]) -> None:
    path = leave(ws, "s", living[1])
    assert not ws.release("s")
    assert path.is_dir()


def test_release_removes_an_own_session_whose_manifest_was_lost(ws: Workspace) -> None:
    path = Path(ws.claim("s", mine("s")))
    (path / "session.json").unlink()
    assert ws.release("s")
    assert not path.exists()


def test_a_session_of_the_wrong_name_is_refused(ws: Workspace) -> None:
    with pytest.raises(BadMessage):
        ws.claim("a", mine("b"))


def test_a_claim_survives_parents_that_vanish_at_every_step(
    default_parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = Workspace.locate({})
    to_vanish = [ws.root, ws.root + "/python_session"] * 2
    real = system.make_dir

    def make_dir(path: str) -> None:
        real(path)
        if path in to_vanish:
            to_vanish.remove(path)
            os.rmdir(path)

    os.rmdir(ws.root)
    monkeypatch.setattr(system, "make_dir", make_dir)
    assert os.path.isdir(ws.claim("s", mine("s")))
    assert to_vanish == []
