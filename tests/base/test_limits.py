"""A limit of the system is told by its name, and is gone once it is raised or what was taken is given back."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support import environment

from tr_mmap import OutOfSpace, PythonSession, SystemLimit, load, save
from tr_mmap.base import system
from tr_mmap.base.system import limits

SQUARE = np.arange(512.0 * 512).reshape(512, 512)  # 2 MiB


@contextmanager
def limited(name: str, value: int) -> Iterator[None]:
    number = getattr(resource, name)
    soft, hard = resource.getrlimit(number)
    resource.setrlimit(number, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(number, (soft, hard))


def python(script: str, *arguments: object) -> str:
    """What a process prints; for limits that must not hit the tests' own process."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- the size of a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [SQUARE, SQUARE.T, SQUARE.astype(">f8")], ids=["whole", "strided", "big-endian"])
@pytest.mark.parametrize("options", [{}, {"checksum": True}, {"version": 1}, {"version": 0}], ids=str)
def test_a_file_that_may_not_be_so_large_is_a_limit_by_name_and_nothing_is_left(
    tmp_path: Path, tensor: np.ndarray, options: dict[str, int]
) -> None:
    path = tmp_path / "x.tsr"
    save(path, np.ones(3))
    before = path.read_bytes()
    with limited("RLIMIT_FSIZE", 1 << 20), pytest.raises(SystemLimit, match="RLIMIT_FSIZE") as caught:
        save(path, tensor, **options)
    assert caught.value.limit == "RLIMIT_FSIZE"
    assert caught.value.errno == errno.EFBIG
    assert not isinstance(caught.value, OutOfSpace)
    assert pickle.loads(pickle.dumps(caught.value)).limit == "RLIMIT_FSIZE"
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.tsr"]
    save(path, tensor, **options)


