"""A real file system that is full: an exception that says what is missing, no signal, and the session goes on."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import FOREVER_MS, ROOT, TOOLS, Gate, processes_of, semaphores

from tr_mmap import OutOfSpace, PythonSession, RemoteError, RemoteOutOfSpace, ResponseTimeout, WorkerDied, load, save

NBYTES = 4 << 20
PAGE = 4096
SIZES = [0, 1, PAGE, 64 << 10, 255 << 10, 256 << 10, 1 << 20, 2 << 20, 3 << 20, 4 << 20, 5 << 20, 1 << 30, 1 << 42]


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)


class Small:
    """A tmpfs of 4 MiB, and a file in it that takes what is left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    @property
    def free_nbytes(self) -> int:
        info = os.statvfs(self.path)
        return info.f_bavail * info.f_frsize

    def leave(self, nbytes: int) -> None:
        """Fill it until no more than that is free."""
        self.empty()
        with open(self._filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free_nbytes - nbytes)
        assert self.free_nbytes == nbytes

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    path = tmp_path / "small"
    path.mkdir()
    mounted = _run("mount", "-t", "tmpfs", "-o", f"size={NBYTES},mode=700", "tr_mmap-test", str(path))
    if mounted.returncode:
        pytest.skip(f"NOT TESTED: a full tmpfs, for this user may mount none ({mounted.stderr.strip()})")
    try:
        monkeypatch.setenv("TR_WORKSPACE", str(path))
        made = Small(path)
        yield made
        made.empty()
        assert not processes_of(path)
        assert list(path.rglob("*")) == []
        assert not semaphores()
    finally:
        _run("umount", "-l", str(path))


@pytest.fixture
def live(small: Small) -> Iterator[PythonSession]:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        yield session


def of_size(nbytes: int) -> Any:
    """A tensor of that size that takes no memory itself."""
    return np.broadcast_to(np.uint8(7), (nbytes,))


def check_error(error: OutOfSpace, needed_nbytes: int) -> None:
    assert error.needed_nbytes >= needed_nbytes
    assert 0 <= error.free_nbytes < max(error.needed_nbytes, NBYTES)


# -- tensors of every size, at every state ---------------------------------------------------------------------------


def as_started(session: PythonSession, gate: Gate) -> Callable[[], None]:
    return lambda: None


def with_a_tag(session: PythonSession, gate: Gate) -> Callable[[], None]:
    session.send_tensor(np.arange(1000.0), "big")
    return lambda: np.testing.assert_array_equal(session.fetch_tensor("echo big"), np.arange(1000.0))


def with_a_view(session: PythonSession, gate: Gate) -> Callable[[], None]:
    view = session.calculate("echo", np.arange(100_000.0))
    return lambda: np.testing.assert_array_equal(view, np.arange(100_000.0))


def with_free_segments(session: PythonSession, gate: Gate) -> Callable[[], None]:
    session.calculate("echo", of_size(1 << 20))
    return lambda: None


def while_asked(session: PythonSession, gate: Gate) -> Callable[[], None]:
    session.send_request(gate.message)
    gate.wait_for_worker()

    def check() -> None:
        gate.let_go("at last")
        assert session.wait_for_response(FOREVER_MS) == "at last"

    return check


def after_a_death(session: PythonSession, gate: Gate) -> Callable[[], None]:
    with pytest.raises(WorkerDied):
        session.fetch_response("die 3 x")
    return session.start


STATES = [as_started, with_a_tag, with_a_view, with_free_segments, while_asked, after_a_death]


