"""Preprocesses images in a worker, without a copy, and keeps the results in files."""

import sys
from pathlib import Path

import numpy as np

import tr_mmap

WORKER = Path(__file__).with_name("worker.py")
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "preprocessed")
folder.mkdir(exist_ok=True)

with tr_mmap.PythonSession(WORKER, "preprocessing") as session:
    for number in range(3):
        random = np.random.default_rng(number)
        images = session.empty((16, 240, 320, 3), "uint8")  # a loan: it is not copied
        images[:] = random.integers(0, 256, images.shape)  # yours: read, decode, resize
        result = session.calculate("normalize", images, timeout_ms=60_000)
        tr_mmap.save(folder / f"batch-{number}.tsr", result, checksum=True)
        del images, result  # so that the next batch reuses their memory
    print("copied to the worker:", session.stats().copied_nbytes, "bytes")

# The session is over. A file is mapped when it is loaded, and read when it is used.
for path in sorted(folder.glob("batch-*.tsr")):
    batch = tr_mmap.load(path, verify=True)
    print(f"{path.name}: {batch.dtype} {batch.shape}, deviation {batch.std():.3f}")
