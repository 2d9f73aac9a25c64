"""Preprocesses images in a worker, without a copy on the way, and keeps the results in files."""

import sys
from pathlib import Path

import numpy as np

import tr_mmap

WORKER = Path(__file__).with_name("worker.py")
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "preprocessed")
folder.mkdir(exist_ok=True)

with tr_mmap.PythonSession(WORKER, "preprocessing") as session:
    for number in range(3):
        images = session.empty((16, 240, 320, 3), "uint8")  # a loan: it lies where the worker will read it
        images[:] = np.random.default_rng(number).integers(0, 256, images.shape)  # yours: read, decode, resize
        result = session.calculate("normalize", images, timeout_ms=60_000)
        tr_mmap.save(folder / f"batch-{number}.tsr", result, checksum=True)
        del images, result  # so that the next batch reuses their memory
    print("copied to the worker:", session.stats().copied_nbytes, "bytes")

# The session is over. The files are mapped when they are loaded, so this costs no memory until it is used.
for path in sorted(folder.glob("batch-*.tsr")):
    batch = tr_mmap.load(path, verify=True)
    mean, deviation = abs(float(batch.mean())), float(batch.std())
    print(f"{path.name}: {batch.dtype} {batch.shape}, mean {mean:.3f}, deviation {deviation:.3f}")
