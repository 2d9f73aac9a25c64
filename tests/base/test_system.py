"""The one package that makes system calls: it is the only one, every call can fail on demand, none fills a disk."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faults import FCNTL_CALLS, LIBC_CALLS, OS_CALLS

import tr_mmap
from tr_mmap import OutOfSpace, PythonSession
from tr_mmap.base import system
from tr_mmap.base.system import files
from tr_mmap.sessions.workspace import Workspace

PACKAGE = Path(tr_mmap.__file__).parent
# They fail for nobody's lack of anything; what os.path finds out it says with False. (read: of inotify's events.)
HARMLESS = {
    "access",
    "stat_result",
    "fdopen",
    "fsencode",
    "getcwd",
    "geteuid",
    "getpid",
    "getuid",
    "major",
    "minor",
    "lseek",
    "read",
    "strerror",
}
ELSEWHERE = {
    *{("identity.py", "close"), ("watch.py", "close")},  # descriptors of processes, which are not files
    *{("background.py", "close"), ("background.py", "pipe"), ("background.py", "write")},  # what wakes a thread
    *{("doorbell.py", "lstat"), ("reader.py", "fstat"), ("log.py", "fstat"), ("by_hand.py", "lstat")},  # mere looks
    ("by_hand.py", "fstat"),
    *{("segment.py", "fstat"), ("readers.py", "fstat"), ("files.py", "stat"), ("files.py", "lstat")},  # looks, too
    *{("directory_key.py", "lstat"), ("projects.py", "stat")},
    *{("ring.py", "fstat"), ("ring.py", "write")},  # the bell, which wakes a process
    # A mirror that cannot be written is no error of anybody's: it stays as it is. (The extension does the same in C.)
    *{
        ("mirror.py", name)
        for name in ("close", "fchmod", "fstat", "ftruncate", "lstat", "open", "pread", "pwrite", "unlink")
    },
}

# Calls of the sandbox are on pipes, sockets and memory without a name, and on the file system that only a contained
# process sees; the command line reads and writes the files that its user names.
EXEMPT = (PACKAGE / "sandbox", PACKAGE / "gateway", PACKAGE / "cli")

# They read files of /proc, which are no files on a disk: what such a file does not say stays unknown.
READERS_OF_PROC = {PACKAGE / "shm" / "limits.py", PACKAGE / "store" / "embedders.py"}


def calls_in(path: Path, module: str) -> Iterator[str]:
    """Names that the source takes from a module by attribute, ``os.path`` left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
            yield node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "getattr"
            and isinstance(node.args[0], ast.Name)
            and node.args[0].id == module
            and isinstance(node.args[1], ast.Constant)
        ):
            yield str(node.args[1].value)


def test_the_injector_reaches_every_system_call() -> None:
    found = {name for path in (PACKAGE / "base" / "system").glob("*.py") for name in calls_in(path, "os")}
    functions = {name for name in found if name.islower() and name != "path"}
    assert functions - HARMLESS == set(OS_CALLS)
    found = {name for path in (PACKAGE / "base" / "system").glob("*.py") for name in calls_in(path, "libc")}
    found_fcntl = {name for path in (PACKAGE / "base" / "system").glob("*.py") for name in calls_in(path, "fcntl")}
    assert {name for name in found_fcntl if name.islower()} == set(FCNTL_CALLS)
    found = {name for name in found if not name.startswith("inotify_")}  # without it, a look at the file follows
    # munmap(2) of what was mapped cannot fail; without the other two, freed memory only goes back earlier or later
    assert found - {"munmap", "mallopt", "malloc_trim"} == set(LIBC_CALLS)


def test_nobody_else_makes_system_calls_on_files() -> None:
    alone = ("guard_program.py", "sitecustomize.py")  # programs of their own, which import nothing of the package
    # These read and write what their user names, as any program.
    exempt = {*EXEMPT, *(PACKAGE / "store" / name for name in ("exchange.py", "incoming.py", "tensor_file.py"))}
    others = [
        path
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "system" and path.name not in alone and not exempt & {path, *path.parents}
    ]
    found = {(path.name, name) for path in others for name in calls_in(path, "os") if name in OS_CALLS}
    assert found <= ELSEWHERE
    for path in others:
        names = {node.func.id for node in ast.walk(ast.parse(path.read_text())) if is_call(node)}
        assert "open" not in names or path in READERS_OF_PROC, path
        assert not set(calls_in(path, "shutil")), path


