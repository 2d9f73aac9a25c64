"""Drives decorator_worker.py: every kind of answer, and an error that carries the worker's traceback."""

from pathlib import Path

import numpy as np

from tr_mmap import PythonSession, RemoteError

worker = Path(__file__).with_name("decorator_worker.py")

with PythonSession(worker) as session:
    session.send_tensor(np.arange(6, dtype=np.float32).reshape(3, 2), "x")

    print("one tensor:", session.fetch_tensor("scale x 2.5", 10_000).tolist())
    print("in one call:", session.calculate("scale 10", np.float32([1, 2])).tolist())
    lowest, highest = session.fetch_tensor("extremes x", 10_000)
    print("two tensors:", lowest.tolist(), highest.tolist())
    print("a text:", session.fetch_response("describe x sample", 10_000))
    for _ in range(3):
        session.fetch_response("count x", 10_000)
    print("the worker's state:", session.fetch_response("total", 10_000))

    try:
        session.calculate("extremes", np.empty((0, 2), dtype=np.float32))
    except RemoteError as error:
        print("an error:", error.error_type, "in", error.command)
        print("raised at:", error.remote_traceback.splitlines()[-1])
    print("and the worker goes on:", session.is_alive())
