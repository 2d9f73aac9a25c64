"""Mirrors and heartbeats: one suite for both implementations."""

from __future__ import annotations

import importlib.util
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rings import ring_memory
from support import BOUND_S, check_open_files, open_files, wait_until

from tr_mmap.native import reference as plain
from tr_mmap.wire.messages import EMPTY_GRACE_S, HAND_GRACE_S, HEARTBEAT_OFFSET, MIRROR_NBYTES, STATUS_NBYTES

IMPLEMENTATIONS = [plain]
if importlib.util.find_spec("tr_mmap.native._native") is not None:
    from tr_mmap.native import _native

    IMPLEMENTATIONS.append(_native)


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda module: module.__name__.rpartition(".")[2])
def native(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


class Shown:
    """A page and its mirror."""

    def __init__(self, native: ModuleType, path: Path, kept: bytes = b"") -> None:
        self.path = path
        self.page = memoryview(mmap.mmap(-1, 65536))
        self.set(b"new")
        creator = native.Mirror(self.page, str(path), kept)
        creator.create()
        creator.close()
        self.mirror = native.Mirror(self.page, str(path), kept)

    def set(self, line: bytes) -> None:
        self.page[:] = (line + b"\n").ljust(len(self.page))

    @property
    def line(self) -> bytes:
        """What is in the file, which has nothing but spaces behind its line."""
        text = self.path.read_bytes()
        line, _, rest = text.partition(b"\n")
        assert rest.strip(b" ") == b""
        return line

    def look_at(self, text: bytes, look: Callable[[], None], mode: str = "wb") -> bytes:
        """What is in the file after somebody has written a text by hand, and the mirror was told so a moment after."""
        while True:
            began_s = time.time()
            with open(self.path, mode) as file:
                file.write(text)
            os.utime(self.path, (1, 1))  # as copies have it: it is of no account
            look()
            found = self.path.read_bytes()
            if time.time() - began_s < HAND_GRACE_S:
                return found

    def await_line(self, line: bytes, look: Callable[[], None]) -> None:
        """Wait until the moment is over in which the mirror leaves the file to somebody else."""
        wait_until(lambda: look() or self.line == line)


@pytest.fixture
def shown(native: ModuleType, tmp_path: Path) -> Iterator[Shown]:
    made = Shown(native, tmp_path / "mirror")
    yield made
    made.mirror.close()


def test_a_mirror_has_the_pages_line_and_spaces_and_is_private(shown: Shown) -> None:
    for nbytes in (3, 50, 10, MIRROR_NBYTES - 1, MIRROR_NBYTES, MIRROR_NBYTES + 1, 60_000, 5000, 20):
        line = b"%05d" % nbytes + b"x" * nbytes
        shown.set(line)
        assert shown.mirror.is_stale
        shown.mirror.update()
        assert not shown.mirror.is_stale
        assert shown.line == line
        assert shown.path.stat().st_size == max(MIRROR_NBYTES, len(line) + 1)
        assert shown.path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_shows_already_is_not_written_again(shown: Shown) -> None:
    shown.set(b"one and the same")
    shown.mirror.update()
    os.utime(shown.path, (1, 1))
    shown.mirror.update()
    assert shown.path.stat().st_mtime == 1


def test_what_somebody_wrote_by_hand_stays_for_a_moment_and_no_longer(shown: Shown) -> None:
    shown.set(b"first")
    shown.mirror.update()
    shown.set(b"second")
    for look in (shown.mirror.update, shown.mirror.show):
        assert shown.look_at(b"by hand", look) == b"by hand"
        assert shown.mirror.is_stale
    shown.await_line(b"second", shown.mirror.update)


def test_what_somebody_has_emptied_stays_for_seconds_because_its_writer_may_only_be_starting(
    native: ModuleType, tmp_path: Path
) -> None:
    looks: list[tuple[Shown, Callable[[], None], bytes]] = []
    for way in ("update", "show", "foretell_busy"):
        shown = Shown(native, tmp_path / way)
        shown.set(b"ok")
        shown.mirror.show()
        shown.path.write_bytes(b"")
        shown.set(b"ready")
        looks.append((shown, getattr(shown.mirror, way), b"busy" if way == "foretell_busy" else b"ready"))
    emptied_s = time.time()
    wait_until(lambda: time.time() - emptied_s > HAND_GRACE_S)
    for shown, look, _ in looks:
        look()
        assert shown.path.read_bytes() == b"" or time.time() - emptied_s > EMPTY_GRACE_S
        assert shown.mirror.is_stale or time.time() - emptied_s > EMPTY_GRACE_S
    for shown, look, line in looks:
        shown.await_line(line, look)
    for shown, look, line in looks:

        def is_sooner(shown: Shown = shown, look: Callable[[], None] = look, line: bytes = line) -> bool:
            """Whether one that is not empty is left alone for a shorter time; a busy machine may need another try."""
            shown.mirror.forget()  # what the page says is to be shown again
            shown.path.write_bytes(b"some of it")
            began_s = time.time()
            shown.await_line(line, look)
            return time.time() - began_s < EMPTY_GRACE_S

        wait_until(is_sooner)
        shown.mirror.close()


def test_what_the_other_side_has_written_is_not_written_again(shown: Shown) -> None:
    shown.set(b"first")
    shown.mirror.mark_shown()
    shown.mirror.update()
    assert shown.line == b"new"
    shown.set(b"a request that is the next one")
    shown.mirror.update()
    assert shown.line == b"a request that is the next one"


def test_what_the_other_side_may_have_written_is_written_again_after_it_was_forgotten(shown: Shown) -> None:
    shown.set(b"ok")
    shown.mirror.update()
    shown.path.write_bytes(b"busy\n".ljust(MIRROR_NBYTES))
    shown.mirror.update()
    assert shown.line == b"busy"
    shown.mirror.forget()
    assert shown.mirror.is_stale
    shown.mirror.update()
    assert shown.line == b"ok"


@pytest.mark.parametrize("word", [b"ok", b"ready", b"error: in the last request", b"ok: epoch 3"])
def test_that_the_worker_will_be_busy_is_shown_until_the_page_says_more(shown: Shown, word: bytes) -> None:
    shown.set(word)
    shown.mirror.update()
    shown.mirror.foretell_busy()
    assert shown.line == b"busy"
    shown.mirror.update()
    assert shown.line == b"busy"
    shown.set(b"busy: epoch 4")
    shown.mirror.update()
    assert shown.line == b"busy: epoch 4"


@pytest.mark.parametrize("word", [b"starting", b"busy: epoch 3", b"exit", b"exiting", b"terminated"])
def test_of_a_worker_that_does_not_wait_for_requests_nothing_is_foretold(shown: Shown, word: bytes) -> None:
    shown.set(word)
    shown.mirror.update()
    shown.path.write_bytes(b"what the other side wrote meanwhile".ljust(MIRROR_NBYTES))
    shown.mirror.foretell_busy()
    assert shown.line == word


def test_nothing_is_foretold_over_what_somebody_wrote_by_hand_a_moment_ago(native: ModuleType, tmp_path: Path) -> None:
    shown = Shown(native, tmp_path / "mirror", b"exit")
    shown.set(b"ok")
    shown.mirror.update()
    for text in (b"exit\n", b"exit\n".ljust(MIRROR_NBYTES)):
        assert shown.look_at(text, shown.mirror.foretell_busy) == text
        assert shown.mirror.is_stale
    shown.mirror.close()


def test_what_must_be_restored_is_restored_at_once(shown: Shown) -> None:
    shown.set(b"first")
    shown.mirror.update()
    shown.path.write_bytes(b"x" * 100_000)
    shown.mirror.restore()
    assert shown.line == b"first"
    assert shown.path.stat().st_size == MIRROR_NBYTES


def test_another_line_stays_for_as_long_as_it_is_held(shown: Shown) -> None:
    shown.set(b"first")
    shown.mirror.write(b"an answer", 1000.0)
    shown.set(b"second")
    shown.mirror.update()
    shown.mirror.show()
    assert shown.line == b"an answer"
    shown.path.unlink()  # its reader has taken it
    wait_until(lambda: shown.mirror.update() or shown.path.exists())
    assert shown.line == b"second"
    shown.set(b"first")
    shown.mirror.write(b"another", 0.0)
    shown.set(b"second")
    shown.mirror.update()
    assert shown.line == b"second"


def test_a_kept_word_by_hand_stays_for_a_moment_even_if_the_file_was_not_truncated(
    native: ModuleType, tmp_path: Path
) -> None:
    shown = Shown(native, tmp_path / "mirror", b"exit")
    shown.set(b"busy")
    shown.mirror.update()
    for text, is_kept in ((b"exit\n", True), (b"exit: please\n", True), (b"exiting\n", False), (b"ready\n", False)):
        line = b"ok" if shown.page[0] == ord("b") else b"busy"
        shown.set(line)
        assert shown.look_at(text.ljust(20), shown.mirror.update, "r+b").startswith(text) is is_kept
        shown.await_line(line, shown.mirror.update)
    shown.mirror.close()


def symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("target"))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def second_name(path: Path) -> None:
    os.link(path, path.with_name("second"))


