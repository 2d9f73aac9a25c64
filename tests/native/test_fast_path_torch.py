"""Torch's tensors by the fast path are what the slow path makes of them, or are left to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fast_path_pair import Pair
from torch.overrides import TorchFunctionMode

from tr_mmap import native
from tr_mmap.native import Pending
from tr_mmap.protocol.status import Status
from tr_mmap.tsr.dtypes import TABLE

pytestmark = pytest.mark.skipif(not native.IS_COMPILED, reason="the fast paths are the extension's")

DTYPES = [getattr(torch, each.torch_name) for each in TABLE if hasattr(torch, each.torch_name or "")]
SMALL, LARGE = 60, 80_000  # elements: a received tensor of one byte each is a copy, or has a mapping of its own


def content(dtype: torch.dtype, count: int, start: int = 0) -> torch.Tensor:
    """Every byte another one, of any dtype; a bool has two."""
    if dtype == torch.bool:
        return torch.arange(start, start + count) % 3 == 0
    numbers = torch.arange(start, start + count * dtype.itemsize, dtype=torch.int64)
    return (numbers % 251).to(torch.uint8).view(dtype)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def echo(pair: Pair, *tensors: Any, framework: str = "torch") -> list[Any]:
    """Send tensors there and back by the fast path alone; it must not leave anything to the slow path."""
    pending = pair.send("echo", tensors, framework)
    assert pending is not None
    words = " ".join(f"${number}" for number in range(len(tensors)))

    def handle(_: Any) -> bool:
        found = pair.worker_path.quick_fetch(words, framework)
        assert found is not None
        return pair.worker_path.quick_send(tuple(found)) is True

    assert pair.serve(handle) is True
    assert not pair.hear()
    received: list[Any] = pending.outcome[1]
    return received


def warm(pair: Pair, *tensors: Any, framework: str = "torch") -> None:
    """Let both sides know these layouts, and let large ones have the mappings that they use again."""
    for _ in range(4):
        pair.pass_by_slow_path(tensors, framework)


@pytest.mark.parametrize("count", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_go_there_and_back_without_the_slow_path(
    pair: Pair, dtype: torch.dtype, count: int
) -> None:
    warm(pair, content(dtype, count))
    for number in range(5):
        tensor = content(dtype, count, number)
        (received,) = echo(pair, tensor)
        assert (received.dtype, received.shape) == (dtype, tensor.shape)
        assert bits(received) == bits(tensor)
        del received  # else the next one needs another segment, which the slow path makes


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_frameworks_name_that_a_program_has_put_together_is_that_of_the_framework(pair: Pair, framework: str) -> None:
    tensor: Any = torch.arange(5.0)
    if framework == "numpy":
        tensor = tensor.numpy()
    warm(pair, tensor, framework=framework)
    own = "".join([framework[:2], framework[2:]])
    assert own is not framework
    (received,) = echo(pair, tensor, framework=own)
    assert received.tolist() == [0, 1, 2, 3, 4]


def test_several_tensors_and_both_frameworks_take_turns(pair: Pair) -> None:
    tensors = content(torch.float32, 8), content(torch.bfloat16, 6000).reshape(50, 120), content(torch.float32, 30_000)
    warm(pair, *tensors)
    arrays = tuple(each.numpy() for each in tensors if each.dtype != torch.bfloat16)
    warm(pair, *arrays, framework="numpy")
    for _ in range(5):
        assert [bits(each) for each in echo(pair, *tensors)] == [bits(each) for each in tensors]
        assert [each.tobytes() for each in echo(pair, *arrays, framework="numpy")] == [
            each.tobytes() for each in arrays
        ]
        mixed = [bits(each) for each in echo(pair, arrays[0], tensors[2])]
        assert mixed == [bits(tensors[0]), bits(tensors[2])]


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_a_store_into_a_received_tensor_reaches_nobody_and_no_later_tensor(pair: Pair, count: int) -> None:
    warm(pair, content(torch.uint8, count))
    for number in range(12):
        sent = content(torch.uint8, count, number)
        (received,) = echo(pair, sent)
        assert torch.equal(received, sent)
        if number % 3:  # else its pages stay those of the file
            received[number % 4 :: 4096] = 255
        del received
        assert torch.equal(sent, content(torch.uint8, count, number))


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_only_a_view_keeps_the_segment_of_a_result(pair: Pair, count: int) -> None:
    warm(pair, content(torch.uint8, count))
    (received,) = echo(pair, content(torch.uint8, count))
    leased = pair.answering._pool.stats().leased
    assert leased == (0 if count == SMALL else 1)
    assert torch.equal(received, content(torch.uint8, count))


@pytest.fixture
def unguarded(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(str(tmp_path), "readonly")
    yield made
    made.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_read_only_tensor_is_the_shared_memory_itself(unguarded: Pair, dtype: torch.dtype) -> None:
    warm(unguarded, content(dtype, LARGE))
    (received,) = echo(unguarded, content(dtype, LARGE))
    assert bits(received) == bits(content(dtype, LARGE))
    assert unguarded.answering._pool.stats().leased == 1
    del received
    assert unguarded.answering._pool.stats().leased == 0


class Marked(torch.Tensor):
    """A subclass without a method of its own."""


def cut_off() -> torch.Tensor:
    tensor = content(torch.float32, 8).clone()
    tensor.untyped_storage().resize_(4)
    return tensor


ODD: dict[str, Callable[[], Any]] = {
    "conjugated": lambda: torch.ones(4, dtype=torch.complex64).conj(),
    "negated": lambda: torch.ones(8, dtype=torch.complex64).conj().imag[:8],
    "cut off": cut_off,
    "sparse": lambda: torch.eye(8).to_sparse(),
    "without memory": lambda: torch.empty(8, device="meta"),
    "strided": lambda: torch.arange(16.0)[::2],
    "expanded": lambda: torch.ones(1).expand(8),
    "of a subclass": lambda: torch.arange(8.0).as_subclass(Marked),
    "a parameter": lambda: torch.nn.Parameter(torch.arange(8.0)),
    "of a dtype of its own": lambda: torch.zeros(8, dtype=torch.uint8).view(torch.bits8),
    "of another layout": lambda: torch.ones(2, 2, 2),
    "a list": lambda: [1.0] * 8,
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_plain_tensor_is_left_to_the_slow_path(pair: Pair, kind: str) -> None:
    warm(pair, content(torch.float32, 8))
    warm(pair, torch.ones(8, dtype=torch.complex64))
    before = pair.asking.stats().copied_nbytes
    assert pair.send("echo", (ODD[kind](),), "torch") is None
    assert pair.send("echo", (content(torch.float32, 8), ODD[kind]()), "torch") is None
    assert pair.worker_path.quick_send(ODD[kind]()) is None
    assert pair.answering.results == []
    assert pair.asking.stats().copied_nbytes == before


def test_a_tensor_that_autograd_watches_crosses_as_its_values(pair: Pair) -> None:
    tensor = content(torch.float32, 8).requires_grad_()
    warm(pair, tensor)
    loss = (tensor * tensor).sum()
    (received,) = echo(pair, tensor)
    assert bits(received) == bits(tensor.detach())
    assert not received.requires_grad
    loss.backward()
    with torch.inference_mode():
        (received,) = echo(pair, content(torch.float32, 8))
        assert bits(received) == bits(content(torch.float32, 8))


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_no_mode_of_the_thread_that_takes_an_answer_makes_its_tensors_inference_tensors(pair: Pair, count: int) -> None:
    warm(pair, content(torch.float32, count))
    with torch.inference_mode():
        (received,) = echo(pair, content(torch.float32, count))
        assert not received.is_inference()
        del received
        pair.answering.publish([content(torch.float32, count)])
        (ref,) = pair.answering.results
        assert not pair.asking.receive(ref, "torch").is_inference()
        pair.answering.withdraw()


class Meanwhile(TorchFunctionMode):
    """Starts a thread at the first call of torch, and goes on when it is in the middle of its copy, or has ended."""

    def __init__(self, thread: threading.Thread, held: list[Any]) -> None:
        super().__init__()
        self._thread, self._held = thread, held

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._thread.ident is None:
            self._thread.start()
            while self._thread.is_alive() and not self._held:
                pass
        return function(*args, **(kwargs or {}))


def test_a_request_whose_tensors_torch_makes_ready_takes_nothing_from_another_threads(pair: Pair) -> None:
    large = np.zeros(8 << 20)
    tensor = content(torch.float32, 8).requires_grad_()
    warm(pair, tensor)
    warm(pair, large, framework="numpy")
    sent: list[Any] = []
    other = threading.Thread(target=lambda: sent.append(pair.send("other", (large + 1,))))
    with Meanwhile(other, pair.asking._fast_held):
        pair.controller_path.send(Pending("echo", "torch"), (tensor,))
    other.join()
    assert sent[0] is not None  # nobody has released its segment in the middle of the copy
    assert [each.holds for each in sent[0].held] == [1]
    assert pair.asking._fast_held == []


@pytest.mark.parametrize("dtype", ["float32", torch.bfloat16])
@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_a_store_into_a_loan_that_was_sent_stays_here(pair: Pair, dtype: Any, count: int) -> None:
    for number in range(6):
        loan = pair.asking.empty((count,), dtype, "torch")
        loan.fill_(number)
        sent = bits(loan)
        pending = pair.send("echo", (loan,), "torch")
        before = pair.asking.stats().copied_nbytes
        if pending is None:  # a large one always: it has to become copy-on-write
            pending = pair.send_slowly("echo", (loan,))
            assert pair.asking.stats().copied_nbytes == before + (0 if count == LARGE else loan.nbytes)
        request = pair.listen()
        assert request is not None
        loan.fill_(9)
        assert bits(pair.answering.fetch("$0", "torch")) == sent
        assert torch.equal(loan, torch.full_like(loan, 9))
        pair.answering.end(request, False)
        pair.worker.write_status(Status.READY)
        pair.forget()
