"""Workspaces: one owner to a session, nothing of the living is ever removed, nothing of the dead stays."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import posix_ipc
import pytest

from tr_mmap import manifest as manifests
from tr_mmap import system
from tr_mmap import workspace as workspaces
from tr_mmap.errors import BadMessage, BadTag, HostilePath, OutOfSpace, SessionInUse
from tr_mmap.identity import Identity
from tr_mmap.manifest import Manifest
from tr_mmap.workspace import Workspace, check_session_id, check_tag, sweep

REPOSITORY = str(Path(workspaces.__file__).parent.parent)


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


def mine(session_id: str, **fields: Any) -> Manifest:
    return Manifest(session_id=session_id, **{"controller": Identity.current(), **fields})


def leave(ws: Workspace, session_id: str, controller: Identity, **fields: Any) -> Path:
    """A session as its owner, who may be dead, has left it."""
    path = Path(ws.claim(session_id, mine(session_id, controller=controller, **fields)))
    (path / "a.tsr").write_bytes(b"TSR!")
    return path


def everything(root: Path | str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in Path(root).rglob("*"))


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag", ["a", "A-1_b.c", "x" * 128, "result_", "result_1a", "my_result_1", "segment", "1", "-", "a."]
)
def test_good_tags_pass(tag: str) -> None:
    check_tag(tag)


@pytest.mark.parametrize("tag", ["", ".", "..", ".a", "a/b", "a b", "x" * 129, "ä", "a\n", "\0", "٣", 3, b"a", None])
def test_bad_tags_are_refused(tag: Any) -> None:
    with pytest.raises(BadTag) as caught:
        check_tag(tag)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("tag", ["result_0", "result_123", "segment_7"])
def test_the_librarys_own_names_are_refused_as_tags(tag: str) -> None:
    with pytest.raises(BadTag, match="own names"):
        check_tag(tag)


@pytest.mark.parametrize("session_id", ["a", "default", "x" * 64, "A.b-c_1"])
def test_good_session_ids_pass(session_id: str) -> None:
    check_session_id(session_id)


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


def hostile_symlink(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def hostile_dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def hostile_file(path: Path) -> None:
    path.write_text("")


def hostile_world(path: Path) -> None:
    path.mkdir()
    path.chmod(0o702)


def hostile_group(path: Path) -> None:
    path.mkdir()
    path.chmod(0o720)


HOSTILE = [hostile_symlink, hostile_dangling, hostile_file, hostile_world, hostile_group]


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


# --- manifests --------------------------------------------------------------------------------------------------


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


GARBLED = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b"{}",
    b'{"x": ' + b"[" * 60_000,
    b'{"session_id": "s", "controller": {"pid": 0, "start_ticks": 1, "boot_id": ""}}',
    b'{"session_id": "s", "controller": {"pid": 1, "start_ticks": -1, "boot_id": ""}}',
    b'{"session_id": "s", "controller": {"pid": 4294967297, "start_ticks": 1, "boot_id": ""}}',
    b'{"session_id": "s", "controller": null}',
    msgspec.json.encode(Manifest(session_id="s", controller=Identity.current())).ljust(
        manifests.MAX_MANIFEST_NBYTES + 1
    ),
]


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


# --- claim and release ------------------------------------------------------------------------------------------


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


# --- sweep ------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(posix_ipc, "unlink_semaphore", removed.append)
    names = ["/theirs", "tr_a", "/tr_", "/tr_../x", "/tr_a\n", "", "/tr_" + "x" * 300, "/tr_ok"]
    leave(ws, "s", dead, doorbells=names)
    assert ws.sweep().removed == ["s"]
    assert removed == ["/tr_ok"]


def test_sweep_removes_what_the_dead_had_half_made_or_half_removed(
    ws: Workspace, dead: Identity, living: tuple[Any, Identity]
) -> None:
    sessions = Path(ws.root) / "python_session"
    sessions.mkdir(mode=0o700)
    for kind in ("new", "gone"):
        for identity in (dead, living[1], Identity.local(living[1].pid, living[1].start_ticks - 1)):
            (sessions / f".{kind}-{identity.pid}-{identity.start_ticks}-0a").mkdir()
    (sessions / ".gone-x-1-0a").mkdir()
    (sessions / "notes").write_text("")
    ws.sweep()
    alive = f"{living[1].pid}-{living[1].start_ticks}-0a"
    assert sorted(os.listdir(sessions)) == sorted([f".gone-{alive}", ".gone-x-1-0a", f".new-{alive}", "notes"])


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
    monkeypatch.setattr(workspaces, "_check_private", lambda _: None)
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


# --- races between processes ------------------------------------------------------------------------------------

RACER = """
import os, sys
from tr_mmap import workspace as workspaces
from tr_mmap.errors import SessionInUse
from tr_mmap.identity import Identity
from tr_mmap.manifest import Manifest
workspaces.SHM_DIR = sys.argv[1]
print('up', flush=True)
for line in sys.stdin:
    word, session_id = line.split()
    workspace = workspaces.Workspace.locate({})
    if word == 'claim':
        try:
            workspace.claim(session_id, Manifest(session_id=session_id, controller=Identity.current()))
            print('won', flush=True)
        except SessionInUse:
            print('lost', flush=True)
    elif word == 'churn':
        for i in range(100):
            own = f'{session_id}-{os.getpid()}'
            workspaces.Workspace.locate({}).claim(own, Manifest(session_id=own, controller=Identity.current()))
            assert workspace.release(own)
        print('churned', flush=True)
    elif word == 'sweep':
        print(len(workspace.sweep().removed), flush=True)