def is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def test_the_time_of_files_is_never_before_that_of_a_file_written_before_nor_after_that_of_a_later_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x"
    for _ in range(2000):
        for text in ("x", "xx"):  # since Linux 6.13 a file that was looked at in between gets a finer time
            path.write_text(text)
            before_ns = path.stat().st_mtime_ns
        between_ns = system.file_time_ns()
        path.write_text("xxx")
        assert before_ns <= between_ns <= path.stat().st_mtime_ns


@pytest.mark.parametrize("has_blocks", [False, True])
def test_what_there_is_no_room_for_is_refused_before_a_block_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_blocks: bool
) -> None:
    """A tmpfs would fill up to find out, and meanwhile nobody else on the machine could write."""
    fd = system.create_file(str(tmp_path / "x"))
    if has_blocks:
        system.allocate(fd, 4096, directory=str(tmp_path))
    room = os.fstatvfs(fd)
    free = room.f_bfree * room.f_frsize
    monkeypatch.setattr(files.os, "posix_fallocate", lambda *_: pytest.fail("it was tried"))
    for nbytes in (2 * free + (1 << 30), 1 << 62):
        with pytest.raises(OutOfSpace) as caught:
            system.allocate(fd, nbytes, directory=str(tmp_path))
        assert caught.value.needed_nbytes == nbytes
        assert 0 < caught.value.free_nbytes < nbytes
    os.close(fd)


def test_blocks_that_a_file_has_already_need_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = system.create_file(str(tmp_path / "x"))
    system.allocate(fd, 1 << 20, directory=str(tmp_path))
    info = os.fstatvfs(fd)
    full = os.statvfs_result([*info[:3], 0, 0, *info[5:]])
    monkeypatch.setattr(files.os, "fstatvfs", lambda _fd: full)
    system.allocate(fd, 1 << 20, directory=str(tmp_path))
    with pytest.raises(OutOfSpace):
        system.allocate(fd, 2 << 20, directory=str(tmp_path))
    os.close(fd)


def test_a_tmpfs_without_a_limit_is_not_taken_for_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = system.create_file(str(tmp_path / "x"))
    info = os.fstatvfs(fd)
    monkeypatch.setattr(files.os, "fstatvfs", lambda _fd: os.statvfs_result([*info[:2], 0, 0, 0, *info[5:]]))
    system.allocate(fd, 4096, directory=str(tmp_path))
    assert os.fstat(fd).st_size == 4096
    os.close(fd)


def test_a_tensor_larger_than_the_file_system_is_refused_and_the_session_goes_on(
    mapped: PythonSession,
) -> None:
    room = os.statvfs(mapped.session_dir())
    for wanted in (room.f_blocks * room.f_frsize + 1, 1 << 45):
        with pytest.raises(OutOfSpace) as caught:
            mapped.send_tensor(np.broadcast_to(np.uint8(1), (wanted,)), "huge")
        assert caught.value.needed_nbytes >= wanted
        assert caught.value.free_nbytes < wanted


def test_what_a_claim_could_not_remove_the_next_sweep_of_its_process_does(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing a directory takes a descriptor, and there may be none left when a claim fails for that reason."""
    place = Workspace(str(workspace))
    session = PythonSession("default", "wanted")
    with monkeypatch.context() as patch:
        patch.setattr("tr_mmap.sessions.manifest.write", lambda *_: (_ for _ in ()).throw(OSError(24, "injected")))
        patch.setattr("shutil.rmtree", lambda *_arguments, **_options: None)
        with pytest.raises(OSError, match="injected"):
            session.start()
    assert len(os.listdir(workspace / "python_session")) == 1
    place.sweep()
    assert os.listdir(workspace) == []
