"""Every system call of a session's operations fails once, and for ever: it is as before or as wanted, and goes on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import posix_ipc
import pytest
from faults import ERRNOS, LARGE, NEW, OLD, Faults, Plan, as_before, attempt, each_plan, faults
from support import TOOLS, WORKERS, check_open_files, leftovers, open_files, processes_of, semaphores, wait_until

from tr_mmap import PythonSession, ResponseTimeout, SystemLimit, TRException, sweep
from tr_mmap.processes.identity import Identity
from tr_mmap.sessions import manifest as manifests
from tr_mmap.sessions.manifest import Manifest
from tr_mmap.sessions.workspace import Workspace

__all__ = ["as_before", "faults"]  # fixtures

pytestmark = pytest.mark.usefixtures("as_before")


# -- starting and closing --------------------------------------------------------------------------------------------


@pytest.fixture
def numbers(is_full: bool) -> Sequence[int]:
    """A session's start and end take a while, so by default not every error is tried there."""
    return ERRNOS if is_full else (errno.EMFILE,)


@pytest.fixture
def cheap_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start in a millisecond and do nothing."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))


def check_nothing_left(workspace: Path, plan: object) -> None:
    left = leftovers(workspace)
    assert not left, plan


def tidy(workspace: Path, fired: list[str]) -> None:
    """Remove what is no reason to raise: an empty directory, and one that a sweep knows for given up."""
    if {"rmdir", "rmtree"} & set(fired):
        sweep(str(workspace))
    if {"replace", "rmtree"} <= set(fired):  # could be neither removed nor renamed: goes when its process has ended
        for path in workspace.glob(f"python_session/.new-{os.getpid()}-*"):
            shutil.rmtree(path)
        sweep(str(workspace))


@pytest.mark.parametrize("channel", ["mapped", "files", "mapped, auth"])
def test_a_start_that_fails_can_be_repeated_or_closed(
    faults: Faults, workspace: Path, cheap_worker: None, numbers: Sequence[int], channel: str
) -> None:
    is_repeated = False

    def one(plan: Plan) -> None:
        nonlocal is_repeated
        fds = open_files()
        name, _, auth = channel.partition(", ")
        session = PythonSession(TOOLS, quiet_mode=True, channel=name, auth=bool(auth))
        faults.arm(plan)
        has_failed = attempt(session.start, plan)
        fired = faults.disarm()
        if has_failed:
            assert not session.is_alive(), plan
            assert not processes_of(workspace), plan
            assert not semaphores(), plan
            is_repeated = not is_repeated
            if is_repeated:
                session.start()
                assert session.is_alive()
        session.close()
        tidy(workspace, fired)
        check_nothing_left(workspace, plan)
        check_open_files(fds, plan)

    failed = each_plan(faults, one, numbers)
    assert {"open", "mkdir", "replace"} <= set(failed)


def test_a_close_that_fails_can_be_repeated(
    faults: Faults, workspace: Path, cheap_worker: None, numbers: Sequence[int]
) -> None:
    def one(plan: Plan) -> None:
        fds = open_files()
        session = PythonSession(TOOLS, quiet_mode=True)
        session.start()
        session.send_tensor(OLD, "a")
        faults.arm(plan)
        has_failed = attempt(session.close, plan)
        fired = faults.disarm()
        assert not processes_of(workspace), plan  # whatever else fails, the worker is ended
        assert not semaphores(), plan
        if has_failed:
            session.close()
        tidy(workspace, fired)
        check_nothing_left(workspace, plan)
        check_open_files(fds, plan)

    each_plan(faults, one, numbers)


