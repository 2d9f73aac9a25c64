"""What ``get_tensors(…, 1)`` gives to a program of the original: a tensor, and a list of one."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import BOUND_S, script

from tr_mmap import PythonSession, RemoteError
from tr_mmap.compat.one_tensor import OneTensor, one_tensor

X = torch.arange(12, dtype=torch.float32).reshape(3, 4)


@pytest.fixture
def one() -> OneTensor:
    return one_tensor(X.clone())


def is_plain(value: Any) -> bool:
    return type(value) is torch.Tensor


# -- a list of one ---------------------------------------------------------------------------------------------------


def test_it_unpacks_and_is_indexed_and_counted_as_a_list_of_one(one: OneTensor) -> None:
    (unpacked,) = one
    found = [one[0], unpacked, *one, *list(one), *tuple(one), *(each for each in one), *reversed(one)]
    assert len(found) == 7
    for each in found:
        assert is_plain(each)
        assert each.data_ptr() == one.data_ptr()
        assert torch.equal(each, X)
    assert len(one) == 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_it_is_true_as_a_list_of_one_is_whatever_is_in_it(value: float) -> None:
    assert one_tensor(torch.full((2,), value))
    assert one_tensor(torch.tensor(value))


def test_a_change_in_place_by_its_index_is_one_of_the_tensor(one: OneTensor) -> None:
    one[0] += 1
    one[0].mul_(2)
    assert torch.equal(one.plain(), (X + 1) * 2)


@pytest.mark.parametrize(
    "act",
    [
        lambda one: one[1],
        lambda one: one[-1],
        lambda one: [one[i] for i in range(one.shape[0])],
        lambda one: one.__setitem__(0, 5),
        lambda one: one.__setitem__(0, torch.zeros(4)),
        lambda one: one.__setitem__(2, 5),
    ],
)
def test_what_may_mean_a_row_or_an_element_is_an_error_that_names_the_switch(
    one: OneTensor, act: Callable[[Any], Any]
) -> None:
    with pytest.raises(IndexError, match="one_tensor = 'tensor' or 'list'"):
        act(one)
    assert torch.equal(one.plain(), X)


# -- a tensor --------------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": torch.relu,
    "times": lambda t: t * 2,
    "reversed times": lambda t: 2 * t,
    "sum": lambda t: t.sum(),
    "matmul": lambda t: t @ t.T,
    "mm": lambda t: torch.mm(t, t.t()),
    "view": lambda t: t.view(-1),
    "reshape to the same": lambda t: t.reshape(3, 4),
    "to the same": lambda t: t.to("cpu"),
    "float": lambda t: t.float(),
    "contiguous": lambda t: t.contiguous(),
    "clone": lambda t: t.clone(),
    "detach": lambda t: t.detach(),
    "compare": lambda t: t > 3,
    "slice": lambda t: t[1:],
    "slice of all": lambda t: t[:],
    "column": lambda t: t[:, 0],
    "element": lambda t: t[1, 2],
    "mask": lambda t: t[t > 3],
    "ellipsis": lambda t: t[..., None],
    "indices": lambda t: t[torch.tensor([0, 2])],
    "softmax": lambda t: torch.nn.functional.softmax(t, dim=1),
    "stack": lambda t: torch.stack([t, t]),
    "cat": lambda t: torch.cat([t, t]),
    "einsum": lambda t: torch.einsum("ij,kj->ik", t, t),
    "split": lambda t: t.split(1)[2],
    "unbind": lambda t: t.unbind()[1],
    "std": lambda t: t.std(),
    "svd": lambda t: torch.linalg.svdvals(t),
    "flatten": lambda t: t.view(-1).flatten(),
    "flatten of one dimension": lambda t: t[0:1, 0].flatten(),
    "positive": lambda t: +t,
    "nothing dropped": lambda t: torch.nn.functional.dropout(t, training=False),
    "at least two dimensions": torch.atleast_2d,
    "broadcast": lambda t: torch.broadcast_tensors(t, t)[1],
    "layer": lambda t: torch.nn.functional.linear(t, torch.ones(2, 4)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_computed_of_it_is_a_plain_tensor_and_the_same(one: OneTensor, name: str) -> None:
    found = OPERATIONS[name](one)
    assert is_plain(found)
    assert torch.equal(found, OPERATIONS[name](X))


def test_it_is_a_tensor_to_whoever_looks(one: OneTensor) -> None:
    assert isinstance(one, torch.Tensor)
    assert one.shape == X.shape
    assert one.tolist() == X.tolist()
    assert repr(one) == repr(X)
    assert str(one) == str(X)
    assert f"{one_tensor(torch.tensor(2.5)):.2f}" == "2.50"
    assert float(one_tensor(torch.tensor(2.5))) == 2.5
    assert np.array_equal(np.asarray(one), X.numpy())
    assert one.numpy().ctypes.data == one.data_ptr()
    assert 3.0 in one


def test_a_store_reaches_the_memory_that_it_shares() -> None:
    base = X.clone()
    one = one_tensor(base)
    one.add_(1)
    one[1:, 0] = 0
    one[one > 10] = 9
    expected = X + 1
    expected[1:, 0] = 0
    expected[expected > 10] = 9
    assert torch.equal(base, expected)


def test_autograd_goes_through_it() -> None:
    one = one_tensor(torch.ones(3))
    one.requires_grad_()
    (one * one).sum().backward()
    assert one.grad is not None
    assert one.grad.tolist() == [2, 2, 2]
    weight = torch.ones(3, requires_grad=True)
    (one_tensor(torch.full((3,), 4.0)) * weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [4, 4, 4]
    assert torch.autograd.grad(one[0].sum(), one)[0].tolist() == [1, 1, 1]


def test_it_is_pickled_and_copied_as_a_plain_tensor(one: OneTensor) -> None:
    stream = io.BytesIO()
    torch.save(one, stream)
    stream.seek(0)
    for found in (pickle.loads(pickle.dumps(one)), torch.load(stream), copy.deepcopy(one), copy.copy(one)):
        assert is_plain(found)
        assert torch.equal(found, X)


# -- in a worker -----------------------------------------------------------------------------------------------------

WORKER = """
import sys
from tech_renaissance import TechRenaissanceServer
if FRAMEWORK == "torch":
    import torch

