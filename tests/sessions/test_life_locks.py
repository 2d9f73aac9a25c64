"""Sessions of other containers: they are judged by the locks that their processes hold for life."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from workspace_content import everything, mine

from tr_mmap import PythonSession, SessionInUse
from tr_mmap.base import system
from tr_mmap.processes.identity import Identity
from tr_mmap.processes.life_lock import LifeLock
from tr_mmap.sessions import manifest as manifests
from tr_mmap.sessions.workspace import Workspace
from tr_mmap.wire.messages import MIRROR_DELAY_S
from tr_mmap.wire.names import CONTROLLER_LOCK_FILE, MANIFEST_FILE, NEW_PREFIX, POOL_PREFIX, WORKER_LOCK_FILE
from tr_mmap.wire.waits import MIRROR_CHECK_S


def elsewhere(pid: int = 1) -> Identity:
    """A process of a namespace of pids that is not ours."""
    here = Identity.current()
    return msgspec.structs.replace(here, pid=pid, start_ticks=1, pid_namespace=here.pid_namespace + 1)


def leave(ws: Workspace, session_id: str, **fields: Any) -> tuple[Path, LifeLock]:
    lock = LifeLock()
    path = Path(ws.claim(session_id, mine(session_id, **{"controller": elsewhere(), **fields}), lock))
    (path / "a.tsr").write_bytes(b"TSR!")
    return path, lock


def hold(path: Path) -> LifeLock:
    lock = LifeLock()
    lock.take(str(path))
    return lock


def test_a_session_of_another_container_is_removed_when_its_processes_have_ended_and_not_before(ws: Workspace) -> None:
    path, controller = leave(ws, "s", worker=elsewhere(2))
    worker = hold(path / WORKER_LOCK_FILE)
    assert "process 1 of another container" in ws.sweep().kept["s"]
    with pytest.raises(SessionInUse, match="another container"):
        ws.claim("s", mine("s"))
    assert not ws.release("s")
    controller.drop()
    assert "its worker, process 2 of another container" in ws.sweep().kept["s"]
    worker.drop()
    assert ws.sweep().removed == ["s"]
    assert everything(ws.root) == []


def test_a_name_whose_owner_in_another_container_has_ended_can_be_claimed(ws: Workspace) -> None:
    path, controller = leave(ws, "s", worker=elsewhere(2))
    hold(path / WORKER_LOCK_FILE).drop()
    controller.drop()
    assert ws.claim("s", mine("s")) == str(path)
    assert not (path / "a.tsr").exists()


@pytest.mark.parametrize("missing", [CONTROLLER_LOCK_FILE, WORKER_LOCK_FILE])
def test_a_session_of_another_container_without_locks_is_never_removed(ws: Workspace, missing: str) -> None:
    """An older version, or a controller in C++ of one, makes none."""
    path, controller = leave(ws, "s", worker=elsewhere(2))
    hold(path / WORKER_LOCK_FILE).drop()
    controller.drop()
    (path / missing).unlink()
    assert list(ws.sweep().kept) == ["s"]
    with pytest.raises(SessionInUse):
        ws.claim("s", mine("s"))
    assert (path / "a.tsr").exists()


@pytest.mark.parametrize("prefix", [NEW_PREFIX, POOL_PREFIX])
def test_a_session_that_another_container_is_just_making_stays_and_so_does_its_pool(ws: Workspace, prefix: str) -> None:
    sessions = Path(ws.root) / "python_session"
    sessions.mkdir(mode=0o700)
    half = sessions / f"{prefix}1-2-0a"  # a pid and a start that are nobody's here
    half.mkdir()
    lock = hold(half / CONTROLLER_LOCK_FILE)
    ws.sweep()
    assert half.exists()
    lock.drop()
    ws.sweep()
    assert not half.exists()


def test_an_orphan_in_another_container_is_waited_for_and_then_left(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tr_mmap.sessions.workspace.ORPHAN_WAIT_S", 0.05)
    path, controller = leave(ws, "s", worker=elsewhere(os.getpid()), worker_mark="a-mark")
    worker = hold(path / WORKER_LOCK_FILE)
    controller.drop()
    assert list(ws.sweep(ends_orphans=True).kept) == ["s"]  # and this process, whose pid it has, lives
    worker.drop()
    assert ws.sweep(ends_orphans=True).removed == ["s"]


def test_both_processes_of_a_session_hold_their_locks_and_a_new_worker_a_new_one(workspace: Path) -> None:
    with PythonSession(quiet_mode=True) as session:
        found = [Path(session.session_dir(), name) for name in (CONTROLLER_LOCK_FILE, WORKER_LOCK_FILE)]
        inodes = [os.stat(path).st_ino for path in found]
        assert [is_free(path) for path in found] == [False, False]
        session.terminate()
        assert [is_free(path) for path in found] == [False, True]
        session.start()
        assert [is_free(path) for path in found] == [False, False]
        assert os.stat(found[0]).st_ino == inodes[0]
        assert os.stat(found[1]).st_ino != inodes[1]


def is_free(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return system.is_lock_free(fd)
    finally:
        os.close(fd)


# -- what it costs ---------------------------------------------------------------------------------------------------


def test_a_sweep_locks_no_session_whose_controller_lives(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = [leave(ws, f"s{i}", controller=Identity.current())[1] for i in range(20)]
    asked: list[str] = []
    real = system.peek
    monkeypatch.setattr(system, "peek", lambda path, nbytes: (asked.append(path), real(path, nbytes))[1])
    monkeypatch.setattr(system, "try_lock_dir", lambda _: pytest.fail("a lock was taken"))
    monkeypatch.setattr(manifests, "read", lambda _: pytest.fail("a manifest was read whole"))
    assert len(ws.sweep().kept) == 20
    assert len([path for path in asked if path.startswith("/proc")]) == 1  # they have one controller
    del locks


def test_the_sweep_of_a_start_looks_at_a_bounded_number_of_sessions(ws: Workspace) -> None:
    locks = [leave(ws, f"s{i}", controller=Identity.current())[1] for i in range(20)]
    assert len(ws.sweep(at_most=7).kept) == 7
    assert len(ws.sweep(at_most=20).kept) == 20
    seen: set[str] = set()
    while len(seen) < 20:  # at random, so that none is left out for ever
        seen |= set(ws.sweep(at_most=7).kept)
    del locks


def test_a_manifest_that_says_two_things_is_never_a_reason_to_remove(ws: Workspace, dead: Identity) -> None:
    """The first look reads it loosely; what it does not keep is read strictly."""
    path, _ = leave(ws, "s", controller=dead)
    text = (path / "session.json").read_text()
    living = msgspec.json.encode(Identity.current()).decode()
    (path / "session.json").write_text(text.replace('{"protocol"', f'{{"controller":{living},"protocol"'))
    assert list(ws.sweep().kept) == ["s"]
    with pytest.raises(SessionInUse):
        ws.claim("s", mine("s"))


# -- a session of this very process ----------------------------------------------------------------------------------


def test_a_session_of_this_very_process_in_the_way_is_said_so(workspace: Path) -> None:
    with PythonSession(session_id="cell", quiet_mode=True):
        again = PythonSession(session_id="cell", quiet_mode=True)
        with pytest.raises(
            SessionInUse, match=r"this very process.*close\(\).*another session_id.*replace=True"
        ) as caught:
            again.start()
        assert caught.value.pid == os.getpid()
        assert caught.value.session_id == "cell"
        again.close()  # does nothing to the other one
        with pytest.raises(SessionInUse):
            again.start()
    again.start()
    again.close()


# -- a directory that is removed by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_session_whose_directory_was_removed_by_hand_says_so_and_ends_in_order(workspace: Path, channel: str) -> None:
    session = PythonSession(session_id="s", channel=channel, quiet_mode=True)
    session.start()
    session.wait_until_ready()
    system.remove_tree(session.session_dir())
    session.terminate()
    with pytest.raises(Exception, match=r"was removed while the session lived; close\(\) this session"):
        session.start()
    with PythonSession(session_id="s", quiet_mode=True) as other:  # the name is free
        session.close()
        assert other.fetch_response("hello you") == "Hello You"


@pytest.mark.parametrize("auth", [False, True])
def test_who_removes_the_directory_of_a_session_in_use_finds_nothing_new_in_it(workspace: Path, auth: bool) -> None:
    session = PythonSession(session_id="s", auth=auth, quiet_mode=True)
    session.start()
    session.wait_until_ready()
    directory = session.session_dir()
    is_in_time = False
    while not is_in_time:
        began_s = time.monotonic()
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        assert session.fetch_response("hello you") == "Hello You"
        time.sleep(4 * MIRROR_DELAY_S)  # for so long that the worker writes its mirrors, if it does
        left = os.listdir(directory)
        is_in_time = time.monotonic() - began_s < MIRROR_CHECK_S
    assert left == []
    os.rmdir(directory)
    session.close()


# -- a lock file that is removed by hand, though not the directory ----------------------------------------------------


def make_nothing(_: Path) -> None:
    pass


def make_a_directory(path: Path) -> None:
    path.mkdir()


def make_a_link(path: Path) -> None:
    path.symlink_to("elsewhere")


def make_an_empty_file(path: Path) -> None:
    path.touch()


@pytest.mark.each_value
@pytest.mark.parametrize("name", [CONTROLLER_LOCK_FILE, WORKER_LOCK_FILE])
@pytest.mark.parametrize("replace", [make_nothing, make_a_directory, make_a_link, make_an_empty_file])
def test_a_session_without_its_lock_file_is_removed_when_it_ends(
    workspace: Path, name: str, replace: Callable[[Path], None]
) -> None:
    with PythonSession(session_id="s", quiet_mode=True) as session:
        lock = Path(session.session_dir(), name)
        lock.unlink()
        replace(lock)
        assert session.please_exit()
    assert everything(workspace) == []
    with session:  # and the name is free
        assert session.fetch_response("hello you") == "Hello You"


def test_a_session_without_its_lock_file_and_manifest_is_removed_when_it_ends(workspace: Path) -> None:
    with PythonSession(session_id="s", quiet_mode=True) as session:
        for name in (CONTROLLER_LOCK_FILE, MANIFEST_FILE):
            Path(session.session_dir(), name).unlink()
    assert everything(workspace) == []


def test_a_session_without_its_lock_file_can_have_another_worker(workspace: Path) -> None:
    with PythonSession(session_id="s", quiet_mode=True) as session:
        Path(session.session_dir(), CONTROLLER_LOCK_FILE).unlink()
        session.terminate()
        session.start()
        assert session.fetch_response("hello you") == "Hello You"
    assert everything(workspace) == []


@pytest.mark.parametrize("kept", [CONTROLLER_LOCK_FILE, MANIFEST_FILE])
def test_another_session_in_a_directory_of_the_same_inode_is_never_removed(workspace: Path, kept: str) -> None:
    """As on a file system that gives a removed directory's inode to the next one: what one finds in it tells."""
    session = PythonSession(session_id="s", quiet_mode=True)
    session.start()
    directory = Path(session.session_dir())
    session.terminate()
    for path in directory.iterdir():
        path.unlink()
    other = hold(directory / CONTROLLER_LOCK_FILE)
    manifests.write(str(directory), mine("s", controller=elsewhere()))
    for name in {CONTROLLER_LOCK_FILE, MANIFEST_FILE} - {kept}:
        (directory / name).unlink()
    session.close()
    assert os.listdir(directory) == [kept]
    other.drop()
    system.remove_tree(str(directory.parent))
