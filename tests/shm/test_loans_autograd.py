"""Loans that autograd or inference mode watches: sent like any other, and not the borrower's to change afterwards."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_sides import Sides, lend

from tr_mmap import PythonSession
from tr_mmap.native import drain
from tr_mmap.shm import segment as segment_module

COUNT = 20_480  # a small loan would be copied
VALUES = list(range(COUNT))


class Marked(torch.Tensor):
    """A subclass without a method of its own."""


def plain(sides: Sides) -> torch.Tensor:
    return lend(sides, COUNT, "torch")


def requires_grad(sides: Sides) -> torch.Tensor:
    return plain(sides).requires_grad_()


def parameter(sides: Sides) -> torch.Tensor:
    return torch.nn.Parameter(plain(sides))


def frozen_parameter(sides: Sides) -> torch.Tensor:
    return torch.nn.Parameter(plain(sides), requires_grad=False)


def no_leaf(sides: Sides) -> torch.Tensor:
    """Filled in place from something that requires grad, so that autograd made it a result."""
    loan = plain(sides)
    return loan.mul_(torch.ones(COUNT, requires_grad=True))


def inference(sides: Sides) -> torch.Tensor:
    with torch.inference_mode():
        return plain(sides)


def subclass(sides: Sides) -> torch.Tensor:
    return plain(sides).as_subclass(Marked)


def after_backward(sides: Sides) -> torch.Tensor:
    loan = requires_grad(sides)
    (loan * 2).sum().backward()
    return loan


def detached(sides: Sides) -> torch.Tensor:
    return requires_grad(sides).detach()


KINDS = [plain, requires_grad, parameter, frozen_parameter, no_leaf, inference, subclass, after_backward, detached]
MODES = [nullcontext, torch.no_grad, torch.inference_mode, torch.enable_grad]


def fill(tensor: torch.Tensor, value: float) -> None:
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        tensor.fill_(value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", [0, 64])
def test_a_loan_that_torch_watches_is_published_where_it_lies_and_then_belongs_to_its_reader(
    sides: Sides, kind: Callable[[Sides], Any], mode: Callable[[], AbstractContextManager[Any]], start: int
) -> None:
    loan = kind(sides)
    with mode():
        part = loan[start:] if start else loan
        first = sides.pool.publish(part)
    assert sides.pool.stats().copied_nbytes == 0
    view = sides.look(first)
    assert view.tolist() == VALUES[start:]
    fill(loan, 7)
    fill(part, 8)
    assert view.tolist() == VALUES[start:]
    with mode():
        again = sides.pool.publish(part)
    assert sides.look(again).tolist() == [8] * (COUNT - start)
    assert view.tolist() == VALUES[start:]
    first.release()
    again.release()


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_of_a_loan_that_torch_watched_is_used_again(sides: Sides, kind: Callable[[Sides], Any]) -> None:
    loan = kind(sides)
    sides.pool.publish(loan).release()
    fill(loan, 7)
    del loan
    drain()
    for number in (1, 2):
        segment = sides.pool.publish(torch.full((COUNT,), float(number)))
        assert sides.look(segment).tolist() == [number] * COUNT
        segment.release()
        drain()
    assert sides.pool.stats().created == 1


@pytest.mark.parametrize("kind", [plain, requires_grad, parameter])
def test_sending_a_loan_is_no_change_to_autograd(sides: Sides, kind: Callable[[Sides], Any]) -> None:
    loan = kind(sides)
    weight = torch.full((COUNT,), 2.0, requires_grad=True)
    loss = (loan * weight).sum()  # autograd saved the loan, for the gradient of the weight
    version = loan._version
    first = sides.pool.publish(loan)
    assert loan._version == version
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == VALUES
    if loan.requires_grad:
        assert loan.grad is not None
        assert loan.grad.tolist() == [2.0] * COUNT
    first.release()


def test_an_optimizer_goes_on_with_a_parameter_that_was_sent(sides: Sides) -> None:
    weights = parameter(sides)
    optimizer = torch.optim.SGD([weights], lr=1.0)
    sent = []
    for _ in range(3):
        sent.append(sides.look(sides.pool.publish(weights)).tolist())
        optimizer.zero_grad()
        weights.sum().backward()
        optimizer.step()
    assert sent == [[value - step for value in VALUES] for step in range(3)]


OTHERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "numpy": lambda loan: loan.numpy(),
    "storage": lambda loan: torch.tensor([]).set_(loan.untyped_storage(), 0, loan.shape),
    "dlpack": torch.from_dlpack,
    "numpy's dlpack": np.from_dlpack,
    "data": lambda loan: loan.data,
    "detached": lambda loan: loan.detach(),
    "strided": lambda loan: loan.as_strided((COUNT // 2,), (2,)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_whatever_shares_a_sent_loans_memory_stores_into_the_borrowers_own(
    sides: Sides, other: Callable[[torch.Tensor], Any]
) -> None:
    for _ in range(3):  # the slow path, then the fast one
        loan = plain(sides)
        same_memory = other(loan)
        segment = sides.pool.publish(loan)
        same_memory[0] = 7
        assert (float(loan[0]), float(same_memory[0])) == (7, 7)
        assert sides.look(segment).tolist() == VALUES
        segment.release()
        del loan, same_memory


def test_where_no_twin_can_be_had_the_pages_of_a_loan_become_private(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(segment_module, "make_twin", refuse)
    for kind in (inference, requires_grad, parameter):
        loan = kind(sides)
        segment = sides.pool.publish(loan)
        fill(loan, 7)
        assert sides.look(segment).tolist() == VALUES
        segment.release()


WORKER = """
import torch
from tr_mmap import Server

server = Server(framework="torch")


def filled():
    loan = server.empty((256, 80))
    return loan.copy_(torch.arange(20480.0).reshape(256, 80))


@server.command("inference")
@torch.inference_mode()
def inference(x):
    return torch.mul(x, 1, out=server.empty(tuple(x.shape), x.dtype))


@server.command("inside")
def inside(x):
    with torch.inference_mode():
        return filled() if x.sum() else None


@server.command("parameter")
def parameter(x):
    return torch.nn.Parameter(filled())


@server.command("part")
def part(x):
    with torch.inference_mode():
        return filled()[64:]


@server.command("grad")
def grad(x):
    loan = filled().requires_grad_()
    (loan * 2).sum().backward()
    return loan, loan.grad


server.run()
"""


def test_a_worker_answers_with_loans_that_torch_watches(workspace: Path, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    values = torch.arange(20480.0).reshape(256, 80)
    with PythonSession(str(script), "watched", True, framework="torch") as session:
        for command in ("inference", "inside", "parameter"):
            assert torch.equal(session.calculate(command, values), values), command
        assert torch.equal(session.calculate("part", values), values[64:])
        loan, gradient = session.calculate("grad", values)
        assert torch.equal(loan, values)
        assert gradient.unique().tolist() == [2.0]
        weights = torch.nn.Parameter(session.empty((256, 80)))
        fill(weights, 3)
        session.send_tensor(weights, "weights")
        fill(weights, 4)
        assert session.fetch_tensor("inference weights").unique().tolist() == [3.0]