def unreadable(path: Path) -> None:
    path.unlink()
    path.touch(0o000)


def another(path: Path) -> None:
    path.with_name("new").write_bytes(b"another file")
    path.with_name("new").rename(path)


@pytest.mark.parametrize("spoil", [Path.unlink, symlink, fifo, second_name, unreadable, another])
def test_a_mirror_is_made_again_when_something_else_has_its_name(
    shown: Shown, spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    shown.set(b"first")
    shown.mirror.update()
    spoil(shown.path)
    shown.set(b"second")
    shown.mirror.create()
    assert shown.line == b"second"
    assert not shown.path.is_symlink()
    assert (tmp_path / "target").read_bytes() == b"mine"
    if spoil is second_name:
        assert (tmp_path / "second").read_bytes().startswith(b"first\n")


def test_a_mirror_that_somebody_removes_is_made_again_but_not_at_once(shown: Shown) -> None:
    """It is in nobody's way who is about to remove the whole directory."""
    shown.set(b"first")
    shown.mirror.update()
    shown.path.unlink()
    shown.set(b"second")
    for write in (shown.mirror.update, shown.mirror.show, shown.mirror.restore, shown.mirror.foretell_busy):
        write()
        assert not shown.path.exists()
    wait_until(lambda: shown.mirror.update() or shown.path.exists())
    assert shown.line == b"second"


def test_a_mirror_that_cannot_be_made_is_no_error_and_is_made_when_it_can(shown: Shown) -> None:
    shown.path.unlink()
    shown.path.mkdir()
    shown.set(b"first")
    for write in (shown.mirror.update, shown.mirror.show, shown.mirror.restore, shown.mirror.create):
        write()
    shown.mirror.write(b"an answer", 0.0)
    shown.path.rmdir()
    shown.mirror.create()
    assert shown.line == b"first"


def test_a_number_that_is_another_file_by_now_is_not_written(shown: Shown, tmp_path: Path) -> None:
    """A program that closes every descriptor, and opens files of its own."""
    number = os.open(os.devnull, os.O_RDONLY)
    os.close(number)  # the next descriptor has this number
    shown.set(b"first")
    shown.mirror.update()
    own = os.open(tmp_path / "own", os.O_RDWR | os.O_CREAT)
    os.dup2(own, number)
    shown.set(b"second")
    shown.mirror.update()
    shown.mirror.close()
    assert (tmp_path / "own").read_bytes() == b""
    assert shown.line == b"second"
    os.fstat(number)  # and it was not closed
    os.close(number)
    os.close(own)


def test_a_closed_mirror_writes_no_more_and_holds_no_descriptor(shown: Shown) -> None:
    before = open_files()
    shown.set(b"first")
    shown.mirror.update()
    shown.mirror.close()
    shown.mirror.close()
    check_open_files(before)
    shown.set(b"second")
    for write in (shown.mirror.update, shown.mirror.show, shown.mirror.restore, shown.mirror.foretell_busy):
        write()
    assert shown.line == b"first"


def test_a_wait_that_lasts_shows_what_the_mirrors_lack_and_a_short_one_does_not(
    native: ModuleType, shown: Shown, tmp_path: Path
) -> None:
    import posix_ipc

    name = f"/tr_{os.getpid()}_mirror"
    posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=1).close()
    semaphore = native.Semaphore(name)
    posix_ipc.unlink_semaphore(name)
    page = native.Ring(ring_memory())
    page.set_mirrors((shown.mirror,))
    shown.set(b"first")
    looks: list[bytes] = []

    def stop() -> bool:  # before each sleep: one that a ring ends at once, and one that lasts
        looks.append(shown.line)
        return len(looks) == 3

    assert page.waiters == 0
    assert not page.sleep(semaphore, BOUND_S, 0.01, stop)
    assert looks == [b"new", b"new", b"first"]
    assert shown.line == b"first"