def test_a_sealed_file_that_may_not_be_so_large_is_a_limit_by_name(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    with limited("RLIMIT_FSIZE", 1 << 20), pytest.raises(SystemLimit, match="RLIMIT_FSIZE"):
        save(tmp_path / "x.tsr", SQUARE, key=bytes(32))
    assert not list(tmp_path.iterdir())


def test_a_session_goes_on_after_a_tensor_beyond_the_file_size_limit(mapped: PythonSession) -> None:
    with limited("RLIMIT_FSIZE", 1 << 20):
        for tensor in (SQUARE, SQUARE.T):
            with pytest.raises(SystemLimit, match="RLIMIT_FSIZE"):
                mapped.send_tensor(tensor, "x")
        with pytest.raises(SystemLimit, match="RLIMIT_FSIZE"):
            mapped.empty(1 << 20)
        mapped.send_tensor(np.ones(4), "small")
    mapped.send_tensor(SQUARE, "x")
    assert mapped.fetch_tensor("echo small").tolist() == [1.0] * 4


def test_a_file_larger_than_any_of_its_file_system_is_no_lack_of_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT, which has no files of 4 GiB."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EFBIG, "File too large")

    fd = system.create_file(str(tmp_path / "x"))
    monkeypatch.setattr(system.files.os, "pwrite", refuse)
    monkeypatch.setattr(system.files.os, "posix_fallocate", refuse)
    for action in (lambda: system.write_all(fd, b"x"), lambda: system.allocate(fd, 1, directory=str(tmp_path))):
        with pytest.raises(SystemLimit, match="another place") as caught:
            action()
        assert caught.value.limit == "file size"
    system.close(fd)


# -- open files -------------------------------------------------------------------------------------------------------


def test_too_many_open_files_are_a_limit_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.tsr"
    save(path, np.ones(3))
    with limited("RLIMIT_NOFILE", 3):
        for action in (
            lambda: load(path),
            lambda: save(path, np.zeros(3)),
            lambda: system.open_file(str(path)),
            lambda: system.open_private_file(str(path)),
            lambda: system.open_dir(str(tmp_path)),
            lambda: system.list_dir(str(tmp_path)),
            system.make_pipe,
        ):
            with pytest.raises(SystemLimit, match=r"Too many open files.*ulimit -n") as caught:
                action()
            assert (caught.value.limit, caught.value.errno) == ("RLIMIT_NOFILE", errno.EMFILE)
    assert load(path).tolist() == [1, 1, 1]


def test_too_many_open_files_of_the_whole_system_are_told_apart() -> None:
    with pytest.raises(SystemLimit) as caught:
        limits.check_descriptors(OSError(errno.ENFILE, "Too many open files in system"), "x")
    assert (caught.value.limit, caught.value.errno) == ("fs.file-max", errno.ENFILE)


# -- mappings ---------------------------------------------------------------------------------------------------------

MANY_MAPPINGS = """
import ctypes, gc, mmap, sys
import numpy as np
from tr_mmap import SystemLimit, load, save
path = sys.argv[1]
save(path, np.arange(4.0))
most = int(open("/proc/sys/vm/max_map_count").read())
load(path)
junk = mmap.mmap(-1, mmap.PAGESIZE * (most + 1000))
base = ctypes.addressof(ctypes.c_char.from_buffer(junk))
libc = ctypes.CDLL(None)
missing = most - sum(1 for _ in open("/proc/self/maps")) - 100
for number in range(missing // 2):
    libc.mprotect(ctypes.c_void_p(base + 2 * number * mmap.PAGESIZE), mmap.PAGESIZE, 0)
kept = []
try:
    while True:
        kept.append(load(path, mode=sys.argv[2]))
except SystemLimit as error:
    print(error.limit, error.errno, "may have" in str(error), 0 < len(kept) < 300)
kept.clear()
gc.collect()
print(load(path).tolist())
"""


@pytest.mark.parametrize("mode", ["r", "c"])
def test_too_many_mappings_are_a_limit_by_name_and_none_once_views_are_gone(tmp_path: Path, mode: str) -> None:
    if int(Path("/proc/sys/vm/max_map_count").read_text()) > 1 << 20:
        pytest.skip("vm.max_map_count is too high to be reached in a test")
    assert python(MANY_MAPPINGS, tmp_path / "x.tsr", mode) == (
        f"vm.max_map_count {errno.ENOMEM} True True\n[0.0, 1.0, 2.0, 3.0]\n"
    )


LITTLE_SPACE = """
import os, resource, sys
import numpy as np
from tr_mmap import SystemLimit, TSRFormatError, load, save
path, name, mode = sys.argv[1:]
save(path, np.zeros(1 << 24, np.uint8))
used = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("Vm")}
used = used["VmSize" if name == "RLIMIT_AS" else "VmData"]
resource.setrlimit(getattr(resource, name), (used + (8 << 20), -1))
try:
    load(path, mode=mode)
    print("loaded")
except SystemLimit as error:
    print(error.limit, error.errno)
resource.setrlimit(getattr(resource, name), (-1, -1))
print(load(path, mode=mode).nbytes)
"""


@pytest.mark.parametrize(
    ("name", "mode", "told"),
    [
        ("RLIMIT_AS", "r", "RLIMIT_AS 12"),
        ("RLIMIT_AS", "c", "RLIMIT_AS 12"),
        ("RLIMIT_DATA", "r", "loaded"),
        ("RLIMIT_DATA", "c", "RLIMIT_DATA 12"),
    ],
)
def test_too_little_address_space_is_a_limit_by_name(tmp_path: Path, name: str, mode: str, told: str) -> None:
    assert python(LITTLE_SPACE, tmp_path / "x.tsr", name, mode) == f"{told}\n{1 << 24}\n"


def test_a_mapping_that_fails_for_another_reason_is_told_as_it_is(tmp_path: Path) -> None:
    fd = system.create_file(str(tmp_path / "x"))
    system.close(fd)
    with pytest.raises(OSError, match="mmap of 4096 bytes: Bad file descriptor") as caught:
        system.map_read(fd, 4096)
    assert not isinstance(caught.value, SystemLimit)


UNREADABLE = """
import resource, sys
import numpy as np
from tr_mmap import SystemLimit
from tr_mmap.base import system
fd = system.create_file(sys.argv[1])
system.set_size(fd, 1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (64 << 20, resource.getrlimit(resource.RLIMIT_AS)[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    system.map_read(fd, 1 << 30)
except SystemLimit as error:
    first = error
try:
    system.check_limit(OSError(12, "Cannot allocate memory"), "x cannot be mapped")
except SystemLimit as error:
    print(first.limit, error.limit, "cannot be read now" in str(first))
"""


def test_a_limit_that_cannot_be_found_out_is_not_called_by_the_name_of_another(tmp_path: Path) -> None:
    """To read ``/proc`` takes a descriptor, and there may be none."""
    assert python(UNREADABLE, tmp_path / "x") == "memory memory True\n"


# -- processes, threads, semaphores ------------------------------------------------------------------------------------

FEW_TASKS = """
import os, resource, shutil, sys
from tr_mmap import PythonSession, SystemLimit
from tr_mmap.base.background import Background
os.environ["TR_WORKSPACE"] = sys.argv[1]
with PythonSession(quiet_mode=True):
    pass  # all is imported
session = PythonSession(quiet_mode=True, python="/bin/sh")
os.chown(sys.argv[1], 54329, 54329)
for each in os.listdir(sys.argv[1]):
    shutil.rmtree(f"{sys.argv[1]}/{each}")
os.setgroups([])
os.setresgid(54329, 54329, 54329)
os.setresuid(54329, 54329, 54329)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
for begin in (session.start, lambda: Background(lambda _: True), lambda: session.start()):
    try:
        begin()
    except SystemLimit as error:
        print(error.limit, error.errno, "may have 1 processes and threads" in str(error))
print(os.listdir(sys.argv[1]), [each for each in os.listdir("/dev/shm") if f"_{os.getpid()}_" in each])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: RLIMIT_NPROC (another user is needed, so root)")
def test_too_many_processes_and_threads_are_a_limit_by_name_and_nothing_is_left() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:  # pytest's own lets no other user in
        assert python(FEW_TASKS, place) == "RLIMIT_NPROC 11 True\n" * 3 + "[] []\n"


def test_a_process_that_cannot_be_started_for_want_of_a_pid_is_a_limit_by_name() -> None:
    with pytest.raises(SystemLimit) as caught:
        system.check_processes(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "python")
    assert caught.value.limit in ("pids", "RLIMIT_NPROC")
    system.check_processes(FileNotFoundError(errno.ENOENT, "No such file"), "python")


NO_SPACE = """
import resource
from tr_mmap import SystemLimit
from tr_mmap.base.background import Background
from tr_mmap.channel.doorbell import Doorbell
import os
made = Doorbell.create("/tr_test_%d" % os.getpid())
status = open("/proc/self/status").read()
vm = int(status[status.index("VmSize:") + 7 :].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (vm, -1))
other = "/tr_test_%d_2" % os.getpid()
told = []
for begin in (lambda: Doorbell.create(other), lambda: Background(lambda _: True)):
    try:
        begin()
    except SystemLimit as error:
        told.append(f"{error.limit} {error.errno}")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
made.unlink()
print(*told, [each for each in os.listdir("/dev/shm") if f"tr_test_{os.getpid()}" in each])
"""


def test_a_semaphore_and_a_thread_without_address_space_are_a_limit_by_name() -> None:
    assert python(NO_SPACE) == "RLIMIT_AS 12 RLIMIT_AS 12 []\n"
