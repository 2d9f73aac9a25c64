"""Every system call fails once, and for ever, with every error: things are as before or as wanted, nothing is lost."""

from __future__ import annotations

import errno
import gc
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
import torch
from faults import ERRNOS, Faults, Plan, each_plan, faults
from support import TOOLS, count_fds, leftovers, processes_of, semaphores

from tr_mmap import OutOfSpace, PythonSession, TRException, load, save, sweep
from tr_mmap import manifest as manifests
from tr_mmap.identity import Identity
from tr_mmap.manifest import Manifest
from tr_mmap.protocol import TensorRef
from tr_mmap.segments import Receiver, SegmentPool
from tr_mmap.workspace import Workspace

__all__ = ["faults"]  # a fixture

OLD, NEW = np.arange(1000.0), np.arange(2000.0)[::-1]
LARGE = np.arange(100_000.0)  # beyond 256 KiB a new segment is filled in another way


def attempt(action: Callable[[], Any], plan: Plan) -> bool:
    """Do it; whether it raised, which must be an error that a caller can expect."""
    try:
        action()
    except OutOfSpace as error:
        return error.needed_nbytes > 0 and error.free_nbytes >= 0 and plan.number == errno.ENOSPC
    except (OSError, TRException):
        return True
    return False


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = count_fds()
    yield
    gc.collect()
    assert count_fds() == before


def mappings_of(directory: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(directory))


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [NEW, LARGE[::2], np.zeros((0, 3))], ids=["contiguous", "strided", "empty"])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_save_that_fails_leaves_the_old_file_or_none(
    faults: Faults, tmp_path: Path, tensor: Any, is_there: bool
) -> None:
    path = tmp_path / "x.tsr"

    def one(plan: Plan) -> None:
        if is_there:
            save(path, OLD)
        else:
            path.unlink(missing_ok=True)
        fds = count_fds()
        faults.arm(plan)
        has_failed = attempt(lambda: save(path, tensor, checksum=True), plan)
        fired = faults.disarm()
        assert count_fds() == fds, plan
        others = [name for name in os.listdir(tmp_path) if name != "x.tsr"]
        if "unlink" in fired:
            for name in others:
                os.unlink(tmp_path / name)
        else:
            assert not others, plan
        if not has_failed:
            np.testing.assert_array_equal(load(path, verify=True), tensor)
        elif is_there:
            np.testing.assert_array_equal(load(path), OLD)
        else:
            assert not path.exists(), plan

    failed = each_plan(faults, one)
    assert {"open", "replace", "pwrite"} <= set(failed)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("is_segment", [False, True])
def test_a_load_that_fails_keeps_nothing_open(faults: Faults, tmp_path: Path, framework: Any, is_segment: bool) -> None:
    pool = SegmentPool(str(tmp_path), "segment")
    path = tmp_path / "x.tsr"
    if is_segment:
        path = tmp_path / pool.publish(NEW).name
    else:
        save(path, NEW)
    mapped = mappings_of(tmp_path)
    found: list[Any] = []

    def one(plan: Plan) -> None:
        fds = count_fds()
        faults.arm(plan)
        has_failed = attempt(lambda: found.append(load(path, framework=framework)), plan)
        faults.disarm()
        assert count_fds() == fds, plan
        if not has_failed:
            np.testing.assert_array_equal(np.asarray(found.pop()), NEW)
        assert mappings_of(tmp_path) == mapped, plan

    assert {"open", "mmap"} <= set(each_plan(faults, one))
    pool.close()


# -- segments --------------------------------------------------------------------------------------------------------


def fresh(pool: SegmentPool) -> Any:
    return NEW


def fresh_large(pool: SegmentPool) -> Any:
    return LARGE


def recycled(pool: SegmentPool) -> Any:
    pool.release(pool.publish(OLD))
    return OLD + 1


def loan(pool: SegmentPool) -> Any:
    array = pool.empty(NEW.shape, "float64", "numpy")
    array[...] = NEW
    return array


def torch_loan(pool: SegmentPool) -> Any:
    tensor = pool.empty(NEW.shape, "float64", "torch")
    tensor.copy_(torch.from_numpy(NEW.copy()))
    return tensor