"""


class Racers:
    def __init__(self, count: int, parent: Path) -> None:
        self.popens = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", RACER, str(parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": REPOSITORY},
            )
            for _ in range(count)
        ]
        assert self.answers() == ["up"] * count

    def ask(self, *lines: str) -> list[str]:
        """Tell all at once, hear all."""
        for popen, line in zip(self.popens, lines * len(self.popens), strict=False):
            assert popen.stdin is not None
            popen.stdin.write(line + "\n")
        for popen in self.popens:
            assert popen.stdin is not None
            popen.stdin.flush()
        return self.answers()

    def answers(self) -> list[str]:
        return [popen.stdout.readline().strip() for popen in self.popens if popen.stdout is not None]

    def kill(self) -> None:
        for popen in self.popens:
            popen.send_signal(signal.SIGKILL)
        for popen in self.popens:
            with popen:
                pass


@pytest.fixture
def racers(default_parent: Path) -> Iterator[Racers]:
    made = Racers(6, default_parent)
    yield made
    made.kill()


def test_of_processes_that_claim_one_session_exactly_one_wins(
    racers: Racers, default_parent: Path, dead: Identity
) -> None:
    ws = Workspace.locate({})
    for i in range(20):
        if i % 2:  # over what a dead owner left
            leave(ws, f"s{i}", dead, worker=dead)
        assert sorted(racers.ask(f"claim s{i}")) == ["lost"] * 5 + ["won"]
    sessions = Path(ws.root) / "python_session"
    assert sorted(os.listdir(sessions)) == sorted(f"tr_session_s{i}" for i in range(20))
    racers.kill()
    assert len(ws.sweep().removed) == 20
    assert everything(default_parent) == []


def test_a_claim_among_sweepers_wins_and_the_dead_session_is_removed_once(
    racers: Racers, default_parent: Path, dead: Identity
) -> None:
    ws = Workspace.locate({})
    for i in range(20):
        leave(ws, f"s{i}", dead)
        claimed, *swept = racers.ask(f"claim s{i}", *["sweep x"] * 5)
        assert claimed == "won"
        assert swept.count("1") <= 1
        manifest = manifests.read(ws.session_dir(f"s{i}"))
        assert manifest is not None
        assert manifest.controller.pid == racers.popens[0].pid


def test_sessions_that_come_and_go_side_by_side_do_not_disturb_each_other(racers: Racers, default_parent: Path) -> None:
    assert racers.ask("churn s") == ["churned"] * 6
    assert everything(default_parent) == []