@pytest.mark.each_value
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("left_nbytes", [None, PAGE, 0], ids=["roomy", "a_page", "full"])
def test_a_tensor_of_any_size_is_sent_or_refused(
    live: PythonSession, small: Small, gate: Gate, state: Any, left_nbytes: int | None
) -> None:
    check = state(live, gate)
    if left_nbytes is not None:
        small.leave(left_nbytes)
    refused = 0
    for nbytes in SIZES:
        x = of_size(nbytes)
        try:
            live.send_tensor(x, "sent")
            assert live.stats().segments > 0
            live.drop_tensor("sent")
        except OutOfSpace as error:
            check_error(error, nbytes)
            refused += 1
        try:
            loan = live.empty((nbytes,), "uint8")
            loan[...] = 7  # no signal
            del loan
        except OutOfSpace as error:
            check_error(error, nbytes)
    assert refused >= (3 if left_nbytes is None else len(SIZES) - 8)
    small.empty()
    check()
    assert live.fetch_response("hello you") == "Hello You"
    assert live.calculate("total", of_size(1 << 20)) == str(7 << 20)


@pytest.mark.parametrize("nbytes", [1, PAGE, 1 << 20])
def test_a_tag_keeps_what_it_had_when_there_is_no_room_for_another(
    live: PythonSession, small: Small, nbytes: int
) -> None:
    live.send_tensor(np.arange(1000.0), "a")
    live.send_tensor(of_size(3 << 20), "b")
    small.leave(0)
    with pytest.raises(OutOfSpace):
        live.send_tensor(of_size(nbytes), "a")
    assert live.fetch_response("length x") == "1"
    np.testing.assert_array_equal(load(os.path.join(live.session_dir(), "a.tsr")), np.arange(1000.0))
    small.empty()
    np.testing.assert_array_equal(live.fetch_tensor("echo a"), np.arange(1000.0))


# -- the worker's side -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["echo a", "loan 100000 3"])
def test_a_result_without_room_is_the_workers_out_of_space(live: PythonSession, small: Small, message: str) -> None:
    live.send_tensor(np.arange(100_000.0), "a")
    small.leave(PAGE)
    for _ in range(3):
        with pytest.raises(RemoteError) as caught:
            live.fetch_tensor(message)
        assert caught.value.error_type == "OutOfSpace"
        assert "bytes are needed" in str(caught.value) or "were to be written" in str(caught.value)
    small.empty()
    assert live.fetch_tensor(message).nbytes >= 100_000


def test_a_worker_whose_log_is_full_goes_on(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small.path))  # so the log is there too
    with PythonSession(TOOLS, quiet_mode=True) as session:
        small.leave(0)
        for _ in range(50):  # a traceback each, and a log of one page
            with pytest.raises(RemoteError) as caught:
                session.fetch_response("fail " + "x" * 1000)
            assert caught.value.error_type == "ZeroDivisionError"
        session.fetch_response("print " + "x" * 3000)  # what has no room is dropped
        assert session.fetch_response("hello you") == "Hello You"


def test_a_full_tmpfs_leaves_the_log_its_room(live: PythonSession, small: Small) -> None:
    small.leave(0)
    with pytest.raises(RemoteError, match="on purpose"):
        live.fetch_response("fail on purpose")
    for _ in range(25):  # each request has room in its slot
        assert live.fetch_response("print " + "x" * 2000) == "printed"
    log = Path(live.session_dir(), "worker.log").read_text()
    assert "ZeroDivisionError: on purpose" in log
    assert log.count("x" * 2000) == 25


def test_long_messages_without_room_are_refused_on_either_side(live: PythonSession, small: Small) -> None:
    small.leave(PAGE)
    with pytest.raises(OutOfSpace) as caught:
        live.fetch_response("length " + "x" * 100_000)
    check_error(caught.value, 100_000)
    with pytest.raises(RemoteError) as refused:
        live.fetch_response("repeat x 100000")
    assert refused.value.error_type == "OutOfSpace"
    assert live.fetch_response("hello you") == "Hello You"
    small.empty()
    assert live.fetch_response("length " + "x" * 100_000) == "100000"
    assert len(live.fetch_response("repeat x 100000")) == 100_000


def test_a_channel_of_files_goes_on_when_there_is_room_again(small: Small) -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel="files") as session:
        assert session.fetch_response("hello you") == "Hello You"
        small.leave(0)
        with pytest.raises(OutOfSpace):
            session.fetch_response("hello you")
        small.leave(PAGE)  # for a request, and not for what is said of it
        try:
            session.send_request("hello you")
        except OutOfSpace:
            pass
        small.empty()
        assert session.is_alive()
        assert session.fetch_response("hello again", FOREVER_MS) == "Hello Again"