@pytest.mark.parametrize("mirrors", [None, [], (1,)])
def test_only_a_tuple_of_mirrors_is_kept_up_to_date(native: ModuleType, mirrors: Any) -> None:
    if native is plain:
        pytest.skip("plain Python looks when it uses them")
    page = native.Ring(ring_memory())
    with pytest.raises(TypeError):
        page.set_mirrors(mirrors)


# -- heartbeats -----------------------------------------------------------------------------------------------------


LAG_MS = 50.0  # of the clock that a touch reads, at most


@pytest.fixture
def status() -> memoryview:
    return memoryview(mmap.mmap(-1, STATUS_NBYTES))


def test_a_heartbeat_ages_until_it_is_touched(native: ModuleType, status: memoryview) -> None:
    heartbeat = native.Heartbeat(status)
    assert heartbeat.age_ms() is None
    began = time.monotonic()
    heartbeat.touch()
    age = heartbeat.age_ms()
    assert 0 <= age <= (time.monotonic() - began) * 1000 + LAG_MS
    wait_until(lambda: heartbeat.age_ms() > age + 5)
    assert bytes(status[:HEARTBEAT_OFFSET]) == bytes(HEARTBEAT_OFFSET)


def test_both_implementations_mean_the_same_time(status: memoryview) -> None:
    for writer in IMPLEMENTATIONS:
        for reader in IMPLEMENTATIONS:
            began = time.monotonic()
            writer.Heartbeat(status).touch()
            assert 0 <= reader.Heartbeat(status).age_ms() <= (time.monotonic() - began) * 1000 + LAG_MS