@pytest.mark.parametrize("blocked", ["semaphore", "thread", "pidfd", "eventfd", "process"])
def test_a_start_without_one_of_the_kernels_other_gifts_leaves_nothing(
    workspace: Path, cheap_worker: None, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    def fail(*arguments: Any, **more: Any) -> Any:
        raise OSError(errno.EMFILE, "injected")

    def fail_thread(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("can't start new thread")

    session = PythonSession(TOOLS, quiet_mode=True)
    fds = open_files()
    with monkeypatch.context() as patch:
        if blocked == "semaphore":
            patch.setattr("tr_mmap.channel.doorbell.create_semaphore", fail)
        elif blocked == "thread":
            patch.setattr("tr_mmap.base.background._start_new_thread", fail_thread)
        elif blocked == "pidfd":
            patch.setattr(os, "pidfd_open", fail)
        elif blocked == "eventfd":
            patch.setattr(os, "eventfd", fail)
        else:
            patch.setattr(subprocess.Popen, "_execute_child", fail)
        if blocked == "pidfd":  # watched in another way
            session.start()
            session.terminate()
        else:
            with pytest.raises((OSError, RuntimeError)):
                session.start()
        assert not processes_of(workspace)
        assert not semaphores() or blocked == "pidfd"
    session.start()
    assert session.is_alive()
    session.close()
    check_nothing_left(workspace, blocked)
    check_open_files(fds)


@pytest.mark.parametrize("channel", ["mapped", "files", "legacy"])
@pytest.mark.filterwarnings("ignore")  # of a legacy worker's guard that cannot be started
def test_a_start_for_which_too_few_descriptors_are_left_leaves_nothing(
    workspace: Path, cheap_worker: None, channel: Any
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    failed = 0
    for left in range(50):
        session = PythonSession(TOOLS, "scarce", quiet_mode=True, channel=channel)
        fds = open_files()
        taken: list[int] = []
        error: OSError | None = None
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
        try:
            try:
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            for _ in range(min(left, len(taken))):
                os.close(taken.pop())
            session.start()
        except OSError as caught:
            error = caught
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        if error is None:
            session.close()
            break
        failed += 1
        assert isinstance(error, SystemLimit), left
        assert error.limit == "RLIMIT_NOFILE"
        assert leftovers(workspace) == [], left
        check_open_files(fds, left)
        other = PythonSession(TOOLS, "scarce", quiet_mode=True, channel=channel)
        other.start()  # the name is free
        other.close()
    assert 5 < failed < 50


def test_a_session_can_be_closed_when_there_is_no_descriptor_left(workspace: Path) -> None:
    session = PythonSession(TOOLS, quiet_mode=True)
    session.start()
    session.wait_until_ready()
    session.send_tensor(OLD, "a")
    view, digest = session.fetch_tensor("echo a"), session.fetch_response("digest a")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files().total() + 8, hard))
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        assert session.fetch_response("hello you") == "Hello You"  # what is there goes on
        assert session.fetch_response("digest a") == digest
        with pytest.raises(OSError, match="Too many open files"):
            session.send_tensor(LARGE, "b")
        try:
            session.close()
        except OSError as error:
            assert error.errno == errno.EMFILE  # noqa: PT017 - it need not raise
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert not processes_of(workspace)
    session.close()
    np.testing.assert_array_equal(view, OLD)


def test_whatever_fails_in_a_close_the_worker_is_ended(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = PythonSession(TOOLS, quiet_mode=True)
    session.start()
    session.wait_until_ready()

    def fail() -> None:
        raise OSError(errno.EIO, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(session._dispatcher, "keep_answers", fail)
        with pytest.raises(OSError, match="injected"):
            session.close()
        assert not processes_of(workspace)
    session.close()


@pytest.fixture
def live(workspace: Path) -> Iterator[PythonSession]:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        yield session


@pytest.mark.parametrize("tensor", [NEW, LARGE], ids=["small", "large"])
def test_a_send_that_fails_leaves_the_tag_what_it_was(faults: Faults, live: PythonSession, tensor: Any) -> None:
    def one(plan: Plan) -> None:
        live.send_tensor(OLD, "old")
        files, fds = len(os.listdir(live.session_dir())), open_files()
        for tag in ("old", "new"):
            faults.arm(plan)
            has_failed = attempt(lambda tag=tag: live.send_tensor(tensor, tag), plan)  # type: ignore[misc]
            faults.disarm()
            check_open_files(fds, plan)
            if not has_failed:
                np.testing.assert_array_equal(live.fetch_tensor(f"echo {tag}"), tensor)
            elif tag == "old":
                np.testing.assert_array_equal(live.fetch_tensor("echo old"), OLD)
            else:
                with pytest.raises(TRException, match="'new'"):
                    live.fetch_tensor("echo new")
        try:
            live.drop_tensor("new")
        except KeyError:
            pass
        # A send that finds no room is tried once more; what each try leaves when nothing can be removed either.
        assert len(os.listdir(live.session_dir())) <= files + 4, plan

    failed = each_plan(faults, one)
    assert {"link", "replace"} <= set(failed)
    assert live.stats().segments <= 6


def test_a_drop_that_fails_leaves_the_tag_or_not(faults: Faults, live: PythonSession) -> None:
    def one(plan: Plan) -> None:
        live.send_tensor(OLD, "a")
        faults.arm(plan)
        has_failed = attempt(lambda: live.drop_tensor("a"), plan)
        faults.disarm()
        if has_failed:
            np.testing.assert_array_equal(live.fetch_tensor("echo a"), OLD)
            live.drop_tensor("a")
        with pytest.raises(TRException):
            live.fetch_tensor("echo a")
        assert not Path(live.session_dir(), "a.tsr").exists()

    each_plan(faults, one)
    assert live.stats().segments == 1


def test_a_request_that_fails_is_not_half_made(faults: Faults, live: PythonSession) -> None:
    long = "x" * 100_000  # goes through a file of its own

    def one(plan: Plan) -> None:
        live.send_tensor(OLD, "a")
        fds = open_files()
        faults.arm(plan)
        found: list[Any] = []
        has_failed = attempt(lambda: found.append(live.calculate({"cmd": "say", "params": long})), plan)
        faults.disarm()
        check_open_files(fds, plan)
        if not has_failed:
            assert found == [long]
        assert live.fetch_response("length " + long) == str(len(long))
        np.testing.assert_array_equal(live.fetch_tensor("echo a"), OLD)

    each_plan(faults, one)


WAITS: dict[str, tuple[str, Callable[[PythonSession, float], Any], Any]] = {
    "tensor": ("echo a", lambda session, ms: session.wait_for_tensor(ms), OLD),
    "large_tensor": ("echo large", lambda session, ms: session.wait_for_tensor(ms), LARGE),
    "text": ("repeat x 5", lambda session, ms: session.wait_for_response(ms), "xxxxx"),
    "long_text": ("repeat x 100000", lambda session, ms: session.wait_for_response(ms), "x" * 100_000),
}


@pytest.mark.parametrize("what", WAITS)
def test_a_wait_that_fails_takes_the_answer_or_leaves_it_to_the_next(
    faults: Faults, live: PythonSession, what: str
) -> None:
    message, wait, wanted = WAITS[what]
    live.send_tensor(OLD, "a")
    live.send_tensor(LARGE, "large")

    def one(plan: Plan) -> None:
        live.send_request(message)
        fds = open_files()
        found: list[Any] = []
        faults.arm(plan)
        has_failed = attempt(lambda: found.append(wait(live, 10_000)), plan)
        faults.disarm()
        check_open_files(fds, plan)
        if has_failed:
            try:
                found.append(wait(live, 50))
            except ResponseTimeout as error:  # at once: the error was what came of that request
                found.append(wanted)
                assert "no request was made" in str(error)  # noqa: PT017
        np.testing.assert_array_equal(found.pop(), wanted)
        assert not live.new_response()
        assert live.fetch_response("hello you") == "Hello You"

    failed = each_plan(faults, one)
    assert failed or what == "text"
    assert live.stats().segments <= 6


def count_fds_of_worker(session: PythonSession) -> int:
    """When it has been idle for long enough to have all mirrors open."""
    directory = Path(f"/proc/{session.stats().worker.pid}/fd")

    def names() -> set[str]:
        return {os.path.basename(os.readlink(each)) for each in directory.iterdir()}

    wait_until(lambda: {"request.json", "response.json", "status.txt"} <= names())
    return len(os.listdir(directory))


@pytest.mark.each_value
@pytest.mark.parametrize("command", ["echo", "loan", "repeat x 100000"])
@pytest.mark.parametrize("nbytes", [8000, 800_000])
def test_a_worker_whose_system_calls_fail_answers_and_goes_on(command: str, nbytes: int) -> None:
    x = np.arange(nbytes // 8)
    failed = 0
    errors: list[str] = []
    with PythonSession(WORKERS / "faulty.py", quiet_mode=True) as session:
        for size in (1, 2, 3):  # so that each size class is known on both sides
            session.calculate("echo", x[: len(x) // size])
        fds = count_fds_of_worker(session)
        for number in ERRNOS:
            for is_forever in (0, 1):
                for nth in range(1, 200):
                    session.fetch_response(f"arm {nth} {number} {is_forever}")
                    has_failed = False
                    try:
                        found = session.calculate(command, x[: nth + 1]) if " " not in command else None
                        text = session.fetch_response(command) if " " in command else "x" * 100_000
                    except TRException as error:
                        has_failed = True
                        errors.append(str(error))
                    fired = session.fetch_response("disarm")
                    assert session.is_alive()
                    if not has_failed:
                        assert text == "x" * 100_000
                        assert found is None or np.array_equal(found, x[: nth + 1])
                    else:
                        assert fired
                    np.testing.assert_array_equal(session.calculate("echo", x), x)
                    if not fired:
                        break
                    failed += 1
                else:
                    pytest.fail("there is no end of calls")
        found = None
        assert all(errors)
        assert count_fds_of_worker(session) == fds
        assert len(os.listdir(session.session_dir())) < 40
    assert failed


# -- the sweep -------------------------------------------------------------------------------------------------------


def test_a_sweep_that_fails_leaves_each_session_whole_or_gone(faults: Faults, workspace: Path) -> None:
    ended = subprocess.Popen(["sleep", "1000"])
    identity = Identity.of(ended.pid)
    assert identity is not None
    ended.kill()
    ended.wait()
    place = Workspace(str(workspace))
    place.claim("mine", Manifest(session_id="mine", controller=Identity.current()))

    def one(plan: Plan) -> None:
        names = [f"/tr_{os.getpid()}_fault_{index}" for index in range(2)]
        for index in range(2):
            bells = [names[index]]
            posix_ipc.Semaphore(bells[0], posix_ipc.O_CREX).close()
            path = place.claim(f"dead{index}", Manifest(session_id=f"dead{index}", controller=Identity.current()))
            Path(path, "a.tsr").write_bytes(b"x")
            manifests.write(path, Manifest(session_id=f"dead{index}", controller=identity, doorbells=bells))
        fds = open_files()
        faults.arm(plan)
        attempt(lambda: sweep(str(workspace)), plan)
        faults.disarm()
        check_open_files(fds, plan)
        for index in range(2):
            path = place.session_dir(f"dead{index}")
            if os.path.exists(path):
                assert manifests.read(path) is not None, plan
                assert Path(path, "a.tsr").exists(), plan
        sweep(str(workspace))
        assert os.listdir(workspace / "python_session") == ["tr_session_mine"], plan
        assert not semaphores(), plan

    failed = each_plan(faults, one)
    assert {"listdir", "open", "flock", "replace"} <= set(failed)
    assert place.release("mine")
