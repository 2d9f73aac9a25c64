"""Tensors from the controller to the worker."""

from pathlib import Path

import torch
from tech_renaissance import PyTorchSession

with PyTorchSession(str(Path(__file__).with_name("sent_tensors_worker.py")), "sent_tensors") as session:
    for size in (1, 1000, 300_000):
        x = torch.ones(size)
        session.send_tensor(x, "x")
        session.send_tensor(x * 2, "y")
        assert float(session.fetch_response("sum x y", 30000)) == 3 * size
        assert float(session.fetch_response("read y", 30000)) == 4 * size
    print("all received")
