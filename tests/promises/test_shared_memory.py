"""Without shared memory or semaphores, a start fails with an error that names the way out, and leaves nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from namespaces import run_with_mounts
from support import TOOLS, leftovers

from tr_mmap import OutOfSpace, PythonSession, SystemLimit, TRException
from tr_mmap.errors import SemaphoresUnavailable

PROGRAM = """
import os, sys
from tr_mmap import PythonSession
from tr_mmap.sessions.workspace import Workspace
for channel in ("mapped", "mapped", "files"):
    session = PythonSession({tools!r}, "s", channel=channel, quiet_mode=True)
    try:
        with session:
            print(channel, session.fetch_response("hello you"), session.session_dir())
    except Exception as error:
        print(channel, type(error).__name__, error)
root = Workspace.locate(is_made=False).root
print("left", [name for _, folders, files in os.walk(root) for name in folders + files])
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(tools=str(TOOLS)))
    return path


@pytest.mark.parametrize(
    ("mounts", "reason"),
    [
        ("mount -t tmpfs -o ro none /dev/shm", "Read-only file system"),
        ("mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9", "No such file"),
    ],
    ids=["read-only", "missing"],
)
def test_without_shared_memory_the_channel_of_files_works_and_the_other_says_so(
    program: Path, mounts: str, reason: str
) -> None:
    first, second, files, left = run_with_mounts(mounts, program).splitlines()
    assert first.startswith("mapped SemaphoresUnavailable ")
    assert reason in first
    assert 'use channel="files"' in first
    assert second == first  # and no SessionInUse
    assert files.startswith("files Hello You ")
    assert "/dev/shm" not in files
    assert left == "left []"


@pytest.mark.parametrize("option", ["nr_inodes=2", "size=64k"])
def test_full_shared_memory_is_out_of_space_and_leaves_nothing(program: Path, option: str) -> None:
    fill = "(head -c 70000 /dev/zero > /dev/shm/x || true) 2> /dev/null"
    *tries, left = run_with_mounts(f"mount -t tmpfs -o {option} none /dev/shm && {fill}", program).splitlines()
    assert [line.split()[1] for line in tries] == ["OutOfSpace"] * 3
    assert left == "left []"


@pytest.mark.parametrize("place", ["", "/new"])
def test_a_workspace_on_a_read_only_file_system_is_refused_by_name(program: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "ro").mkdir()
    path = str(tmp_path / "ro")
    *tries, left = run_with_mounts(f"mount -t tmpfs -o ro none {path}", program, TR_WORKSPACE=path + place).splitlines()
    for line in tries:
        assert line.split()[1] == "HostilePath"
        assert "set TR_WORKSPACE to a directory of your own" in line
    assert left == "left []"


FILLING_UP = """
import os, sys
from pathlib import Path
from tr_mmap import OutOfSpace, PythonSession, WorkerDied
place = Path(os.environ["TR_WORKSPACE"])
info = os.statvfs(place)
is_started = False
room = 0
while not is_started:
    fillers = []
    while os.statvfs(place).f_ffree > room:
        fillers.append(place / f"filler{len(fillers)}")
        fillers[-1].touch()
    session = PythonSession(sys.argv[1], "s", channel=sys.argv[2], quiet_mode=True)
    try:
        session.start()
        session.wait_until_ready()
        session.close()
        is_started = True
        print(room, "started", flush=True)
    except (OutOfSpace, WorkerDied) as error:
        print(room, type(error).__name__, flush=True)
        session.close()
    left = [name for name in os.listdir(place) if not name.startswith("filler")]
    assert left == [], (room, left)
    for each in fillers:
        each.unlink()
    room += 1
with PythonSession(sys.argv[1], "s", channel=sys.argv[2], quiet_mode=True) as session:
    assert session.fetch_response("hello you") == "Hello You"
"""


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_wherever_a_start_runs_out_of_space_nothing_is_left_and_a_later_start_works(
    tmp_path: Path, channel: str
) -> None:
    program = tmp_path / "filling_up.py"
    program.write_text(FILLING_UP)
    place = tmp_path / "small"
    place.mkdir()
    mounts = f"mount -t tmpfs -o nr_inodes=41,mode=700 none {place}"
    said = run_with_mounts(mounts, program, str(TOOLS), channel, TR_WORKSPACE=str(place)).splitlines()
    assert len(said) > 5
    assert said[0] == "0 OutOfSpace"
    assert said[-1].endswith("started")


# -- what needs no root ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSYS, SemaphoresUnavailable),
        (errno.EACCES, SemaphoresUnavailable),
        (errno.EPERM, SemaphoresUnavailable),
        (errno.ENOENT, SemaphoresUnavailable),
        (errno.ENOSPC, OutOfSpace),
        (errno.EMFILE, SystemLimit),
        (errno.EIO, OSError),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_whatever_the_system_says_of_a_semaphore_a_failed_start_frees_the_name(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[OSError]
) -> None:
    """No kernel without semaphores can be had for a test."""

    def refuse(name: str) -> None:
        raise OSError(code, os.strerror(code))

    session = PythonSession(TOOLS, "s", quiet_mode=True)
    with monkeypatch.context() as patch:
        patch.setattr("tr_mmap.channel.doorbell.create_semaphore", refuse)
        for _ in range(2):
            with pytest.raises(kind) as caught:
                session.start()
            assert isinstance(caught.value, TRException) == (kind is not OSError)
            assert not leftovers(workspace)
        with PythonSession(TOOLS, "s", quiet_mode=True, channel="files") as other:
            assert other.fetch_response("hello you") == "Hello You"
    session.start()
    assert session.wait_until_ready()
    session.close()


def test_a_first_start_that_fails_leaves_nothing_whatever_fails(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is free for others at once, and this object may try again."""

    def fail(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("injected")

    session = PythonSession(TOOLS, "s", quiet_mode=True)
    for step in ("launch", "WorkerHandle", "controller_fast_path", "channel_kind"):
        with monkeypatch.context() as patch:
            patch.setattr(f"tr_mmap.controller.resources.{step}", fail)
            with pytest.raises(RuntimeError, match="injected"):
                session.start()
        assert not leftovers(workspace), step
    session.start()
    assert session.wait_until_ready()
    session.terminate()
    with monkeypatch.context() as patch:  # a later start keeps the session, and with it the tags
        patch.setattr("tr_mmap.controller.resources.launch", fail)
        with pytest.raises(RuntimeError, match="injected"):
            session.start()
    assert Path(session.session_dir()).exists()
    session.start()
    assert session.wait_until_ready()
    session.close()
