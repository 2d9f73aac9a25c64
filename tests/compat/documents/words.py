"""Requests in words, and their results by name or at once."""

import tempfile
from pathlib import Path

import torch
from tech_renaissance import PyTorchSession, TRException

with PyTorchSession(Path(__file__).with_name("words_worker.py"), "words") as session:
    a, b = torch.randn(3, 4), torch.randn(4, 2)
    session.send_tensor(a, "a")
    session.send_tensor(b, "b")

    session.send_request("matmul a b")
    product = session.recv_tensor("result_0", 30000)
    assert torch.equal(product, a @ b)

    assert torch.equal(session.fetch_tensor("relu a", 30000), torch.relu(a))
    assert torch.equal(session.fetch_tensor("double b", 30000), b * 2)
    assert session.fetch_response("shape a", 30000) == "3x4"
    assert session.fetch_response("hello world", 30000) == "Hello World"

    session.send_request("total a")
    assert session.wait_for_response(30000) == "ok"
    assert torch.equal(session.recv_tensor("result", 30000), a.sum())

    session.send_request("first a")
    assert torch.equal(session.recv_tensor("result_1", 30000), a[-1])
    assert torch.equal(session.recv_tensor("result_0", 30000), a[0])

    with tempfile.TemporaryDirectory() as folder:
        assert session.fetch_response(f"keep a {folder}/a.tsr", 30000) == "12"
        assert torch.equal(session.fetch_tensor(f"load {folder}/a.tsr", 30000), a)
        failure = ""
        try:
            session.fetch_tensor(f"load {folder}/b.tsr", 30000)
        except TRException as error:
            failure = str(error)
        assert "nothing to load" in failure
    print("all right")
