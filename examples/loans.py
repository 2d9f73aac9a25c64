"""Loans: arrays that live in shared memory from the start, so that sending them copies nothing."""

import numpy as np

from tr_mmap import PythonSession

with PythonSession() as session:
    frame = session.empty((2048, 2048), "float32")  # 16 MiB that the worker will map, not receive
    frame[:] = 1
    session.send_tensor(frame, "frame")
    print("sum:", float(session.fetch_tensor("sum frame", 10_000)))

    # Results come the same way: a view of the worker's memory, which stays right for as long as it is kept.
    kept = [session.calculate("mul", frame, np.float32(n)) for n in range(3)]
    print("kept:", [float(result[0, 0]) for result in kept])

    session.drop_tensor("frame")  # the tag is gone; the memory goes round again when nobody looks at it
