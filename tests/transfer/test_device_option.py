"""``device="same"``: both sides have tensors where the other side had them, if they want it; else in CPU memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lazy_device import DEVICE, begin, on_device
from support import WORKERS

from tr_mmap import BadMessage, PythonSession, RemoteError, Server, UnsupportedTensor, sender_device

WORKER = WORKERS / "device_worker.py"


def open_session(has_device: str, workers: str | None, own: str | None, **options: object) -> PythonSession:
    words = (has_device, str(workers))
    return PythonSession(WORKER, framework="torch", quiet_mode=True, device=own, args=words, **options)


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_both_sides_have_tensors_on_the_device_where_the_other_side_had_them(channel: str) -> None:
    begin()
    with open_session("lazy", "same", "same", channel=channel, checksum=channel == "files") as session:
        for count in (3, 100_000):
            there, here = on_device(torch.ones(count)), torch.ones(count)
            said = f"{DEVICE} {DEVICE} {count}.0 cpu cpu {count}.0"
            for _ in range(3):
                assert session.calculate("where", there, here) == said
            session.send_tensor(there, "there")
            session.send_tensor(here, "here")
            for _ in range(3):
                assert session.fetch_response("where there here") == said
                made, plain = session.calculate(f"make {count}")
                assert (str(made.device), sender_device(made), float(made.sum())) == (DEVICE, DEVICE, count)
                assert (str(plain.device), sender_device(plain), float(plain.sum())) == ("cpu", "cpu", count)


def test_without_the_option_tensors_are_in_cpu_memory_and_tell_where_they_were() -> None:
    with open_session("lazy", None, None) as session:
        there = on_device(torch.ones(100_000))
        assert session.calculate("where", there) == f"cpu {DEVICE} 100000.0"
        made, plain = session.calculate("make 100000")
        assert made.is_cpu
        assert (sender_device(made), sender_device(plain)) == (DEVICE, "cpu")
        future = session.submit("make 3").result()[0]
        assert (future.is_cpu, sender_device(future)) == (True, DEVICE)


def test_a_worker_without_the_device_says_so_and_goes_on() -> None:
    with open_session("none", "same", None) as session:
        for _ in range(2):
            with pytest.raises(RemoteError, match=f"on {DEVICE}, and it cannot be put there") as caught:
                session.calculate("where", on_device(torch.ones(100_000)))
            assert caught.value.error_type == "UnsupportedTensor"
            assert session.calculate("where", torch.ones(3)) == "cpu cpu 3.0"


def test_a_controller_without_the_device_says_so_goes_on_and_keeps_no_memory_with_the_error() -> None:
    with open_session("none", None, "same") as session:
        with pytest.raises(UnsupportedTensor, match="on cuda:99, and it cannot be put there") as caught:
            session.calculate("pretend 100000")
        assert session.stats().results.leased == 0
        assert session.calculate("where", torch.ones(3)) == "cpu cpu 3.0"
        del caught


@pytest.mark.parametrize("device", ["cuda:0", "", True, np.array(["same"])])
def test_any_other_device_is_refused_by_name(device: object) -> None:
    for make in (PythonSession, Server):
        with pytest.raises(BadMessage, match=r"it must be 'same'") as caught:
            make(device=device)
        assert caught.value.detail == "device"