def test_an_answer_that_finds_no_room_in_a_channel_of_files_is_an_error_as_soon_as_there_is(
    small: Small, gate: Gate
) -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel="files") as session:
        session.send_request(gate.message)
        gate.wait_for_worker()
        small.leave(0)
        gate.let_go("late")
        with pytest.raises(ResponseTimeout):
            session.wait_for_response(300)
        small.empty()
        with pytest.raises(RemoteError) as caught:
            session.wait_for_response(FOREVER_MS)
        assert caught.value.error_type == "OutOfSpace"
        assert session.wait_until_ready()
        assert session.fetch_response("hello you") == "Hello You"


# -- what the other side keeps for later ------------------------------------------------------------------------------

LARGE = 2_500_000  # with what the other side keeps it does not fit, without that it does


def keep_in_worker(session: PythonSession) -> None:
    """Let the worker keep 2 MiB for later results."""
    results = [session.calculate("echo", of_size(256 << 10)) for _ in range(8)]
    del results
    gc.collect()


@pytest.mark.each_value
@pytest.mark.parametrize("channel", ["mapped", "files"])
@pytest.mark.parametrize("auth", [False, True])
def test_a_request_gets_the_room_that_the_worker_keeps_for_later_results(
    small: Small, channel: str, auth: bool
) -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel=channel, auth=auth) as session:
        keep_in_worker(session)
        session.send_tensor(of_size(100), "t")  # a tag that is not announced yet
        assert session.calculate("total", of_size(LARGE)) == str(7 * LARGE)
        assert session.fetch_response("total t") == "700"


@pytest.mark.parametrize("what", ["tag", "loan", "torch loan", "after send_request"])
def test_a_tensor_gets_the_room_that_the_worker_keeps_for_later_results(live: PythonSession, what: str) -> None:
    keep_in_worker(live)
    if what == "tag":
        live.send_tensor(of_size(LARGE), "a")
        assert live.fetch_response("total a") == str(7 * LARGE)
    elif what == "after send_request":
        live.send_request("hello you")
        with pytest.raises(OutOfSpace):  # it waits for nobody's response
            live.send_tensor(of_size(LARGE), "a")
        assert live.wait_for_response() == "Hello You"
        live.send_tensor(of_size(LARGE), "a")
    else:
        if what == "torch loan":
            pytest.importorskip("torch")
        loan = live.empty(LARGE, "uint8", framework="torch" if what == "torch loan" else "numpy")
        assert loan.nbytes == LARGE
    assert live.fetch_response("hello again") == "Hello Again"


def test_after_a_worker_without_room_the_next_request_finds_what_the_controller_kept(live: PythonSession) -> None:
    for number in range(8):
        live.send_tensor(of_size(256 << 10), f"t{number}")
    for number in range(8):
        live.drop_tensor(f"t{number}")
    with pytest.raises(RemoteOutOfSpace):
        live.calculate(f"loan {LARGE} 7")
    assert live.calculate(f"loan {LARGE} 7").nbytes >= LARGE


def test_what_is_in_use_is_not_given_up_to_make_room(live: PythonSession) -> None:
    live.send_tensor(of_size(512 << 10), "kept")
    view = live.calculate("echo", of_size(1 << 20))
    with pytest.raises(OutOfSpace) as caught:
        live.calculate("total", of_size(LARGE))
    assert not caught.value.is_budget
    with pytest.raises(OutOfSpace):
        live.send_tensor(of_size(LARGE), "kept")
    assert (view == 7).all()
    assert live.fetch_response("total kept") == str(7 * (512 << 10))


def test_a_budget_is_a_sides_own_and_no_reason_to_ask_the_other(small: Small) -> None:
    with PythonSession(TOOLS, quiet_mode=True, budget_nbytes=1 << 20) as session:
        with pytest.raises(OutOfSpace) as caught:
            session.calculate("total", of_size(LARGE))
        assert caught.value.is_budget


