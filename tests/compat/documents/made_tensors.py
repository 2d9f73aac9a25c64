"""Tensors from the worker to the controller."""

from pathlib import Path

import torch
from tech_renaissance import PyTorchSession

with PyTorchSession(str(Path(__file__).with_name("made_tensors_worker.py")), "made_tensors") as session:
    assert torch.equal(session.recv_tensor("greeting", 30000), torch.arange(6.0).reshape(2, 3))
    for size in (1, 1000, 300_000):
        session.send_request(f"make {size}")
        assert torch.equal(session.recv_tensor("sevens", 30000), torch.full((size,), 7))
        assert torch.equal(session.recv_tensor("result_0", 30000), torch.zeros(size))
        assert torch.equal(session.recv_tensor("result_1", 30000), torch.ones(size))
    print("all received")