@pytest.mark.parametrize("back_ms", [0, 1, 5000, 2**31 - 1000])
def test_the_clock_may_wrap_around(native: ModuleType, status: memoryview, back_ms: int) -> None:
    now_ms = time.monotonic_ns() // 1_000_000
    status[HEARTBEAT_OFFSET:] = b"%08x" % ((now_ms - back_ms) % 2**32)
    age = native.Heartbeat(status).age_ms()
    assert back_ms <= age <= back_ms + 1000 * BOUND_S


def test_a_time_that_is_not_over_yet_is_age_0(native: ModuleType, status: memoryview) -> None:
    status[HEARTBEAT_OFFSET:] = b"%08x" % ((time.monotonic_ns() // 1_000_000 + 1_000_000) % 2**32)
    assert native.Heartbeat(status).age_ms() == 0.0


@pytest.mark.parametrize("text", [b"        ", b"\0" * 8, b"0000000G", b"0000000F", b"-0000001", b"\xff" * 8])
def test_what_is_no_time_is_none(native: ModuleType, status: memoryview, text: bytes) -> None:
    status[HEARTBEAT_OFFSET:] = text
    assert native.Heartbeat(status).age_ms() is None


def test_a_page_that_is_too_short_is_refused(native: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least"):
        native.Heartbeat(memoryview(mmap.mmap(-1, STATUS_NBYTES))[:4088])