class Worker(TechRenaissanceServer):
    SWITCH

    def main_logic(self, command, parameters):
        if command == "switch":
            type(self).one_tensor = parameters
            self.write_response("", "ok")
            return True
        given = self.get_tensors(parameters, 1)
        if given is None:
            self.write_response("", "invalid")
        elif command == "kind":
            self.write_response("", f"{type(given).__name__} {len(given)}")
        elif command == "relu":
            self.send_tensors(torch.relu(given))
        elif command == "unpack":
            x, = given
            self.send_tensors(x + 1)
        elif command == "index":
            self.send_tensors(given[0])
        elif command == "echo":
            self.send_tensors(given)
        elif command == "spread":
            self.send_tensors(*given)
        elif command == "loan":
            out = self.empty(given.shape)
            torch.mul(given, 2, out=out)
            self.send_tensors(out)
        elif command == "write":
            given.requires_grad_()
            self.write_tsr_file("x", given)
        elif command == "turned":
            given.t_()
            self.send_tensors(given)
        else:
            return False
        return True

Worker(framework=FRAMEWORK).run(sys.argv[1])
"""


def session(tmp_path: Path, switch: str = "pass", framework: str = "torch", channel: str = "mapped") -> PythonSession:
    text = WORKER.replace("SWITCH", switch).replace("FRAMEWORK", repr(framework))
    return PythonSession(script(tmp_path, text), "one", quiet_mode=True, framework="torch", channel=channel)


@pytest.mark.parametrize("channel", ["mapped", "files", "legacy"])
def test_programs_of_both_habits_run_in_one_worker(tmp_path: Path, channel: str) -> None:
    expected = {"relu": X, "unpack": X + 1, "index": X, "echo": X, "spread": X, "loan": X * 2, "turned": X.t()}
    with session(tmp_path, channel=channel) as made:
        made.send_tensor(X, "x")
        assert made.fetch_response("kind x", 1000 * BOUND_S) == "OneTensor 1"  # the worker may still import torch
        for _ in range(3):
            for command, value in expected.items():
                assert torch.equal(made.fetch_tensor(f"{command} x"), value), command
        made.send_request("write x")
        assert torch.equal(made.recv_tensor("x", 30_000), X)
        made.send_tensor(X, "y")
        assert made.fetch_response("kind y y") == "invalid"  # a wrong count, and a missing tag, are None as ever
        assert made.fetch_response("kind nothing") == "invalid"


def test_the_switch_gives_exactly_one_of_the_two_and_another_word_is_an_error_of_the_request(tmp_path: Path) -> None:
    with session(tmp_path, "one_tensor = 'tensor'") as made:
        made.send_tensor(X, "x")
        assert made.fetch_response("kind x") == "Tensor 3"
        assert torch.equal(made.fetch_tensor("index x"), X[0])
        assert made.fetch_response("switch list") == "ok"
        assert made.fetch_response("kind x") == "list 1"
        assert torch.equal(made.fetch_tensor("index x"), X)
        assert made.fetch_response("switch maybe") == "ok"
        with pytest.raises(RemoteError, match="'both', 'tensor' or 'list'"):
            made.fetch_response("kind x")


@pytest.mark.parametrize(("switch", "kind"), [("both", "list 1"), ("list", "list 1"), ("tensor", "ndarray 3")])
def test_of_numpys_arrays_it_is_a_list_unless_the_switch_says_otherwise(tmp_path: Path, switch: str, kind: str) -> None:
    with session(tmp_path, f"one_tensor = {switch!r}", "numpy") as made:
        made.send_tensor(X, "x")
        assert made.fetch_response("kind x") == kind
