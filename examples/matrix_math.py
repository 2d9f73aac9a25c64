"""Drives matrix_math_server.py: a worker by subclass, tensors by tag, and what an unknown command looks like."""

from pathlib import Path

import torch

from tr_mmap import PythonSession, UnknownCommand

worker = Path(__file__).with_name("matrix_math_server.py")

with PythonSession(worker, framework="torch") as session:
    print(session.fetch_response("hello matrix", 10_000))

    a, b = torch.rand(256, 256), torch.rand(256, 256)
    session.send_tensor(a, "a")
    session.send_tensor(b, "b")
    product = session.fetch_tensor("matmul a b", 10_000)
    print("product is right:", torch.allclose(product, a @ b, atol=1e-4))

    # The same as JSON, and as one call that names no tags.
    product = session.fetch_tensor('{"cmd": "matmul", "params": "a,b"}', 10_000)
    print("and as JSON:", torch.allclose(product, a @ b, atol=1e-4))
    print("and in one call:", torch.allclose(session.calculate("matmul", a, b), a @ b, atol=1e-4))

    try:
        session.fetch_response("transpose a", 10_000)
    except UnknownCommand as error:
        print("unknown command:", error.command)
