"""Zero copies, proven by what the kernel says; views that stay right; loans; nobody writes into the other's memory."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import bits
from support import FRAMEWORKS, TOOLS, WORKERS, Mapping, anonymous_nbytes, mapping_of_tensor, open_files, run_script

from tr_mmap import OutOfSpace, PythonSession, RemoteError

LARGE_NBYTES = 256 << 20
ALLOWED_NBYTES = 1 << 20


@pytest.fixture(scope="module")
def torch_side(torch_session: PythonSession) -> PythonSession:
    return torch_session


def in_framework(array: np.ndarray[Any, Any], framework: str) -> Any:
    return array if framework == "numpy" else torch.from_numpy(array)


def inode(path: Path) -> int:
    return path.stat().st_ino


def digest(tensor: Any) -> str:
    return hashlib.sha256(bits(tensor)).hexdigest()


def results_of(session: PythonSession) -> set[int]:
    return {inode(path) for path in Path(session.session_dir()).glob("result_*.tsr")}


# -- where the bytes are ---------------------------------------------------------------------------------------------


@FRAMEWORKS
@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_received_tensor_lies_in_the_mapping_of_its_segment(
    request: pytest.FixtureRequest, framework: str, channel: str
) -> None:
    session: PythonSession = request.getfixturevalue(f"shared_{channel}")
    result = session.calculate("echo", in_framework(np.arange(100_000.0), framework))
    mapping = mapping_of_tensor(result)
    assert mapping.inode in results_of(session)
    assert os.path.basename(mapping.path).startswith("result_")
    # Shared and read-only, or copy-on-write: never both shared and writable.
    assert mapping.permissions == ("r--s" if framework == "numpy" else "rw-p")


def test_several_results_lie_each_in_its_own_segment(mapped: PythonSession) -> None:
    results = mapped.calculate("echo", np.zeros(5000), np.ones(5000))
    inodes = {mapping_of_tensor(each).inode for each in results}
    assert len(inodes) == 2
    assert inodes <= results_of(mapped)


@pytest.mark.parametrize("worker", ["mapped", "torch_side"])
def test_the_worker_sees_the_tensor_in_the_segment_that_the_controller_filled(
    request: pytest.FixtureRequest, worker: str
) -> None:
    session: PythonSession = request.getfixturevalue(worker)
    session.send_tensor(np.arange(100_000.0), "here")
    mapping = Mapping(**json.loads(session.fetch_response("where here")))
    assert mapping.inode == inode(Path(session.session_dir()) / "here.tsr")
    assert mapping.permissions == ("r--s" if worker == "mapped" else "rw-p")


def test_a_loan_is_received_where_it_was_filled(mapped: PythonSession) -> None:
    loan = mapped.empty(100_000, "float64")
    loan[...] = 1
    filled = mapping_of_tensor(loan)
    mapped.send_tensor(loan, "loan")
    seen = Mapping(**json.loads(mapped.fetch_response("where loan")))
    assert seen.inode == filled.inode == inode(Path(mapped.session_dir()) / "loan.tsr")
    mapped.drop_tensor("loan")


# -- what it costs ---------------------------------------------------------------------------------------------------


@FRAMEWORKS
def test_receiving_256_mib_takes_no_memory_of_the_controllers_own(mapped: PythonSession, framework: str) -> None:
    for count in (1000, LARGE_NBYTES):  # the first one only warms up
        if framework == "numpy":
            mapped.send_request(f"loan {count} 3")
        gc.collect()
        before = anonymous_nbytes()
        result = mapped.wait_for_tensor() if framework == "numpy" else _torch_loan(mapped, count)
        assert int(result.max()) == 3
        grown = anonymous_nbytes() - before
    assert len(result) == LARGE_NBYTES
    assert grown <= ALLOWED_NBYTES


def _torch_loan(session: PythonSession, count: int) -> Any:
    """A result as torch: calculate answers in the framework of its first tensor."""
    return session.calculate(f"loan_like {count} 3", torch.zeros(1))


@pytest.mark.parametrize("worker", ["mapped", "torch_side"])
def test_receiving_256_mib_takes_no_memory_of_the_workers_own(request: pytest.FixtureRequest, worker: str) -> None:
    session: PythonSession = request.getfixturevalue(worker)
    for count in (1000, LARGE_NBYTES):  # the first one only warms up
        loan = session.empty(count, "uint8", "numpy")
        loan[...] = 4
        session.send_tensor(loan, "large")
        before = int(session.fetch_response("anonymous")) if worker == "mapped" else None
        largest, grown = json.loads(session.fetch_response("read_all large"))
        assert largest == 4
    assert grown <= ALLOWED_NBYTES
    if before is not None:
        assert int(session.fetch_response("anonymous")) - before <= ALLOWED_NBYTES
    session.drop_tensor("large")


def test_a_loan_of_256_mib_crosses_both_ways_without_memory_of_anyones_own(mapped: PythonSession) -> None:
    before = anonymous_nbytes()
    loan = mapped.empty(LARGE_NBYTES, "uint8")
    loan[...] = 5
    mapped.send_tensor(loan, "large")
    assert mapped.fetch_response("total large") == str(5 * LARGE_NBYTES)
    del loan
    mapped.drop_tensor("large")
    assert anonymous_nbytes() - before <= ALLOWED_NBYTES


def test_a_thousand_live_results_cost_no_descriptors_and_stay_right(mapped: PythonSession) -> None:
    mapped.calculate("echo", np.zeros(1000))
    before = open_files(), int(mapped.fetch_response("fds"))
    results = []
    for number in range(1000):
        tensor = np.random.default_rng(number).random(500)
        results.append(mapped.calculate("echo", in_framework(tensor, "torch" if number % 10 == 0 else "numpy")))
    assert (open_files(), int(mapped.fetch_response("fds"))) == before
    for number, result in enumerate(results):
        assert bits(result) == bits(np.random.default_rng(number).random(500))


# -- nobody writes into the other's memory ---------------------------------------------------------------------------


def refuses_writes(array: np.ndarray[Any, Any]) -> None:
    attempts: list[Callable[[], Any]] = [
        lambda: array.__setitem__(..., 7),
        lambda: array.setflags(write=True),
        lambda: array.fill(7),
        lambda: np.add(array, 1, out=array),
        lambda: array.sort(),
        lambda: array.reshape(-1)[:2].__setitem__(0, 7),
        lambda: array.view(np.uint8).setflags(write=True),
        lambda: memoryview(array).cast("B").__setitem__(0, 7),
        lambda: np.copyto(array, 7),
    ]
    for attempt in attempts:
        with pytest.raises((ValueError, TypeError)):
            attempt()
    base = array.base
    while isinstance(base, np.ndarray):
        with pytest.raises(ValueError, match="WRITEABLE"):
            base.setflags(write=True)
        base = base.base


def test_a_received_numpy_view_refuses_writes(session: PythonSession) -> None:
    array = np.arange(1000.0)
    result = session.calculate("echo", array)
    refuses_writes(result)
    assert bits(result) == bits(array)
    refuses_writes(session.calculate("echo", np.arange(12.0).reshape(3, 4)))


def test_the_workers_numpy_view_refuses_writes(mapped: PythonSession) -> None:
    array = np.arange(1000.0)
    mapped.send_tensor(array, "mine")
    assert json.loads(mapped.fetch_response("write mine")) == [True] * 4
    assert bits(mapped.fetch_tensor("echo mine")) == bits(array)


def test_an_empty_view_refuses_writes_like_any_other(mapped: PythonSession) -> None:
    assert not mapped.calculate("echo", np.empty((0, 3))).flags.writeable


def test_writing_to_a_received_torch_tensor_changes_nothing_elsewhere(mapped: PythonSession) -> None:
    array = np.arange(10_000.0)
    mapped.send_tensor(array, "sent")
    mapped.fetch_response("keep sent kept")
    first = mapped.calculate("echo", torch.from_numpy(array))
    other = mapped.calculate("echo", torch.from_numpy(array))
    as_numpy = mapped.fetch_tensor("echo sent")
    mapping = mapping_of_tensor(first)
    first.fill_(-1)
    assert torch.equal(first, torch.full((10_000,), -1.0, dtype=torch.float64))
    assert bits(other) == bits(array)
    assert bits(as_numpy) == bits(array)
    on_disk = np.fromfile(mapping.path, np.uint8)
    assert bits(array) in on_disk.tobytes()
    assert bits(mapped.fetch_tensor("kept kept")) == bits(array)
    assert bits(mapped.fetch_tensor("echo sent")) == bits(array)
    del first, other  # their segments go round again, and nothing of what was written may be seen
    for number in range(10):
        assert bits(mapped.calculate("echo", torch.from_numpy(array + number))) == bits(array + number)
    mapped.fetch_response("forget kept")


def test_the_worker_writing_to_a_received_torch_tensor_changes_nothing_elsewhere(torch_side: PythonSession) -> None:
    array = np.ones(10_000)
    loan = torch_side.empty(10_000, "float64", "numpy")
    loan[...] = 1
    torch_side.send_tensor(array, "sent")
    torch_side.send_tensor(loan, "lent")
    for tag in ("sent", "lent"):
        assert torch_side.fetch_response(f"scribble {tag}") == "90000.0"
        assert torch_side.fetch_response(f"sum {tag}") == "10000.0"
        assert bits(torch_side.fetch_tensor(f"echo {tag}")) == bits(array)
    assert bits(loan) == bits(array)
    for number in range(10):
        assert bits(torch_side.calculate("echo", array + number)) == bits(array + number)


# -- views stay right ------------------------------------------------------------------------------------------------


@FRAMEWORKS
def test_a_view_stays_right_while_its_tag_is_published_a_thousand_times_more_and_after_the_session(
    framework: str,
) -> None:
    first = np.random.default_rng(1).random(3000)
    with PythonSession(TOOLS, quiet_mode=True) as session:
        session.send_tensor(first, "x")
        session.fetch_response("keep x first")  # the worker's view
        result = session.calculate("echo x", in_framework(first, framework))[1]  # and ours
        part = result[100:200]
        for number in range(1000):
            session.send_tensor(np.full(3000, float(number)), "x")
            newest = session.fetch_tensor("echo x")
            assert newest[0] == newest[-1] == number
        assert bits(result) == bits(first)
        assert bits(session.fetch_tensor("kept first")) == bits(first)
        for number in range(1000):  # also when nobody asks in between
            session.send_tensor(np.full(3000, float(number)), "x")
        assert bits(session.fetch_tensor("kept first")) == bits(first)
        directory = session.session_dir()
    assert not os.path.exists(directory)
    assert bits(result) == bits(first)
    del result
    gc.collect()
    assert bits(part) == bits(first[100:200])


def test_views_stay_right_after_the_worker_was_killed_and_another_one_works(own: PythonSession) -> None:
    arrays = [np.random.default_rng(seed).random(2000) for seed in range(20)]
    results = [own.calculate("echo", each) for each in arrays]
    own.terminate()
    own.start()
    assert own.wait_until_ready()
    for number in range(100):
        assert own.calculate("echo", np.full(2000, float(number)))[0] == number
    for array, result in zip(arrays, results, strict=True):
        assert bits(array) == bits(result)


def test_views_made_of_views_hold_their_segment(mapped: PythonSession) -> None:
    array = np.arange(4096.0)
    parts = [
        mapped.calculate("echo", array)[10:20],
        mapped.calculate("echo", array).reshape(64, 64).T[3],
        mapped.calculate("echo", array).view(np.uint8)[:64],
        memoryview(mapped.calculate("echo", array))[5:9],
        torch.as_tensor(np.asarray(mapped.calculate("echo", torch.from_numpy(array)))),
        mapped.calculate("echo", torch.from_numpy(array))[10:20],
        mapped.calculate("echo", torch.from_numpy(array)).numpy()[10:20],
        iter(mapped.calculate("echo", array)),
    ]
    for number in range(200):
        mapped.calculate("echo", np.full(4096, float(number)))
    assert bits(parts[0]) == bits(array[10:20])
    assert bits(parts[1]) == bits(array.reshape(64, 64).T[3])
    assert bits(parts[2]) == array.tobytes()[:64]
    assert parts[3].tobytes() == array[5:9].tobytes()
    assert bits(parts[4]) == bits(array)
    assert bits(parts[5]) == bits(array[10:20])
    assert bits(parts[6]) == bits(array[10:20])
    assert list(parts[7]) == list(array)


def test_views_may_be_let_go_of_in_any_thread_and_by_the_garbage_collector(mapped: PythonSession) -> None:
    before = len(results_of(mapped))
    for number in range(300):
        cycle: list[Any] = [mapped.calculate("echo", np.full(1000, number))]
        cycle.append(cycle)
        assert cycle[0][-1] == number
        del cycle
    gc.collect()
    for number in range(10):
        mapped.calculate("echo", np.full(1000, number))
    assert len(results_of(mapped)) <= before + 300


@pytest.mark.parametrize("mode", ["numpy", "torch"])
def test_a_view_is_right_on_both_sides_of_a_fork_and_the_childs_end_harms_nothing(mode: str) -> None:
    ended = run_script(WORKERS / "forking_controller.py", mode)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.split() == ["child", "right", "parent", "right"]


# -- loans -----------------------------------------------------------------------------------------------------------


@FRAMEWORKS
def test_sending_a_loan_copies_nothing(mapped: PythonSession, framework: str) -> None:
    loan = mapped.empty((300, 400), "float32", framework)
    assert isinstance(loan, np.ndarray if framework == "numpy" else torch.Tensor)
    assert tuple(loan.shape) == (300, 400)
    loan[...] = 1.5
    before = mapped.stats()
    mapped.send_tensor(loan, "loan")
    assert mapped.stats().copied_nbytes == before.copied_nbytes
    assert mapped.stats().published == before.published + 1
    assert mapped.fetch_response("digest loan") == digest(loan)
    if framework == "numpy":  # what a torch loan is from now on may differ, so sending it again copies it
        assert bits(mapped.calculate("echo", loan)) == bits(loan)
        assert mapped.stats().copied_nbytes == before.copied_nbytes


@FRAMEWORKS
@pytest.mark.parametrize("how", ["whole", "reshaped", "retyped", "part"])
def test_sending_a_view_of_a_loan_copies_nothing(mapped: PythonSession, framework: str, how: str) -> None:
    loan = mapped.empty(65536, "float32", framework)
    loan[...] = in_framework(np.arange(65536, dtype=np.float32), framework)
    if how == "retyped":
        view = loan.view(np.int32 if framework == "numpy" else torch.int32)
    else:
        view = {"whole": loan[:], "reshaped": loan.reshape(256, 256), "part": loan[16384:49152]}[how]
    wanted = bits(view)
    before = mapped.stats().copied_nbytes
    mapped.send_tensor(view, "view")
    assert mapped.stats().copied_nbytes == before
    del loan
    assert bits(mapped.fetch_tensor("echo view")) == wanted


@FRAMEWORKS
def test_a_view_of_a_loan_that_cannot_be_sent_where_it_lies_is_copied(mapped: PythonSession, framework: str) -> None:
    loan = mapped.empty((64, 64), "float32", framework)
    loan[...] = in_framework(np.arange(4096, dtype=np.float32).reshape(64, 64), framework)
    for view in (loan.T, loan[::2], loan[:, 3], loan.reshape(-1)[1:100]):
        mapped.send_tensor(view, "view")
        assert bits(mapped.fetch_tensor("echo view")) == bits(view)
    loan[...] = 7  # not sent as such yet, so it can still be filled
    mapped.send_tensor(loan, "loan")
    assert set(mapped.fetch_tensor("echo loan").reshape(-1)) == {7.0}


def test_a_numpy_loan_is_read_only_once_it_is_sent(mapped: PythonSession) -> None:
    loan = mapped.empty(1000, "float64")
    assert loan.flags.writeable
    loan[...] = 1
    mapped.send_tensor(loan, "loan")
    assert not loan.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        loan[0] = 2
    assert bits(mapped.fetch_tensor("echo loan")) == bits(np.ones(1000))


def test_a_store_into_a_torch_loan_after_sending_stays_here(mapped: PythonSession) -> None:
    loan = mapped.empty(10_000, "float64", "torch")
    loan.fill_(1)
    mapped.send_tensor(loan, "loan")
    mapped.fetch_response("keep loan store")
    loan.fill_(2)
    assert torch.equal(loan, torch.full((10_000,), 2.0, dtype=torch.float64))
    assert bits(mapped.fetch_tensor("echo loan")) == bits(np.ones(10_000))
    assert bits(mapped.fetch_tensor("kept store")) == bits(np.ones(10_000))
    mapped.fetch_response("forget store")


@FRAMEWORKS
@pytest.mark.parametrize("sent", ["loan", "view"])
def test_no_view_of_a_loan_made_before_it_was_sent_can_change_what_the_worker_sees(
    mapped: PythonSession, framework: str, sent: str
) -> None:
    loan = mapped.empty(10_000, "float64", framework)
    loan[...] = 1
    view = loan[10:20]
    whole = loan[:]
    mapped.send_tensor(loan if sent == "loan" else whole, "loan")
    for each in (view, loan, whole):
        try:
            each[...] = 2
        except ValueError:
            pass
    seen = mapped.fetch_tensor("echo loan")
    assert bits(seen) == bits(np.ones(10_000))


@FRAMEWORKS
def test_a_loan_may_be_sent_twice_and_under_two_tags(mapped: PythonSession, framework: str) -> None:
    loan = mapped.empty(10_000, "float64", framework)
    loan[...] = 3
    before = mapped.stats().copied_nbytes
    mapped.send_tensor(loan, "one")
    mapped.send_tensor(loan, "two")
    mapped.send_tensor(loan, "one")
    for tag in ("one", "two", "one"):
        assert bits(mapped.fetch_tensor(f"echo {tag}")) == bits(np.full(10_000, 3.0))
    assert bits(mapped.calculate("echo", loan)) == bits(np.full(10_000, 3.0))
    if framework == "numpy":
        assert mapped.stats().copied_nbytes == before
    mapped.drop_tensor("one")
    assert bits(mapped.fetch_tensor("echo two")) == bits(np.full(10_000, 3.0))


@FRAMEWORKS
def test_a_changed_torch_loan_sent_again_is_what_it_is_now(mapped: PythonSession, framework: str) -> None:
    loan = mapped.empty(10_000, "float64", framework)
    loan[...] = 1
    mapped.send_tensor(loan, "first")
    if framework == "torch":
        loan.fill_(2)
    mapped.send_tensor(loan, "second")
    assert bits(mapped.fetch_tensor("echo first")) == bits(np.ones(10_000))
    assert bits(mapped.fetch_tensor("echo second")) == bits(loan)


@FRAMEWORKS
def test_a_loan_never_sent_gives_its_memory_back(mapped: PythonSession, framework: str) -> None:
    mapped.send_tensor(np.zeros(1), "tick")
    created = mapped.stats().created
    for _ in range(50):
        loan = mapped.empty(1 << 16, "uint8", framework)
        del loan
    assert mapped.stats().created <= created + 2


@FRAMEWORKS
def test_loans_go_round_in_the_steady_state(mapped: PythonSession, framework: str) -> None:
    created = mapped.stats().created
    for number in range(300):
        frame = mapped.empty(5000, "int32", framework)
        frame[...] = number
        mapped.send_tensor(frame, "frame")
        del frame
        assert mapped.fetch_response("total frame") == str(number * 5000)
    assert mapped.stats().created <= created + 4


@FRAMEWORKS
def test_a_held_loan_is_not_lent_again(mapped: PythonSession, framework: str) -> None:
    held = []
    for number in range(30):
        loan = mapped.empty(1000, "int64", framework)
        loan[...] = number
        mapped.send_tensor(loan, "loan")
        held.append(loan)
    for number, loan in enumerate(held):
        assert set(loan.tolist()) == {number}


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "bool", "complex128", "uint64", np.float16, "torch"])
def test_a_loan_may_be_of_any_dtype(mapped: PythonSession, dtype: Any) -> None:
    loan = mapped.empty((3, 5), torch.bfloat16 if dtype == "torch" else dtype, "torch")
    loan.zero_()
    assert bits(mapped.calculate("echo", loan)) == bytes(15 * loan.element_size())


@pytest.mark.parametrize("shape", [(), 0, (0, 3), 7, (1,) * 16])
def test_a_loan_may_be_of_any_shape(mapped: PythonSession, shape: Any) -> None:
    for framework in ("numpy", "torch"):
        loan = mapped.empty(shape, "int32", framework)
        loan[...] = 5
        answer = mapped.calculate("echo", loan)
        assert tuple(answer.shape) == (shape if isinstance(shape, tuple) else (shape,))
        assert bits(answer) == bits(loan)


def test_a_workers_loan_is_not_changed_after_it_was_sent(mapped: PythonSession, torch_side: PythonSession) -> None:
    answer = mapped.fetch_tensor("loan_and_spoil 1000")
    assert set(answer) == {1}
    assert mapped.fetch_response("loan_and_spoil 1000") == "refused"
    assert set(torch_side.fetch_tensor("loan 1000")) == {5}


def test_a_loan_given_back_to_another_session_is_copied(mapped: PythonSession, torch_side: PythonSession) -> None:
    loan = mapped.empty(1000, "float32")
    loan[...] = 4
    assert bits(torch_side.calculate("echo", loan)) == bits(loan)
    loan[...] = 5  # still ours to fill
    assert bits(mapped.calculate("echo", loan)) == bits(np.full(1000, 5, np.float32))


def test_a_budget_is_kept_and_says_what_to_do() -> None:
    with PythonSession(TOOLS, quiet_mode=True, budget_nbytes=4 << 20) as session:
        held = np.ones(1 << 20, np.uint8)
        for number in range(4):
            session.send_tensor(held, f"tag{number}")
        with pytest.raises(OutOfSpace) as caught:
            session.send_tensor(held, "tag4")
        assert caught.value.needed_nbytes >= 1 << 20
        for number in range(4):
            assert session.fetch_response(f"total tag{number}") == str(1 << 20)
        with pytest.raises(RemoteError):
            session.fetch_response("total tag4")
        session.drop_tensor("tag0")
        session.send_tensor(held * 2, "again")
        assert session.fetch_response("total again") == str(2 << 20)
