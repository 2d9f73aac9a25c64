"""Every system call on files and segments fails once, and for ever, with every error: things are as before or as
wanted, nothing is lost. Sessions: test_session_faults.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import LARGE, NEW, OLD, Faults, Plan, as_before, attempt, each_plan, faults
from support import check_open_files, open_files

from tr_mmap import load, save
from tr_mmap.native import drain
from tr_mmap.protocol.messages import TensorRef
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.reader import SegmentReader

__all__ = ["as_before", "faults"]  # fixtures

pytestmark = pytest.mark.usefixtures("as_before")


def mappings_of(directory: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(directory))


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.each_value
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
        fds = open_files()
        faults.arm(plan)
        has_failed = attempt(lambda: save(path, tensor, checksum=True), plan)
        fired = faults.disarm()
        check_open_files(fds, plan)
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


@pytest.mark.each_value
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
        fds = open_files()
        faults.arm(plan)
        has_failed = attempt(lambda: found.append(load(path, framework=framework)), plan)
        faults.disarm()
        check_open_files(fds, plan)
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
    pool.publish(OLD).release()
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
        receiver = SegmentReader(str(directory))
        held = receiver.receive(earlier.name, earlier.seq, "numpy")
        tensor = make(pool)
        wanted = np.asarray(tensor).copy()
        before, fds = pool.stats(), open_files()
        segments = []
        faults.arm(plan)
        has_failed = attempt(lambda: segments.append(pool.publish(tensor)), plan)
        fired = faults.disarm()
        check_open_files(fds, plan)
        if has_failed:
            after = pool.stats()
            assert (after.segments, after.published) == (before.segments, before.published), plan
            if isinstance(tensor, np.ndarray) and make is loan:
                tensor[0] = wanted[0]  # still the lender's
            segments.append(pool.publish(tensor))
        if "unlink" not in fired:
            assert len(os.listdir(directory)) == pool.stats().segments, plan
        found = receiver.receive(segments[0].name, segments[0].seq, "numpy")
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


@pytest.mark.each_value
@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_receive_that_fails_gives_its_lease_back(
    faults: Faults, tmp_path: Path, framework: str, is_known: bool
) -> None:
    pool = SegmentPool(str(tmp_path), "segment")

    def one(plan: Plan) -> None:
        receiver = SegmentReader(str(tmp_path))
        segment = pool.publish(NEW)
        ref = TensorRef("", segment.name, segment.seq)
        if is_known:
            receiver.receive(ref.segment, ref.seq, "numpy", ref.tag)
        found: list[Any] = []
        fds = open_files()
        faults.arm(plan)
        has_failed = attempt(lambda: found.append(receiver.receive(ref.segment, ref.seq, framework, ref.tag)), plan)
        faults.disarm()
        check_open_files(fds, plan)
        if has_failed:
            found.append(receiver.receive(ref.segment, ref.seq, framework, ref.tag))
        np.testing.assert_array_equal(np.asarray(found.pop()), NEW)
        drain()
        segment.release()
        assert pool.stats().free_nbytes == pool.stats().nbytes
        again = pool.publish(NEW + 1)
        assert again is segment, plan  # it was free
        again.release()

    each_plan(faults, one)
    pool.close()