@pytest.mark.parametrize("make", [fresh, fresh_large, recycled, loan, torch_loan])
def test_a_publish_that_fails_changes_nothing_and_can_be_repeated(
    faults: Faults, tmp_path: Path, make: Callable[[SegmentPool], Any]
) -> None:
    count = 0

    def one(plan: Plan) -> None:
        nonlocal count
        count += 1
        directory = tmp_path / str(count)
        directory.mkdir()
        pool = SegmentPool(str(directory), "segment")
        earlier = pool.publish(OLD)
        receiver = Receiver(str(directory))
        held = receiver.receive(TensorRef("", earlier.name, earlier.seq), "numpy")
        tensor = make(pool)
        wanted = np.asarray(tensor).copy()
        before, fds = pool.stats(), count_fds()
        segments = []
        faults.arm(plan)
        has_failed = attempt(lambda: segments.append(pool.publish(tensor)), plan)
        fired = faults.disarm()
        assert count_fds() == fds, plan
        if has_failed:
            after = pool.stats()
            assert (after.segments, after.published) == (before.segments, before.published), plan
            if isinstance(tensor, np.ndarray) and make is loan:
                tensor[0] = wanted[0]  # still the lender's
            segments.append(pool.publish(tensor))
        if "unlink" not in fired:
            assert len(os.listdir(directory)) == pool.stats().segments, plan
        found = receiver.receive(TensorRef("", segments[0].name, segments[0].seq), "numpy")
        np.testing.assert_array_equal(found, wanted)
        if make in (loan, torch_loan):  # published is published, however often it took
            try:
                tensor[...] = -1.0
            except ValueError:
                pass
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(held, OLD)
        pool.close()

    failed = each_plan(faults, one)
    assert (make is recycled or make is loan) == (not failed)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_receive_that_fails_gives_its_lease_back(
    faults: Faults, tmp_path: Path, framework: str, is_known: bool
) -> None:
    pool = SegmentPool(str(tmp_path), "segment")

    def one(plan: Plan) -> None:
        receiver = Receiver(str(tmp_path))
        segment = pool.publish(NEW)
        ref = TensorRef("", segment.name, segment.seq)
        if is_known:
            receiver.receive(ref, "numpy")
        found: list[Any] = []
        fds = count_fds()
        faults.arm(plan)
        has_failed = attempt(lambda: found.append(receiver.receive(ref, framework)), plan)
        faults.disarm()
        assert count_fds() == fds, plan
        if has_failed:
            found.append(receiver.receive(ref, framework))
        np.testing.assert_array_equal(np.asarray(found.pop()), NEW)
        receiver.collect()
        pool.release(segment)
        assert pool.stats().free_nbytes == pool.stats().nbytes
        again = pool.publish(NEW + 1)
        assert again is segment, plan  # it was free
        pool.release(again)

    each_plan(faults, one)
    pool.close()


# -- sessions --------------------------------------------------------------------------------------------------------


@pytest.fixture
def numbers(is_full: bool) -> Sequence[int]:
    """A session's start and end take a while, so by default not every error is tried there."""
    return ERRNOS if is_full else (errno.ENOSPC, errno.EMFILE)


@pytest.fixture
def cheap_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start in a millisecond and do nothing."""
    script = tmp_path / "worker"
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


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_start_that_fails_can_be_repeated_or_closed(
    faults: Faults, workspace: Path, cheap_worker: None, numbers: Sequence[int], channel: str
) -> None:
    is_repeated = False

    def one(plan: Plan) -> None:
        nonlocal is_repeated
        fds = count_fds()
        session = PythonSession(TOOLS, quiet_mode=True, channel=channel)
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
        assert count_fds() == fds, plan

    failed = each_plan(faults, one, numbers)
    assert {"open", "mkdir", "replace"} <= set(failed)


def test_a_close_that_fails_can_be_repeated(
    faults: Faults, workspace: Path, cheap_worker: None, numbers: Sequence[int]
) -> None:
    def one(plan: Plan) -> None:
        fds = count_fds()
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
        assert count_fds() == fds, plan

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
    fds = count_fds()
    with monkeypatch.context() as patch:
        if blocked == "semaphore":
            patch.setattr(posix_ipc, "Semaphore", fail)
        elif blocked == "thread":
            patch.setattr("threading.Thread.start", fail_thread)
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
    assert count_fds() == fds


def test_a_session_can_be_closed_when_there_is_no_descriptor_left(workspace: Path) -> None:
    session = PythonSession(TOOLS, quiet_mode=True)
    session.start()
    session.wait_until_ready()
    session.send_tensor(OLD, "a")
    view, digest = session.fetch_tensor("echo a"), session.fetch_response("digest a")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count_fds() + 8, hard))
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


@pytest.fixture
def live(workspace: Path) -> Iterator[PythonSession]:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        yield session


@pytest.mark.parametrize("tensor", [NEW, LARGE], ids=["small", "large"])
def test_a_send_that_fails_leaves_the_tag_what_it_was(faults: Faults, live: PythonSession, tensor: Any) -> None:
    def one(plan: Plan) -> None:
        live.send_tensor(OLD, "old")
        files, fds = len(os.listdir(live.session_dir())), count_fds()
        for tag in ("old", "new"):
            faults.arm(plan)
            has_failed = attempt(lambda tag=tag: live.send_tensor(tensor, tag), plan)  # type: ignore[misc]
            faults.disarm()
            assert count_fds() == fds, plan
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
        assert len(os.listdir(live.session_dir())) <= files + 2, plan

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
        fds = count_fds()
        faults.arm(plan)
        found: list[Any] = []
        has_failed = attempt(lambda: found.append(live.calculate({"cmd": "say", "params": long})), plan)
        faults.disarm()
        assert count_fds() == fds, plan
        if not has_failed:
            assert found == [long]
        assert live.fetch_response("length " + long) == str(len(long))
        np.testing.assert_array_equal(live.fetch_tensor("echo a"), OLD)

    each_plan(faults, one)


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
        fds = count_fds()
        faults.arm(plan)
        attempt(lambda: sweep(str(workspace)), plan)
        faults.disarm()
        assert count_fds() == fds, plan
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
