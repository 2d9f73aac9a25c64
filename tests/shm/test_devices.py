"""A tensor of another device crosses in CPU memory, and its header tells the device. Others have no such header."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lazy_device import DEVICE, on_device
from segment_sides import Sides
from strategies import bits
from support import FRAMEWORKS

from tr_mmap import UnsupportedTensor, load, sender_device
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.tsr.devices import device_of
from tr_mmap.tsr.header import decode

SIZES = pytest.mark.parametrize("count", [0, 3, 5_000, 100_000, 3_000_000])  # a slot, copied, mapped, copied apart


@SIZES
@FRAMEWORKS
def test_a_tensor_of_a_device_is_received_in_cpu_memory_and_its_device_is_told(
    sides: Sides, framework: str, count: int
) -> None:
    values = torch.linspace(0, 1, count)
    for _ in range(3):  # also by the segment that is used again
        found = sides.pass_on(on_device(values), framework)
        assert sender_device(found) == DEVICE
        assert bits(found) == bits(values)
        if framework == "torch":
            assert found.is_cpu
        del found


@SIZES
@FRAMEWORKS
def test_a_segment_that_is_used_again_tells_the_device_of_its_own_tensor(
    sides: Sides, framework: str, count: int
) -> None:
    values = torch.linspace(0, 1, count)
    names = set()
    for number in range(6):
        sides.settle()
        segment = sides.pool.publish(on_device(values) if number % 2 else values)
        names.add(segment.name)
        found = sides.look(segment, framework)
        assert sender_device(found) == (DEVICE if number % 2 else "cpu")
        segment.release()
        del found
    assert len(names) == 1


def test_one_segment_tells_each_of_its_readers_each_time(sides: Sides) -> None:
    segment = sides.pool.publish(on_device(torch.ones(5_000)))
    for _ in range(3):
        assert sender_device(sides.look(segment, "torch")) == DEVICE
    segment.release()


def test_the_header_of_a_segment_names_the_device_and_a_guest_reads_the_file_all_the_same(sides: Sides) -> None:
    segment = sides.pool.publish(on_device(torch.ones(5_000)))
    assert decode(bytes(segment.buffer[:256])).device == DEVICE
    assert load(segment.path).sum() == 5_000
    segment.release()


def test_a_copy_that_is_made_apart_tells_the_device(sides: Sides) -> None:
    copied = sides.pool.copy_apart(on_device(torch.ones(100_000)), lambda call, *arguments: call(*arguments))
    segment = sides.pool.publish_copied(copied)
    assert sender_device(sides.look(segment, "torch")) == DEVICE
    segment.release()
    del copied


@SIZES
def test_a_reader_that_wants_it_has_each_tensor_where_its_sender_had_it(directory: Path, count: int) -> None:
    sides = Sides(directory)
    sides.receiver.close()
    sides.receiver = SegmentReader(str(directory), moves_back=True)
    values = torch.linspace(0, 1, count)
    there = sides.pass_on(on_device(values), "torch")
    assert (str(there.device), sender_device(there)) == (DEVICE, DEVICE)
    assert bits(there.cpu()) == bits(values)
    here = sides.pass_on(values, "torch")
    assert here.is_cpu
    assert isinstance(sides.pass_on(on_device(values), "numpy"), np.ndarray)
    del there, here
    sides.close()


def test_a_device_that_is_not_here_is_an_error_that_names_it_and_holds_no_segment(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = Sides(directory)
    sides.receiver.close()
    sides.receiver = SegmentReader(str(directory), moves_back=True)
    monkeypatch.setattr("tr_mmap.shm.pool.device_of", lambda _: "cuda:99")
    with pytest.raises(UnsupportedTensor, match=r'on cuda:99, and it cannot be put there.*without device="same"'):
        sides.pass_on(torch.ones(100_000), "torch")
    gc.collect()
    assert sides.receiver.stats().leased == 0
    assert sides.pass_on(np.ones(3)).sum() == 3
    sides.close()


def test_what_is_remembered_of_a_tensor_ends_with_it(sides: Sides) -> None:
    from tr_mmap.tsr import devices

    found = [sides.pass_on(on_device(torch.ones(10)), framework) for framework in ("numpy", "torch") * 10]
    assert all(sender_device(each) == DEVICE for each in found)
    before = len(devices._remembered)
    other = threading.Thread(target=found.clear)
    other.start()
    other.join()
    gc.collect()
    assert len(devices._remembered) == before - 20


@pytest.mark.parametrize("other", [np.ones(3), torch.ones(3), torch.ones(3)[1:], 5, None])
def test_what_was_not_received_from_a_device_counts_as_of_the_cpu(other: Any) -> None:
    assert sender_device(other) == "cpu"


def test_a_name_that_no_header_can_hold_is_not_told() -> None:
    class Named(torch.Tensor):
        is_cpu = False
        device = "a_device_with_a_very_long_name:0"

    assert device_of(torch.ones(3).as_subclass(Named)) == ""
    assert device_of(on_device(torch.ones(3))) == DEVICE


def test_a_meta_tensor_has_no_data_to_send(sides: Sides) -> None:
    with pytest.raises(UnsupportedTensor, match="meta"):
        sides.pool.publish(torch.ones(3, device="meta"))
