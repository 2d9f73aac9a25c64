"""Tensors in files: written once, mapped by whoever reads them."""

import tempfile
from pathlib import Path

import numpy as np

import tr_mmap

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "weights.tsr"
    weights = np.random.default_rng(0).standard_normal((512, 256), dtype=np.float32)
    tr_mmap.save(path, weights, checksum=True)

    header = tr_mmap.read_header(path)  # 256 bytes are read, whatever the file's size
    print("header:", header.dtype.name, header.shape, header.payload_nbytes, "bytes")

    view = tr_mmap.load(path)  # a read-only view of the mapped file: nothing is copied
    print("equal:", np.array_equal(view, weights), "writeable:", view.flags.writeable)
    print("checksum right:", np.array_equal(tr_mmap.load(path, verify=True), weights))

    tr_mmap.save(path, weights[:4, :4], version=1)  # the older layout: at most 4 dimensions, fewer dtypes
    print("layout 1:", path.stat().st_size, "bytes")  # 64 of header, 64 of data

    path.write_bytes(path.read_bytes()[:-1])
    try:
        tr_mmap.load(path)
    except tr_mmap.TSRFormatError as error:
        print("a damaged file:", error.fault)
