"""A worker's log: bounded, counted, outside shared memory, and readable while it is cut."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import BOUND_S, check_open_files, open_files

from tr_mmap.base import system
from tr_mmap.processes import worker_log
from tr_mmap.processes.log_forwarder import LogForwarder
from tr_mmap.processes.worker_log import (
    KEPT_NBYTES,
    MAX_LOG_NBYTES,
    create_log,
    cut_log,
    log_size,
    log_tail,
    new_log_path,
    remove_log,
)
from tr_mmap.wire.words import ANSWERED_LINE

LINE = b"0123456789" * 10 + b"\n"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[str, int]]:
    path, fd = create_log(str(tmp_path / "log"))
    worker_log.system.append_always(fd)
    yield path, fd
    os.close(fd)


def fill(fd: int, nbytes: int) -> int:
    """Write numbered lines. Returns how many bytes."""
    text = b"".join(b"%09d" % number + LINE for number in range(nbytes // 110 + 1))
    return os.write(fd, text)


def cut(path: str) -> bool:
    """Through a descriptor of its own, as a worker does."""
    fd = os.open(path, os.O_RDWR)
    try:
        return cut_log(fd)
    finally:
        os.close(fd)


def test_a_small_log_is_left_alone(log: tuple[str, int]) -> None:
    path, fd = log
    nbytes = fill(fd, 1000)
    assert not cut(path)
    assert log_size(path) == (nbytes, 0)


def test_a_large_log_keeps_its_newest_part_and_says_how_much_it_dropped(log: tuple[str, int]) -> None:
    path, fd = log
    written = 0
    for _ in range(3):
        written += fill(fd, MAX_LOG_NBYTES)
        assert cut(path)
        text = Path(path).read_bytes()
        head, _, rest = text.partition(b"\n")
        nbytes, dropped = log_size(path)
        assert nbytes == len(text) <= KEPT_NBYTES + 100
        assert head.rstrip(b" ") == b"[tr_mmap: %d bytes of older output were dropped]" % dropped
        assert dropped + len(rest) == written
        assert rest.endswith(LINE)
        assert rest[:9].isdigit()  # it begins with a whole line
    os.write(fd, b"the newest\n")
    assert log_tail(path, 1) == "the newest"


def test_a_log_without_lines_is_cut_too(log: tuple[str, int]) -> None:
    path, fd = log
    os.write(fd, b"x" * (MAX_LOG_NBYTES + 1))
    assert cut(path)
    assert log_size(path).nbytes <= KEPT_NBYTES + 100
    assert log_size(path).dropped_nbytes == MAX_LOG_NBYTES + 1 - KEPT_NBYTES


class Interrupting:
    """The system calls of a cut; another writer prints before each of them, and one of them may be the last."""

    def __init__(self, print_line: Callable[[], None], last: int = -1) -> None:
        self._print_line = print_line
        self._left = last
        self._is_printing = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(system, name)

        def wrapped(*arguments: Any) -> Any:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            if not self._is_printing:
                self._is_printing = True
                self._print_line()
                self._is_printing = False
            return call(*arguments)

        return wrapped


def test_what_others_print_during_a_cut_stays_whole_and_in_order_and_the_count_is_right(
    log: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = log
    printed = 0

    def print_line() -> None:
        nonlocal printed
        printed += os.write(fd, b"printed meanwhile %06d\n" % printed)

    for _ in range(2):
        fill(fd, MAX_LOG_NBYTES)
        before = sum(log_size(path)) - log_head_nbytes(path) - printed
        with monkeypatch.context() as patch:
            patch.setattr(worker_log, "system", Interrupting(print_line))
            assert cut(path)
        print_line()
        head, _, rest = Path(path).read_bytes().partition(b"\n")
        assert head.startswith(b"[tr_mmap: ")
        assert b"dropped]" in head
        lines = rest.splitlines()
        assert all(len(line) == 109 or line.startswith(b"printed meanwhile ") for line in lines)
        numbers = [int(line.split()[-1]) for line in lines if line.startswith(b"printed")]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == printed - len(b"printed meanwhile 000000\n")
        lost = before + printed - log_size(path).dropped_nbytes - len(rest)
        assert 0 <= lost <= len(b"printed meanwhile 000000\n")  # between the last look and the cut itself


def log_head_nbytes(path: str) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return worker_log.log_head(fd).nbytes
    finally:
        os.close(fd)


@pytest.mark.parametrize("last", range(10))
def test_a_worker_that_is_killed_in_a_cut_leaves_the_newest_part(
    log: tuple[str, int], monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    path, fd = log
    fill(fd, MAX_LOG_NBYTES)
    newest = b"the newest line\n"
    os.write(fd, newest)
    kept = Path(path).read_bytes()[-KEPT_NBYTES // 2 :]
    with monkeypatch.context() as patch:
        patch.setattr(worker_log, "system", Interrupting(lambda: None, last))
        try:
            cut(path)
        except KeyboardInterrupt:
            pass
        else:
            assert last > 5
    assert Path(path).read_bytes().endswith(kept)
    assert log_tail(path, 1) == newest.decode().rstrip()


def test_the_size_of_a_log_that_is_gone_is_zero(tmp_path: Path) -> None:
    assert log_size(str(tmp_path / "none")) == (0, 0)


def test_the_tail_begins_after_the_last_error_that_was_answered(log: tuple[str, int]) -> None:
    path, fd = log
    answered = b"a remark\nTraceback (most recent call last):\nKeyError: 'nope'\n" + ANSWERED_LINE.encode() + b"\n"
    os.write(fd, answered)
    assert log_tail(path, 20) == ""
    os.write(fd, b"a word\n")
    assert log_tail(path, 20) == "a word"
    os.write(fd, answered + b"another\n")
    assert log_tail(path, 20) == "another"
    os.write(fd, b"somebody prints " + ANSWERED_LINE.encode() + b" in a line of his own\n")
    assert len(log_tail(path, 20).splitlines()) == 2


def test_a_dump_of_a_fatal_error_does_not_begin_before_the_last_error_that_was_answered(log: tuple[str, int]) -> None:
    path, fd = log
    os.write(fd, b"KeyError: 'nope'\n" + ANSWERED_LINE.encode() + b"\n")
    os.write(fd, b"Fatal Python error: Aborted\n" + b'  File "x", line 1 in y\n' * 100)
    lines = log_tail(path, 20).splitlines()
    assert lines[0] == "Fatal Python error: Aborted"
    assert "[...]" in lines


# -- where it is -----------------------------------------------------------------------------------------------------


def test_a_session_in_memory_has_its_log_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(worker_log.system, "is_dir_on_tmpfs", lambda _: True)
    monkeypatch.setattr(worker_log, "_are_on_one_file_system", lambda *_: False)
    first, second = new_log_path("/dev/shm"), new_log_path("/dev/shm")
    assert os.path.dirname(first) == str(tmp_path)
    assert first != second


def test_a_session_on_a_disk_or_without_a_place_for_temporary_files_keeps_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_log.system, "is_dir_on_tmpfs", lambda _: False)
    assert new_log_path(str(tmp_path)) == ""
    monkeypatch.setattr(worker_log.system, "is_dir_on_tmpfs", lambda _: True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert new_log_path(str(tmp_path)) == ""  # the same file system: nothing would be gained
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert new_log_path(str(tmp_path)) == ""
    assert new_log_path(str(tmp_path / "no session")) == ""


def test_a_log_elsewhere_has_a_link_in_the_session(tmp_path: Path) -> None:
    link = tmp_path / "worker.log"
    link.write_text("an older one")
    path, fd = create_log(str(tmp_path / "real"), str(link))
    os.write(fd, b"words")
    os.close(fd)
    assert path == str(tmp_path / "real")
    assert link.read_text() == "words"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.parametrize("wanted", ["none/real", "taken"])
def test_a_log_that_cannot_be_made_elsewhere_is_in_the_session(tmp_path: Path, wanted: str) -> None:
    (tmp_path / "taken").write_text("another program's")
    link = str(tmp_path / "worker.log")
    path, fd = create_log(str(tmp_path / wanted), link)
    os.close(fd)
    assert path == link
    assert not os.path.islink(link)
    assert (tmp_path / "taken").read_text() == "another program's"


def test_only_what_is_certainly_a_log_is_removed(tmp_path: Path) -> None:
    name = "tr_mmap-log-" + "0" * 32
    log, other, folder = tmp_path / name, tmp_path / "precious", tmp_path / ("tr_mmap-log-" + "1" * 32)
    link, relative = tmp_path / ("tr_mmap-log-" + "2" * 32), name
    other.write_text("x")
    log.write_text("x")
    folder.mkdir()
    link.symlink_to(other)
    for path in (str(other), str(folder), str(link), relative, "", "/", f"{log}\0", f"{log}/", f"{other}/../{name}x"):
        remove_log(path)
    assert other.exists()
    assert folder.exists()
    assert link.is_symlink()
    assert log.exists()
    remove_log(str(log))
    assert not log.exists()
    remove_log(str(log))


# -- copying it while it is cut --------------------------------------------------------------------------------------


def wait_for(condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Sink:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def new_sink(monkeypatch: pytest.MonkeyPatch) -> Sink:
    """In place of stderr. No fixture, because pytest sets stderr anew when the test itself begins."""
    sink = Sink()
    monkeypatch.setattr("sys.stderr", sink)
    return sink


def test_a_forwarder_goes_on_after_a_cut_and_repeats_nothing(
    log: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = log
    sink = new_sink(monkeypatch)
    before = open_files()
    os.write(fd, b"old\n")
    forwarder = LogForwarder(path, from_start=False)
    os.write(fd, b"first\n")
    wait_for(lambda: "first" in sink.text)
    fill(fd, MAX_LOG_NBYTES)
    written = log_size(path).nbytes
    wait_for(lambda: len(sink.text) == written - len("old\n"))
    assert cut(path)
    os.write(fd, b"second\n")
    wait_for(lambda: sink.text.endswith("second\n"))
    forwarder.stop(BOUND_S)
    assert len(sink.text) == written - len("old\n") + len("second\n")
    assert "old" not in sink.text
    check_open_files(before)


def test_a_forwarder_takes_nothing_from_a_log_that_is_being_cut(
    log: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = log
    forwarder = LogForwarder.__new__(LogForwarder)
    forwarder._fd, forwarder._position = os.open(path, os.O_RDONLY), 0
    fill(fd, MAX_LOG_NBYTES)
    text = Path(path).read_bytes()
    read = b""

    def read_on() -> None:
        nonlocal read
        if worker_log.log_head(forwarder._fd).is_in_cut:
            assert forwarder._read() == b""
        elif data := forwarder._read():
            read += data

    while len(read) < len(text) // 2 + (1 << 20):
        read_on()
    with monkeypatch.context() as patch:
        patch.setattr(worker_log, "system", Interrupting(read_on))
        assert cut(path)
    while data := forwarder._read():
        read += data
    assert read == text
    forwarder._close()


def test_a_forwarder_that_was_too_slow_says_how_much_is_gone(log: tuple[str, int]) -> None:
    path, fd = log
    forwarder = LogForwarder.__new__(LogForwarder)  # without its thread, which might be fast enough
    forwarder._fd, forwarder._position = os.open(path, os.O_RDONLY), 0
    os.write(fd, b"first\n")
    assert forwarder._read() == b"first\n"
    fill(fd, MAX_LOG_NBYTES)
    assert cut(path)
    dropped = log_size(path).dropped_nbytes
    text = forwarder._read()
    assert text.startswith(b"\n[tr_mmap: %d bytes of output were dropped]\n" % (dropped - len(b"first\n")))
    while data := forwarder._read():
        text += data
    assert text.endswith(LINE)
    forwarder._close()


def test_a_forwarder_has_no_thread_while_its_process_forks(
    log: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = log
    sink = new_sink(monkeypatch)
    forwarder = LogForwarder(path, from_start=True)
    child = os.fork()  # a warning that there are threads would be an error here
    if child == 0:
        os._exit(len(os.listdir("/proc/self/task")) - 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.write(fd, b"after the fork\n")
    wait_for(lambda: "after the fork" in sink.text)
    forwarder.stop(BOUND_S)


def test_a_forwarder_that_is_stopped_just_after_a_look_copies_what_was_written_since(
    log: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = log
    sink = new_sink(monkeypatch)
    real, looks = LogForwarder._read, []

    def read(self: LogForwarder) -> bytes:
        data = real(self)
        looks.append(data)
        if len(looks) == 1:
            os.write(fd, b"the end\n")
            self.stop()
        return data

    monkeypatch.setattr(LogForwarder, "_read", read)
    forwarder = LogForwarder(path, from_start=True)
    wait_for(lambda: forwarder._fd < 0)
    assert (looks[0], sink.text) == (b"", "the end\n")


# -- the newest lines of a worker that a fatal error has ended ---------------------------------------------------------


def _dump(threads: int, frames: int, cause: str = "Aborted") -> str:
    lines = [f"Fatal Python error: {cause}", ""]
    for thread in range(threads):
        lines += [f"Thread 0x{thread:016x} (most recent call first):"]
        lines += [f'  File "/program/module.py", line {line} in function' for line in range(frames)] + [""]
    return "\n".join([*lines, "Extension modules: a, b (total: 2)", ""])


@pytest.mark.parametrize(
    ("threads", "frames"), [(1, 30), (3, 20), (60, 30)], ids=["one", "three", "longer than 16 KiB"]
)
def test_the_newest_lines_have_the_fatal_error_and_what_was_said_before_it(
    log: tuple[str, int], threads: int, frames: int
) -> None:
    path, fd = log
    os.write(fd, ("chatter\n" * 50 + "program: assertion 'x > 0' failed\n" + _dump(threads, frames)).encode())
    found = log_tail(path, 20).splitlines()
    assert len(found) == (20 if threads > 2 else 11)
    assert found[2:4] == ["program: assertion 'x > 0' failed", "Fatal Python error: Aborted"]
    assert found[4:6] == [
        "Thread 0x0000000000000000 (most recent call first):",
        '  File "/program/module.py", line 0 in function',
    ]
    assert found[-1] == "[...]"


def test_of_a_long_dump_the_threads_that_work_are_shown_first(log: tuple[str, int]) -> None:
    path, fd = log

    def thread(name: str, *files: str) -> list[str]:
        return [f"{name} (most recent call first):", *(f'  File "{each}", line 1 in f' for each in files), ""]

    waiting = "/usr/lib/python3/threading.py"
    server = "/x/tr_mmap/worker/server.py"

    lines = [
        "Fatal Python error: Aborted",
        "",
        *thread("Thread 0x1", waiting, "/x/site-packages/tr_mmap/base/background.py"),
        *thread("Thread 0x2", waiting, "/usr/lib/python3/concurrent/futures/thread.py"),
        *thread("Thread 0x3", waiting, "/home/tr_mmap/mine.py", server),
        *thread("Thread 0x4", *["/home/deep.py"] * 9),
        *thread("Current thread 0x5", "/x/tr_mmap/channel/mapped.py", server, "/home/mine.py"),
        "Extension modules: a, b (total: 2)",
    ]
    os.write(fd, "\n".join([*lines, ""]).encode())
    assert log_tail(path, 20).splitlines() == [
        "Fatal Python error: Aborted",
        *thread("Thread 0x3", waiting, "/home/tr_mmap/mine.py", server)[:-1],
        *thread("Thread 0x4", *["/home/deep.py"] * 4)[:-1],
        "  ...",
        *thread("Current thread 0x5", "/x/tr_mmap/channel/mapped.py", server, "/home/mine.py")[:-1],
        "[...]",
    ]


def test_a_dump_with_lines_without_end_is_bounded(log: tuple[str, int]) -> None:
    path, fd = log
    os.write(fd, b"x" * 100_000 + b"\n" + _dump(1, 30, "y" * 100_000).encode())
    assert len(log_tail(path, 20)) <= 32 << 10


def test_a_short_dump_is_whole_and_an_old_one_far_away_is_not_shown(log: tuple[str, int]) -> None:
    path, fd = log
    os.write(fd, _dump(1, 3).encode())
    assert log_tail(path, 20).splitlines() == _dump(1, 3).splitlines()
    os.write(fd, b"another line\n" * 30_000)
    assert log_tail(path, 20).splitlines() == ["another line"] * 20
