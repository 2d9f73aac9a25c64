"""Takes 16 results of 8 MiB from a worker, and keeps them all."""

import os

import numpy as np

from tr_mmap import OutOfSpace, PythonSession

place = os.statvfs(os.environ.get("TR_WORKSPACE", "/dev/shm"))
print(f"room for tensors: {place.f_blocks * place.f_frsize >> 20} MiB", flush=True)
kept = []
with PythonSession(session_id="docker", quiet_mode=True) as session:
    try:
        while len(kept) < 16:
            numbers = session.empty(2 << 20, "float32")
            numbers[:] = len(kept)
            kept.append(session.calculate("square", numbers))  # each keeps its memory
    except OutOfSpace as error:  # the worker's too: RemoteOutOfSpace is one
        raise SystemExit(
            f"no room for result {len(kept) + 1}: "
            f"{error.needed_nbytes} bytes needed, {error.free_nbytes} free\n"
            "start the container with --shm-size=1g, or keep fewer results"
        ) from None
print("all right:", all(np.all(result == number**2) for number, result in enumerate(kept)))