# -- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_start_with_any_room_works_or_is_refused_and_leaves_nothing(small: Small, channel: str) -> None:
    outcomes = []
    for pages in range(44) if channel == "files" else range(0, 180, 4):
        small.leave(pages * PAGE)
        session = PythonSession(TOOLS, "any", quiet_mode=True, channel=channel)
        try:
            session.start()
            outcomes.append(True)
        except OutOfSpace as error:
            check_error(error, 1)
            outcomes.append(False)
        finally:
            small.empty()
            session.close()
        assert list(small.path.iterdir()) == []
    assert not outcomes[0]
    assert outcomes[-1]
    assert outcomes == sorted(outcomes)


def test_a_worker_comes_up_and_leaves_when_its_controller_took_the_last_page(small: Small) -> None:
    session = PythonSession(TOOLS, quiet_mode=True)
    session.start()
    small.leave(0)
    assert session.wait_until_ready(FOREVER_MS)
    assert session.fetch_response("hello you") == "Hello You"
    assert session.please_exit(FOREVER_MS)


def test_a_start_that_was_refused_works_when_there_is_room(small: Small) -> None:
    small.leave(PAGE)
    session = PythonSession(TOOLS, quiet_mode=True)
    with pytest.raises(OutOfSpace):
        session.start()
    small.empty()
    with session:
        assert session.fetch_response("hello you") == "Hello You"


def test_a_new_worker_that_finds_no_room_is_refused_and_the_tags_wait_for_it(live: PythonSession, small: Small) -> None:
    live.send_tensor(np.arange(1000.0), "a")
    with pytest.raises(WorkerDied):
        live.fetch_response("die 3 x")
    small.leave(0)
    with pytest.raises(OutOfSpace):
        live.start()
    small.empty()
    live.start()
    np.testing.assert_array_equal(live.fetch_tensor("echo a"), np.arange(1000.0))


def test_a_full_dev_shm_is_an_exception_too(tmp_path: Path) -> None:
    """There the semaphores are, and by default the sessions."""
    code = f"""
import os, sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from tr_mmap import PythonSession, OutOfSpace
os.environ.pop("TR_WORKSPACE", None)
refused = 0
for place in ("", {str(tmp_path)!r}):
    if place:
        os.environ["TR_WORKSPACE"] = place
    for pages in range(0, 44, 1 if not place else 4):
        info = os.statvfs("/dev/shm")
        with open("/dev/shm/filler", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, (info.f_bavail - pages) * 4096)
        session = PythonSession({str(TOOLS)!r}, quiet_mode=True)
        try:
            session.start()
        except OutOfSpace as error:
            refused += 1
            assert error.needed_nbytes > 0 and error.free_nbytes >= 0
        finally:
            os.unlink("/dev/shm/filler")
            session.close()
        assert os.listdir("/dev/shm") == [], os.listdir("/dev/shm")
print("refused", refused)
"""
    mount = f"mount -t tmpfs -o size={NBYTES} tr_mmap-test /dev/shm"
    done = _run("unshare", "-m", "sh", "-c", f'{mount} || exit 77; exec "$0" -W error -c "$1"', sys.executable, code)
    if done.returncode in (1, 77) and "refused" not in done.stdout and "Traceback" not in done.stderr:
        pytest.skip(f"NOT TESTED: a full /dev/shm, for this user may mount none ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 10


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_without_room_is_refused_and_the_old_one_stays(small: Small) -> None:
    path = small.path / "x.tsr"
    save(path, np.arange(1000.0))
    small.leave(PAGE)
    for nbytes in SIZES:
        try:
            save(path, of_size(nbytes) if nbytes < 1 << 30 else of_size(nbytes)[None])
            save(path, np.arange(1.0))
        except OutOfSpace as error:
            check_error(error, nbytes)
        assert [each.name for each in small.path.iterdir() if each.name != "filler"] == ["x.tsr"]
        assert load(path) is not None
        gc.collect()
    path.unlink()
