"""Sweeps: nothing of the living is ever removed, nothing of the dead stays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import posix_ipc
import pytest
from workspace_content import everything, leave, mine

from tr_mmap.base import system
from tr_mmap.processes.identity import Identity
from tr_mmap.sessions import manifest as manifests
from tr_mmap.sessions import reclaim
from tr_mmap.sessions import workspace as workspaces
from tr_mmap.sessions.manifest import Manifest
from tr_mmap.sessions.workspace import Workspace, sweep


@pytest.fixture
def semaphores() -> Iterator[list[str]]:
    names = [f"/tr_test_{os.getpid()}_{i}" for i in range(2)]
    for name in names:
        posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600).close()
    yield names
    for name in names:
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_semaphore(name)


def has_semaphore(name: str) -> bool:
    try:
        posix_ipc.Semaphore(name).close()
    except posix_ipc.ExistentialError:
        return False
    return True


def test_sweep_removes_the_dead_with_their_semaphores_and_keeps_the_living(
    ws: Workspace, dead: Identity, living: tuple[Any, Identity], semaphores: list[str]
) -> None:
    leave(ws, "old", dead, worker=dead, doorbells=[semaphores[0], "/tr_never_was"])
    alive = leave(ws, "new", living[1], doorbells=[semaphores[1]])
    half = leave(ws, "half", dead, worker=living[1])
    report = sweep(ws.root)
    assert report.removed == ["old"]
    assert sorted(report.kept) == ["half", "new"]
    assert f"process {living[1].pid}" in report.kept["new"]
    assert not os.path.exists(ws.session_dir("old"))
    assert alive.is_dir()
    assert half.is_dir()
    assert [has_semaphore(name) for name in semaphores] == [False, True]


def test_a_claim_over_the_dead_removes_their_semaphores(ws: Workspace, dead: Identity, semaphores: list[str]) -> None:
    leave(ws, "s", dead, doorbells=semaphores)
    ws.claim("s", mine("s"))
    assert [has_semaphore(name) for name in semaphores] == [False, False]


def test_a_manifest_cannot_have_other_programs_semaphores_removed(
    ws: Workspace, dead: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    monkeypatch.setattr(reclaim, "unlink_semaphore", removed.append)
    names = ["/theirs", "tr_a", "/tr_", "/tr_../x", "/tr_a\n", "", "/tr_" + "x" * 300, "/tr_ok"]
    leave(ws, "s", dead, doorbells=names)
    assert ws.sweep().removed == ["s"]
    assert removed == ["/tr_ok"]


def test_sweep_removes_what_the_dead_had_half_made_or_half_removed(
    ws: Workspace, dead: Identity, living: tuple[Any, Identity]
) -> None:
    sessions = Path(ws.root) / "python_session"
    sessions.mkdir(mode=0o700)
    for kind in ("new", "gone", "pool"):
        for identity in (dead, living[1], Identity.local(living[1].pid, living[1].start_ticks - 1)):
            (sessions / f".{kind}-{identity.pid}-{identity.start_ticks}-0a").mkdir()
    (sessions / ".gone-x-1-0a").mkdir()
    (sessions / "notes").write_text("")
    ws.sweep()
    alive = f"{living[1].pid}-{living[1].start_ticks}-0a"
    kept = [f".gone-{alive}", ".gone-x-1-0a", f".new-{alive}", f".pool-{alive}", "notes"]
    assert sorted(os.listdir(sessions)) == sorted(kept)


def test_sweep_leaves_no_empty_directories(default_parent: Path, dead: Identity) -> None:
    leave(Workspace.locate({}), "s", dead)
    assert Workspace.locate({}).sweep().removed == ["s"]
    assert everything(default_parent) == []
    assert Workspace.locate({}).sweep().removed == []
    assert everything(default_parent) == []


def test_sweep_without_a_root_is_of_the_users_workspace(
    ws: Workspace, dead: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TR_WORKSPACE", ws.root)
    leave(ws, "s", dead)
    assert sweep().removed == ["s"]


def test_sweep_of_a_place_that_is_not_there_finds_nothing(tmp_path: Path) -> None:
    report = sweep(str(tmp_path / "none"))
    assert (report.removed, report.kept) == ([], {})
    assert everything(tmp_path) == []


def test_another_users_session_is_never_touched(ws: Workspace, dead: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    path = leave(ws, "s", dead)
    monkeypatch.setattr(workspaces, "_check_private", lambda *_: None)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert ws.sweep().kept == {"s": f"it belongs to user {owner}"}
    assert path.is_dir()


def test_a_slow_sweeper_does_not_remove_the_session_that_replaced_the_dead_one(
    ws: Workspace, dead: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(ws, "s", dead)
    real = system.try_lock_dir

    def overtaken(fd: int) -> bool:
        monkeypatch.setattr(system, "try_lock_dir", real)
        ws.claim("s", mine("s"))  # removes the dead one's, while the slow sweeper has it open
        return real(fd)

    monkeypatch.setattr(system, "try_lock_dir", overtaken)
    report = ws.sweep()
    assert (report.removed, report.kept) == ([], {})
    manifest = manifests.read(ws.session_dir("s"))
    assert manifest is not None
    assert manifest.controller == Identity.current()


def test_a_sweeper_at_work_is_not_disturbed_by_a_second(
    ws: Workspace, dead: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(ws, "s", dead)
    real = manifests.read
    second: list[dict[str, str]] = []

    def read(directory: str) -> Manifest | None:
        monkeypatch.setattr(manifests, "read", real)
        second.append(ws.sweep().kept)
        return real(directory)

    monkeypatch.setattr(manifests, "read", read)
    assert ws.sweep().removed == ["s"]
    assert "another process" in second[0]["s"]
